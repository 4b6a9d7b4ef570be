"""Attention by FlashInfer: what it is asked for, translated right, and what is refused.

FlashInfer's kernels need a chip. `flashinfer_model` computes what its documentation says of the arrays that its
wrappers are given; the conformance oracle says what our batches mean; between the two stands the provider. Where the
package is installed, the forms of all calls are bound to its signatures too.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsocket.operators import (
    AttentionBatch,
    AttentionSpec,
    Bounds,
    CacheSpec,
    DeviceInfo,
    KVFormat,
    Numerics,
    Pick,
    Request,
    SessionOptions,
)
from opsocket_conformance.case import Case
from opsocket_conformance.operators.attention.batches import Row, literal
from opsocket_conformance.operators.attention.knobs import Attention
from opsocket_conformance.runner import run_case
from opsocket_conformance.verdicts import Verdict
from opsocket_cuda.backend import CudaBackend
from opsocket_cuda.flashinfer_provider import calls
from opsocket_cuda.flashinfer_provider.provider import FlashInferProvider
from opsocket_triton import mode
from opsocket_triton.provider import TritonProvider

mode.interpret(DeviceInfo("cuda", 0, "sm_90", "sm_90", 2**30, numerics="interpreted"))

sys.path.insert(0, str(Path(__file__).parent))
import flashinfer_model  # noqa: E402

REAL = importlib.util.find_spec("flashinfer") is not None
CHIP = DeviceInfo("cuda", 0, "H100", "sm_90", 80 << 30)
FAST = {"exp": "approx", "tanh": "approx", "acc": "f32_truncating"}


class _OnAModel(FlashInferProvider):
    """The provider as it is on a chip; its arrays are the host's."""

    def pick(self, device, request):
        return super().pick(replace(device, numerics="device"), request)


class _Backend(CudaBackend):
    def providers(self):
        return [_OnAModel(), TritonProvider()]


@pytest.fixture(scope="module")
def session():
    with pytest.MonkeyPatch.context() as patch:
        flashinfer_model.install(patch)
        patch.setenv(mode.MEMORY_VARIABLE, "host")  # the model reads what it is given on the host
        patch.setattr("opsocket_cuda.flashinfer_provider.attention.WORKSPACE_BYTES", 64)
        device = DeviceInfo("cuda", 0, "sm_90", "sm_90", 8 << 30, numerics="interpreted")
        with _Backend().open(device, SessionOptions(pins={"attention": "flashinfer"})) as opened:
            yield opened


def _holds(session, check: Attention) -> None:
    result = run_case(Case(check), session, 0, 120.0)
    assert result.verdict is Verdict.PASS, (result.case, result.messages, result.reasons)
    assert result.provider == "flashinfer"


def _fast(q: str = "f16", **knobs) -> Attention:
    return Attention(q=q, prob=q, deq=q, **{**FAST, "hq": 4, "hkv": 2, **knobs})


PAGED = [
    {"batch": "mixed"},
    *({"batch": name, "lse": True} for name in ("decode", "short", "shifted", "none")),
    {"batch": "chunk", "left": 12, "lse": True},
    {"batch": "short", "left": 12},
    {"batch": "edges", "left": 31, "bs": 32},
    {"batch": "mixed", "mask": "full", "left": 5},
    {"batch": "decode", "mask": "full", "right": 0},
    {"batch": "verify", "mask": "tree"},
    {"batch": "verify", "mask": "tree", "left": 20, "right": 0, "lse": True},
    {"batch": "r70:90", "d": 128},
    {"batch": "decode", "bs": 1, "hq": 8, "hkv": 1},
    {"batch": "mixed", "strided": True, "lse": True},
    {"batch": "chunk", "fresh": True},
]


@pytest.mark.parametrize("knobs", PAGED, ids=lambda knobs: ",".join(f"{k}={v}" for k, v in knobs.items()))
def test_paged(session, knobs) -> None:
    _holds(session, _fast(**knobs))


@pytest.mark.parametrize(
    "knobs", [{"q": "bf16"}, {"kv": "f8e4m3fn"}, {"kv": "f8e5m2"}, {"kv": "f8e4m3fn.tensor+f8e4m3fn"}]
)
def test_types(session, knobs) -> None:
    _holds(session, _fast(batch="mixed", **knobs))


