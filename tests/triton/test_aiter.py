"""AITER's paged attention in Triton, where that package is installed, under the same interpreter as ours and before the
same oracle: two implementations that share nothing but the language.

Only the kernel's file is loaded, below stand-ins of its parent packages, which want AMD's runtime when imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from opsocket.operators import AttentionPlan, AttentionSpec, DeviceInfo, Pick, Provider, Reason, SessionOptions
from opsocket_conformance.case import Case
from opsocket_conformance.operators.attention.knobs import Attention
from opsocket_conformance.runner import run_case
from opsocket_conformance.verdicts import Verdict
from opsocket_rocm.backend import RocmBackend
from opsocket_triton import mode

GFX = DeviceInfo("rocm", 0, "gfx942", "gfx942", 8 << 30, numerics="interpreted")
mode.interpret(GFX)
AITER = importlib.util.find_spec("aiter")
pytestmark = pytest.mark.skipif(AITER is None, reason="AITER is not installed")
KERNELS = "aiter.ops.triton._triton_kernels"


def _load():
    """kernel_unified_attention_2d: below `attention` in later versions."""
    root = Path(AITER.submodule_search_locations[0])
    for name in ("", ".ops", ".ops.triton", ".ops.triton.utils", ".ops.triton.utils._triton"):
        package = types.ModuleType(f"aiter{name}")
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[package.__name__] = package
    for name in (KERNELS, f"{KERNELS}.attention"):
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    kinds = types.ModuleType("aiter.ops.triton.utils.types")
    kinds.e4m3_dtype = torch.float8_e4m3fn
    sys.modules[kinds.__name__] = kinds
    inner = "attention." if (root / "ops/triton/_triton_kernels/attention/unified_attention.py").exists() else ""
    return importlib.import_module(f"{KERNELS}.{inner}unified_attention").kernel_unified_attention_2d


class AiterAttention(AttentionPlan):
    """Causal batches of which every request has the default positions, as the kernel counts them."""

    def _update(self, batch) -> None:
        upload = self.session.upload
        self._q_lens, self._kv_lens = np.diff(batch.q_indptr), np.asarray(batch.kv_lens)
        self._indptr = upload(np.asarray(batch.q_indptr, np.int32))
        self._lens = upload(self._kv_lens.astype(np.int32))
        # It reads entries of a whole tile.
        self._table = upload(np.pad(np.asarray(batch.block_table, np.int32), ((0, 0), (0, 8))))

    def _run(self, q, kv, sinks, alibi, tree_mask, out, lse_out):
        spec, kernel = self.spec, _KERNEL[0]
        k, v = (kv.planes[name].transpose(1, 2) for name in ("k", "v"))
        heads = spec.group
        block_m = 16
        given = {
            "output_ptr": out, "query_ptr": q, "key_cache_ptr": k, "value_cache_ptr": v, "sink_ptr": sinks,
            "block_tables_ptr": self._table, "seq_lens_ptr": self._lens, "alibi_slopes_ptr": None, "qq_bias_ptr": None,
            "scale": spec.scale, "q_descale_ptr": None, "k_descale_ptr": None, "v_descale_ptr": None,
            "out_scale_ptr": None, "k_scale": None, "v_scale": None, "out_scale": None, "softcap": 0.0,
            "num_query_heads": spec.num_q_heads, "num_queries_per_kv": heads,
            "block_table_stride": self._table.stride(0), "query_stride_0": q.stride(0), "query_stride_1": q.stride(1),
            "output_stride_0": out.stride(0), "output_stride_1": out.stride(1), "qq_bias_stride_0": 0,
            "BLOCK_SIZE": k.shape[1], "TILE_SIZE": 32, "HEAD_SIZE": spec.head_dim_qk,
            "HEAD_SIZE_PADDED": 1 << (spec.head_dim_qk - 1).bit_length(), "USE_ALIBI_SLOPES": False,
            "USE_QQ_BIAS": False, "USE_FP8": False, "USE_SOFTCAP": False, "USE_SINKS": spec.sinks,
            "SLIDING_WINDOW": 0 if spec.window_left is None else spec.window_left + 1,
            "query_start_len_ptr": self._indptr, "BLOCK_Q": block_m // heads, "num_seqs": len(self._kv_lens),
            "BLOCK_M": block_m, "ALL_DECODE": False, "SHUFFLED_KV_CACHE": False, "K_WIDTH": 0,
            **{f"stride_k_cache_{i}": k.stride(i) for i in range(4)},
            **{f"stride_v_cache_{i}": v.stride(i) for i in range(4)},
        }  # fmt: skip
        count = int(self._q_lens.sum())
        grid = (spec.num_kv_heads, count // (block_m // heads) + len(self._kv_lens))
        names = set(kernel.arg_names)
        kernel[grid](**{name: value for name, value in given.items() if name in names})
        return out, lse_out


class _Aiter(Provider):
    name = "aiter"

    def pick(self, device, request):
        if isinstance(request.spec, AttentionSpec):
            return Pick(AiterAttention)
        return (Reason("operator", "op", request.op, ["attention"]),)


class _Backend(RocmBackend):
    def providers(self):
        return [_Aiter(), *super().providers()]


_KERNEL: list = []


@pytest.fixture(scope="module", params=["aiter", "triton"])
def session(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(mode.MEMORY_VARIABLE, "host")
        for name in [name for name in sys.modules if name.split(".")[0] == "aiter"]:
            patch.delitem(sys.modules, name)
        _KERNEL[:] = [_load()]
        pins = {"attention": request.param}
        with _Backend().open(GFX, SessionOptions(pins=pins)) as opened:
            yield opened
        for name in [name for name in sys.modules if name.split(".")[0] == "aiter"]:
            del sys.modules[name]


@pytest.mark.parametrize("q", ["f16", "bf16"])
@pytest.mark.parametrize(
    ("batch", "knobs"),
    [
        ("r5:41+17:17+1:40", {}),
        ("r3:70+1:33", {"sinks": True}),
        ("r5:30+2:30+1:20", {"left": 18}),  # no block is left of every window: its tiles would read one that is NaN
    ],
    ids=str,
)
def test_both_agree_with_the_oracle(session, batch, q, knobs) -> None:
    numerics = {"prob": q, "deq": q, "exp": "approx", "tanh": "approx", "acc": "f32_truncating"}
    check = Attention(hq=8, hkv=2, d=64, q=q, batch=batch, **numerics, **knobs)
    result = run_case(Case(check), session, 0, 120.0)
    assert result.verdict is Verdict.PASS, (result.case, result.messages)
    assert result.provider == session.options.pins["attention"]
    assert result.ratio is not None
    assert math.isfinite(result.ratio)
