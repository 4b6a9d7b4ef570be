"""What is wrong on purpose. Each has to be refused: by the suite, by the vendor's checks, or by ours where the vendor
has none. Where one passes, what is said of the right calls is worth nothing."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch

from opsocket.operators import AddPlan, Plan
from opsocket_ascend.torch_npu_provider import strict, tiles
from opsocket_ascend.torch_npu_provider.attention import NpuAttention
from opsocket_ascend.verification.calls import Call, tensor

# ---- additions that the suite has to find wrong on an emulated NPU


class ReadsByPointer(AddPlan):
    """The host reads device memory by its address."""

    def _run(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        ctypes.cast(a.data_ptr(), ctypes.POINTER(ctypes.c_float))[0]
        return torch.add(a, b, out=out)


class WorksOnHost(AddPlan):
    """Both are brought to the host, and the sum back."""

    def _run(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        result = (a.cpu() + b.cpu()).to(a.device)
        return result if out is None else out.copy_(result)


class ReadsOutside(AddPlan):
    """Of one row more than there is."""

    def _run(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        rows = torch.arange(1, len(a) + 1, device=a.device)
        result = a.index_select(0, rows) + b
        return result if out is None else out.copy_(result)


class AsksTheUnknown(AddPlan):
    """Of an operator that the emulator has no answer to."""

    def _run(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        result = torch.special.erfinv(a.float()).to(a.dtype) + b
        return result if out is None else out.copy_(result)


class LosesLowBits(AddPlan):
    """The sum is made a little smaller before it is rounded."""

    def _run(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        result = ((a.float() + b.float()) * (1 - 2.0**-9)).to(a.dtype)
        return result if out is None else out.copy_(result)


class WaitsInCapture(AddPlan):
    """The host looks at the sum, while its stream is captured."""

    def _run(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        result = torch.add(a, b, out=out)
        if getattr(self.session, "tasks", None) is not None:
            result.float().sum().item()
        return result


class KeepsLengths(NpuAttention):
    """A graph is told the lengths that it was captured with, as where a task update is forgotten."""

    _first: tuple[list[int], list[int]] | None = None

    def _lengths(self) -> tuple[list[int], list[int]]:
        self._first = self._first or super()._lengths()
        return self._first


WRONG_PLANS: Final[dict[str, type[Plan]]] = {
    "host read of device memory": ReadsByPointer,
    "work on the host": WorksOnHost,
    "an index outside of an array": ReadsOutside,
    "an operator without an answer": AsksTheUnknown,
    "low bits lost": LosesLowBits,
    "waiting in a capture": WaitsInCapture,
    "lengths as captured": KeepsLengths,
}

# ---- calls that the vendor's own checks refuse


def _quant_matmul(**changed: Any) -> Call:
    """[3, 64] by [64, 32], in int8, with a scale for each row and column."""
    given = {
        "x1": tensor("int8", (3, 64)),
        "x2": tensor("int8", (64, 32)),
        "scale": tensor("float32", (32,)),
        "pertoken_scale": tensor("float32", (3,)),
    } | changed
    args = [given.pop(name) for name in ("x1", "x2", "scale")]
    return Call("npu::npu_quant_matmul.default", args, {**given, "output_dtype": _ACL_HALF})


_ACL_HALF: Final = 5
"""torch_npu's number of f16 as an output."""


def wrong_calls() -> dict[str, Call]:
    """By name: right but for one thing each."""
    halves = tensor("float16", (3, 64))
    quantized = [tensor("int8", (3, 64)), tensor("float32", (3,))]
    dynamic = Call("npu::npu_dynamic_quant.default", [halves], {}, quantized)
    return {
        "an argument that the schema has not": Call(dynamic.operator, [halves], {"smooth": None}, quantized),
        "an argument of another type": Call(dynamic.operator, [halves], {"quant_mode": 1}, quantized),
        "an operator that torch_npu has not": Call("npu::npu_dynamic_quant_of_ours.default", [halves], {}),
        "K that differs, for the int8 product": _quant_matmul(x2=tensor("int8", (48, 32))),
        "results of another shape": Call(dynamic.operator, [halves], {}, [quantized[0], tensor("float32", (64,))]),
        "columns that no word of int4 codes takes": Call(
            "npu::npu_convert_weight_to_int4pack.default", [tensor("int32", (64, 33))], {}
        ),
        "another call of CANN": Call(dynamic.operator, [halves], {}, quantized, ["aclnnDynamicQuantV2(x=f16[3,65])"]),
    }


# ---- calls that the vendor's checks let through, and ours refuse


@dataclass(frozen=True)
class Misuse:
    """wrong: what is. argument: that our refusal names. ours: makes the call through `strict`; call: it, put to the
    vendor's operator as it is."""

    wrong: str
    argument: str
    ours: Callable[[], object]
    call: Call


def _npu(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="npu")