@pytest.mark.parametrize(("d", "dv"), [(64, 64), (192, 128)])
@pytest.mark.parametrize("batch", ["decode", "short"])
def test_contiguous(session, batch, d, dv) -> None:
    _holds(session, _fast(batch=batch, bs=0, lse=True, d=d, dv=dv))


@pytest.mark.parametrize("knobs", [{"left": 9}, {"mask": "full", "left": 3}, {"strided": True}])
def test_contiguous_masks(session, knobs) -> None:
    _holds(session, _fast(batch="mixed", bs=0, **knobs))


_ROWS = st.builds(
    lambda q_len, kv_len, ahead, start: Row(q_len, kv_len, min(ahead, kv_len), 0, start),
    st.integers(0, 20), st.integers(0, 70), st.integers(0, 30), st.sampled_from([0, 0, 5]),
)  # fmt: skip


@settings(max_examples=25)
@given(
    rows=st.lists(_ROWS, min_size=1, max_size=5),
    left=st.sampled_from([None, 0, 7, 40]),
    mask=st.sampled_from(["causal", "full"]),
    block_size=st.sampled_from([0, 8, 16]),
    lse=st.booleans(),
)
def test_any_batch(session, rows, left, mask, block_size, lse) -> None:
    knobs = {"mask": mask, "left": left, "bs": block_size, "lse": lse, "hq": 2, "hkv": 1}
    _holds(session, _fast(batch=literal(rows), **knobs))


@settings(max_examples=12)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 50)), min_size=1, max_size=4),
    left=st.sampled_from([None, 4, 30]),
    right=st.sampled_from([None, 0, 3]),
)
def test_any_tree(session, sizes, left, right) -> None:
    rows = [Row(q_len, q_len + history) for q_len, history in sizes]
    _holds(session, _fast(batch=literal(rows), mask="tree", left=left, right=right, hq=2, hkv=1, lse=True))


def test_positions_beyond_the_keys(session) -> None:
    """A part of a prefix, as in a cascade: every key is before every query, or some are in some queries' windows."""
    for left, kind in ((None, "all"), (45, "bits")):
        numerics = Numerics("f16", "approx", "approx", "f32_truncating")
        spec = AttentionSpec(2, 1, 64, 64, 0.1, window_left=left, q_dtype="f16", out_dtype="f16", numerics=numerics)
        fmt = KVFormat("f16")
        request = Request(spec, CacheSpec(8, 16, 1, 64, 64, fmt, fmt))
        batch = AttentionBatch(
            np.array([0, 3, 4], np.int32), np.array([20, 33], np.int32), np.array([[0, 1, 2], [3, 4, 5]], np.int32),
            q_start=np.array([60, 70], np.int32),
        )  # fmt: skip
        plan = session.plan(request, batch)
        assert plan._chosen[0] == kind
        rng = np.random.default_rng(0)
        cache = session.allocate_cache(request.cache)
        for name, plane in cache.planes.items():
            session.write(plane, rng.normal(size=plane.shape).astype(np.float32))
            cache.planes[name].copy_(plane)
        q = rng.normal(size=(4, 2, 64)).astype(np.float16)
        out, _ = plan.run(session.upload(q), cache)
        got = session.download(out)
        for row, (request_number, position) in enumerate([(0, 60), (0, 61), (0, 62), (1, 70)]):
            length, blocks = (20, [0, 1]) if request_number == 0 else (33, [3, 4, 5])
            k, v = (
                np.concatenate([session.download(cache.planes[name])[block, 0] for block in blocks])[:length]
                for name in ("k", "v")
            )
            visible = np.ones(length, bool) if left is None else np.arange(length) >= position - left
            for head in range(2):
                logits = np.where(visible, 0.1 * k.astype(np.float64) @ q[row, head], -np.inf)
                weights = np.exp(logits - logits[visible].max()) if visible.any() else np.zeros(length)
                want = weights @ v / max(weights.sum(), 1e-30)
                np.testing.assert_allclose(got[row, head], want, atol=2e-3)