def _tiles(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return tiles.tiled(_npu(shape, dtype))


_HEADS, _KV_HEADS, _DIM, _SIZE, _GROUP = 8, 2, 64, 128, 32
_F16, _F32, _I8, _I32 = torch.float16, torch.float32, torch.int8, torch.int32


def _attend(heads: int = _HEADS, key_dim: int = _DIM, table: torch.dtype = _I32) -> tuple[Callable[[], object], Call]:
    """Three sequences with a query each over pages of 128: a decode step."""
    pages, q_ends, kv_lens = (5, _SIZE, _KV_HEADS, key_dim), [1, 2, 3], [5, 130, 1]

    def ours() -> object:
        return strict.fused_infer_attention(
            _npu((3, _HEADS, _DIM), _F16),
            _npu(pages, _F16),
            _npu(pages, _F16),
            num_heads=heads,
            num_kv_heads=_KV_HEADS,
            scale=0.125,
            q_ends=q_ends,
            kv_lens=kv_lens,
            block_table=_npu((3, 2), table),
            mask=None,
            want_lse=False,
        )

    flat = tensor("float16", (5, _SIZE, _KV_HEADS * key_dim))
    named = {
        "num_heads": heads,
        "num_key_value_heads": _KV_HEADS,
        "input_layout": "TND",
        "scale": 0.125,
        "block_table": tensor(str(table).removeprefix("torch."), (3, 2)),
        "block_size": _SIZE,
        "actual_seq_lengths": q_ends,
        "actual_seq_lengths_kv": kv_lens,
    }
    q = tensor("float16", (3, _HEADS, _DIM))
    return ours, Call("npu::npu_fused_infer_attention_score.default", [q, flat, flat], named)


def _multiply(codes: torch.dtype = _I8, inner: int = 64, per_token: int = 3) -> tuple[Callable[[], object], Call]:
    def ours() -> object:
        weight, scale, rows = _npu((inner, 32), _I8), _npu((32,), _F32), _npu((per_token,), _F32)
        return strict.quant_matmul(_npu((3, 64), codes), weight, scale, rows, None, _F16)

    name = str(codes).removeprefix("torch.")
    changed = {"x1": tensor(name, (3, 64)), "x2": tensor("int8", (inner, 32))}
    return ours, _quant_matmul(**changed, pertoken_scale=tensor("float32", (per_token,)))


def _multiply_transposed_tiles() -> tuple[Callable[[], object], Call]:
    def ours() -> object:
        weight, scale, rows = _tiles((32, 64), _I8).t(), _npu((32,), _F32), _npu((3,), _F32)
        return strict.quant_matmul(_npu((3, 64), _I8), weight, scale, rows, None, _F16)

    return ours, _quant_matmul(x2=tensor("int8", (64, 32), (1, 64), tiles=True))


def _multiply_int8_tiles() -> tuple[Callable[[], object], Call]:
    """x [3, 64] by int8 codes [64, 32] with a scale for each column."""

    def ours() -> object:
        return strict.weight_quant_matmul(_npu((3, 64), _F16), _tiles((64, 32), _I8), _npu((32,), _F16), None, 0)

    args = [tensor("float16", (3, 64)), tensor("int8", (64, 32), tiles=True), tensor("float16", (32,))]
    return ours, Call("npu::npu_weight_quant_batchmatmul.default", args, {})


def _multiply_int4(inner: int = 64, columns: int = 32, groups: int = 2) -> tuple[Callable[[], object], Call]:
    """x [3, 64] by int4 codes [inner, 32] in groups of 32."""

    def ours() -> object:
        words, scale = _npu((inner, 4), _I32), _npu((groups, columns), _F16)
        return strict.weight_quant_matmul(_npu((3, 64), _F16), words, scale, None, _GROUP)

    args = [tensor("float16", (3, 64)), tensor("int32", (inner, 4)), tensor("float16", (groups, columns))]
    return ours, Call("npu::npu_weight_quant_batchmatmul.default", args, {"antiquant_group_size": _GROUP})


def _normalize(width: int) -> tuple[Callable[[], object], Call]:
    def ours() -> object:
        return strict.rms_norm(_npu((3, 64), _F16), _npu((width,), _F16), 1e-5)

    args = [tensor("float16", (3, 64)), tensor("float16", (width,)), 1e-5]
    return ours, Call("npu::npu_rms_norm.default", args, {})


MISUSES: Final[dict[str, Misuse]] = {
    name: Misuse(wrong, argument, *made)
    for name, wrong, argument, made in (
        ("block table of i64", "its entries are read as i32", "block_table", _attend(table=torch.int64)),
        ("heads of q and K that differ", "64 and 32 elements", "keys", _attend(key_dim=32)),
        ("a number of heads that is not q's", "16 are said, q has 8", "num_heads", _attend(heads=16)),
        ("per-token scale of another length", "2 for 3 rows", "per_token", _multiply(per_token=2)),
        ("f16 activations for the int8 product", "bits are read as codes", "codes", _multiply(codes=_F16)),
        ("K of the int8 product", "64 and 48", "weight", _multiply(inner=48)),
        ("K of the weight-only product", "64 and 48", "weight", _multiply_int4(inner=48)),
        ("N of the weight-only product", "scales for 31 of 32 columns", "scale", _multiply_int4(columns=31)),
        ("groups of the weight-only product", "scales for one group, of two", "scale", _multiply_int4(groups=1)),
        ("tiles for the int8 product, transposed", "only strides say so", "weight", _multiply_transposed_tiles()),
        ("tiles for the weight-only product", "it reads them in graphs alone", "weight", _multiply_int8_tiles()),
        ("gamma of another width", "32 for rows of 64", "gamma", _normalize(32)),
    )
}  # fmt: skip