def test_decode_in_f32(session) -> None:
    """Where probabilities have to stay f32, the kernels without tensor cores serve steps of one query each."""
    numerics = Numerics(exp="approx")
    spec = AttentionSpec(4, 2, 64, 64, 0.1, q_dtype="bf16", out_dtype="bf16", numerics=numerics, want_lse=True)
    fmt = KVFormat("bf16")
    request = Request(spec, CacheSpec(8, 16, 2, 64, 64, fmt, fmt), bounds=Bounds(max_q_len=1))
    assert session.supports(request).provider == "flashinfer"
    assert session.supports(request).capture == "never"
    assert not session.supports(replace(request, bounds=Bounds()))
    batch = AttentionBatch(
        np.array([0, 1, 1, 2], np.int32), np.array([20, 9, 33], np.int32),
        np.array([[0, 1, 0], [6, 0, 0], [3, 4, 5]], np.int32), q_start=np.array([19, 8, 17], np.int32),
    )  # fmt: skip
    plan = session.plan(request, batch)
    rng = np.random.default_rng(0)
    cache = session.allocate_cache(request.cache)
    for plane in cache.planes.values():
        session.write(plane, rng.normal(size=plane.shape).astype(np.float32))
    q = session.upload(rng.normal(size=(3, 4, 64)).astype(np.float32), "bf16")
    out = session.upload(np.full((3, 4, 64), 7.0, np.float32), "bf16")
    _, lse = plan.run(q, cache, out=out)
    wanted = TritonProvider().pick(session.device, request).plan(session, request, "triton")
    wanted.update(batch)
    want, want_lse = wanted.run(q, cache)
    np.testing.assert_allclose(session.download(out)[:2], session.download(want)[:2], atol=1e-2)
    np.testing.assert_allclose(session.download(lse)[:2], session.download(want_lse)[:2], atol=1e-3)
    assert np.all(session.download(out)[2] == 7.0)


def test_replays_read_the_batch_of_the_last_update(session) -> None:
    numerics = Numerics("f16", "approx", "approx", "f32_truncating")
    spec = AttentionSpec(2, 1, 64, 64, 0.1, q_dtype="f16", out_dtype="f16", numerics=numerics, want_lse=True)
    fmt = KVFormat("f16")
    bounds = Bounds(max_tokens=8, max_batch=4, max_q_len=8, max_kv_len=64)
    request = Request(spec, CacheSpec(16, 16, 1, 64, 64, fmt, fmt), bounds=bounds)
    table = np.arange(16, dtype=np.int32).reshape(4, 4)

    def step(q_lens, kv_lens):
        q_indptr = np.concatenate([[0], np.cumsum(q_lens)]).astype(np.int32)
        return AttentionBatch(q_indptr, np.array(kv_lens, np.int32), table[: len(q_lens)])

    rng = np.random.default_rng(0)
    cache = session.allocate_cache(request.cache)
    for plane in cache.planes.values():
        session.write(plane, rng.normal(size=plane.shape).astype(np.float32))
    q = session.upload(rng.normal(size=(8, 2, 64)).astype(np.float16))
    out, lse = session.empty((8, 2, 64), "f16"), session.empty((8, 2), "f32")
    plan = session.plan(request, step([1, 1, 1, 1], [20, 30, 1, 2]))
    with session.capture() as graph:
        plan.run(q, cache, out=out, lse_out=lse)
    for q_lens, kv_lens in (([1, 1], [21, 31]), ([3, 1, 2, 2], [2, 64, 1, 40]), ([0, 1], [5, 6])):
        batch = step(q_lens, kv_lens)
        plan.update(batch)
        out.fill_(7.0)
        lse.fill_(7.0)
        want, want_lse = session.plan(request, batch).run(q, cache)
        graph.replay()
        count = sum(q_lens)
        np.testing.assert_array_equal(session.download(out)[:count], session.download(want)[:count])
        np.testing.assert_array_equal(session.download(lse)[:count], session.download(want_lse)[:count])
        assert np.all(session.download(out)[count:] == 7.0)
        assert np.all(session.download(lse)[count:] == 7.0)


BASE = AttentionSpec(
    8, 2, 128, 128, 0.1, q_dtype="bf16", out_dtype="bf16", kv_dtype="bf16",
    numerics=Numerics("bf16", "approx", "approx", "f32_truncating", dequantized="bf16"),
)  # fmt: skip
CACHE = CacheSpec(8, 16, 2, 128, 128, KVFormat("bf16"), KVFormat("bf16"))


@pytest.fixture
def installed(monkeypatch):
    flashinfer_model.install(monkeypatch)


def _reasons(request: Request, device: DeviceInfo = CHIP) -> set[str]:
    answer = FlashInferProvider().pick(device, request)
    return set() if isinstance(answer, Pick) else {reason.field for reason in answer}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"softcap": 30.0}, "softcap"),
        ({"alibi": True}, "alibi"),
        ({"softcap": 30.0, "alibi": True}, "alibi"),
        ({"sinks": True}, "sinks"),
        ({"want_lse": True}, "want_lse"),
        ({"mask": "full", "window_right": 4}, "window_right"),
        ({"q_dtype": "f32"}, "q_dtype"),
        ({"out_dtype": "f32"}, "out_dtype"),
        ({"scale": -0.1}, "scale"),
        ({"head_dim_qk": 96}, "head_dim_qk"),
        ({"numerics": Numerics()}, "numerics.exp"),
        ({"numerics": Numerics("f16", "approx", "approx", "f32_truncating")}, "numerics.probabilities"),
        ({"numerics": Numerics("bf16", "approx", "approx", "f32")}, "numerics.accumulate"),
        ({"numerics": Numerics("bf16", "approx", "approx", "f32_truncating", 64)}, "numerics.accumulate_step"),
    ],
)
def test_what_a_request_does_not_permit_is_refused(installed, change, field) -> None:
    assert field in _reasons(Request(replace(BASE, **change), CACHE))
    assert not _reasons(Request(BASE, CACHE))


@pytest.mark.parametrize(
    ("cache", "field"),
    [
        (replace(CACHE, k=KVFormat("i8", "token_head"), v=KVFormat("i8", "token_head")), "cache.k.code"),
        (replace(CACHE, k=KVFormat("f8e4m3fn"), v=KVFormat("f8e4m3fn")), "cache.k.code"),  # q is bf16
        (replace(CACHE, v=KVFormat("f16")), "cache.v.code"),
        (replace(CACHE, kind="latent", num_kv_heads=1, head_dim_k=576, head_dim_v=512, v=None), "cache.kind"),
    ],
)
def test_caches_that_are_refused(installed, cache, field) -> None:
    assert field in _reasons(Request(BASE, cache))


def test_a_scale_of_v_is_refused(installed) -> None:
    f8 = KVFormat("f8e4m3fn", "tensor")
    spec = replace(BASE, q_dtype="f16", out_dtype="f16", numerics=replace(BASE.numerics, probabilities="f16"))
    assert not _reasons(Request(spec, replace(CACHE, k=f8, v=KVFormat("f8e4m3fn"))))
    assert _reasons(Request(spec, replace(CACHE, k=f8, v=f8))) == {"cache.v.granularity"}
    old = replace(CHIP, arch="sm_80")
    assert "cache.k.code" in _reasons(Request(spec, replace(CACHE, k=f8, v=KVFormat("f8e4m3fn"))), old)


def test_only_the_chip_runs_it(installed) -> None:
    request = Request(BASE, CACHE)
    assert _reasons(request, replace(CHIP, numerics="interpreted")) == {"device.numerics"}
    assert _reasons(request, replace(CHIP, arch="gfx942")) == {"device.arch"}


@pytest.mark.skipif(REAL, reason="FlashInfer is installed")
def test_without_the_package_another_serves(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "flashinfer", raising=False)
    support = CudaBackend().supports(CHIP, Request(BASE, CACHE))
    passed_over = dict(support.passed_over)
    assert "flashinfer" not in (support.provider, "")
    assert [reason.field for reason in passed_over["flashinfer"]] == ["flashinfer"]


@pytest.mark.skipif(not REAL, reason="FlashInfer is not installed")
def test_calls_bind_to_the_real_signatures() -> None:
    for target, positional, named in calls.CALLS:
        module, _, path = target.partition(":")
        function = importlib.import_module(module)
        for part in path.split("."):
            function = getattr(function, part)
        inspect.signature(function).bind(None, *range(positional), **dict.fromkeys(named))
