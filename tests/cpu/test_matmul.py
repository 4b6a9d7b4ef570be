"""Products, lookups and dequantization in every weight format against the format's float64 reference."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import opsocket
from opsocket.operators import (
    BackendError,
    Bounds,
    ContractError,
    EmbeddingSpec,
    GroupedMatmulSpec,
    MatmulSpec,
    Numerics,
    QuantizeActivationSpec,
    Request,
    Unsupported,
)
from opsocket.quantization import FORMATS, dequantize, f32_to_bf16, get_format, quantize

ROUNDOFF = {"f32": 2.0**-24, "bf16": 2.0**-8, "f16": 2.0**-11}
ALL = pytest.mark.parametrize("fmt", [f.id for f in FORMATS])
EXACT_ACTIVATIONS = [f.id for f in FORMATS if f.activation == "none"]


def _tensors(fmt: str, weight: np.ndarray) -> dict[str, np.ndarray]:
    if get_format(fmt).is_float:
        cast = {"f32": np.float32, "f16": np.float16}.get(fmt)
        return {"weight": f32_to_bf16(weight) if cast is None else weight.astype(cast)}
    return quantize(get_format(fmt), weight)


def _random(rng: np.random.Generator, fmt: str, n: int, k: int) -> dict[str, np.ndarray]:
    """A weight whose groups differ in scale by orders of magnitude, its columns in no order of size."""
    weight = rng.standard_normal((n, k)) * 10.0 ** rng.uniform(-2, 1, (n, k // 16)).repeat(16, 1)
    tensors = _tensors(fmt, weight.astype(np.float32))
    if "g_idx" in tensors:
        tensors = dict(tensors, g_idx=rng.permutation(tensors["g_idx"]))
    return tensors


def _run(session: Any, spec: MatmulSpec, tensors: dict[str, np.ndarray], x: np.ndarray, bias: Any = None) -> np.ndarray:
    plan = session.plan(Request(spec))
    packed = session.prepare_weight(Request(spec), tensors)
    bias = None if bias is None else session.upload(bias)
    return session.download(plan.run(session.upload(x, spec.x_dtype), packed, bias))


def _close(got: np.ndarray, x: np.ndarray, weight: np.ndarray, dtype: str, bias: Any = 0.0) -> None:
    want = x.astype(np.float64) @ weight.T + bias
    steps = min(x.shape[1], 6 * x.shape[1] ** 0.5)
    bound = ROUNDOFF[dtype] * np.abs(want) + steps * 2.0**-24 * (np.abs(x) @ np.abs(weight).T + np.abs(bias))
    np.testing.assert_array_less(np.abs(got - want), 2 * bound + 1e-37)


@pytest.mark.parametrize("fmt", EXACT_ACTIVATIONS)
def test_product_agrees_with_the_reference(session: Any, fmt: str):
    rng, n, k = np.random.default_rng(1), 24, 256
    tensors = _random(rng, fmt, n, k)
    x = rng.standard_normal((5, k)).astype(np.float32)
    _close(_run(session, MatmulSpec(fmt, n, k), tensors, x), x, get_format(fmt).reference(tensors, n, k), "f32")


@ALL
def test_dequantized_within_one_unit_in_the_last_place(session: Any, fmt: str):
    rng, n, k = np.random.default_rng(2), 24, 256
    tensors = _random(rng, fmt, n, k)
    request = Request(MatmulSpec(fmt, n, k))
    plan = session.plan(request)
    packed = session.prepare_weight(request, tensors)
    got = plan.dequantize(session, packed)
    want = get_format(fmt).reference(tensors, n, k)
    np.testing.assert_array_less(np.abs(session.download(got) - want), np.spacing(np.abs(want).astype(np.float32)))
    got.fill_(0)
    assert session.download(plan.dequantize(session, packed)).any(), "the caller was given the weight itself"


@ALL
def test_lookup_gives_the_dequantized_rows(session: Any, fmt: str):
    rng, n, k = np.random.default_rng(3), 40, 256
    tensors = _random(rng, fmt, n, k)
    request = Request(EmbeddingSpec(fmt, n, k, out_dtype="bf16"))
    packed = session.prepare_weight(request, tensors)
    ids = np.array([39, 0, 7, 7, 12])
    got = session.plan(request).run(session.upload(ids), packed)
    rows = get_format(fmt).reference(tensors, n, k)[ids]
    np.testing.assert_array_equal(session.download(got), session.download(session.upload(rows, "bf16")))
    out = session.empty((5, k), "bf16")
    assert session.plan(request).run(session.upload(ids), packed, out=out) is out
    assert torch.equal(out, got)


@pytest.mark.parametrize("bad", [-1, 40])
def test_a_token_that_is_not_in_the_table_is_an_error(session: Any, bad: int):
    request = Request(EmbeddingSpec("f32", 40, 8))
    packed = session.prepare_weight(request, {"weight": np.zeros((40, 8), np.float32)})
    with pytest.raises((BackendError, ContractError)):
        session.plan(request).run(session.upload(np.array([0, bad])), packed)


@given(
    st.sampled_from(["f32", "f16", "bf16", "q4_1", "q8_0", "i2_g32_z", "gptq_v1_i4_g32_act", "i8_channel"]),
    st.sampled_from(["f32", "bf16", "f16"]),
    st.sampled_from(["f32", "bf16", "f16"]),
    st.tuples(st.integers(0, 40), st.integers(1, 5), st.integers(1, 4)),
    st.booleans(),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_shapes_types_and_bias(session: Any, fmt: str, x_dtype: str, out_dtype: str, shape: Any, with_bias: bool):
    m, n, k = shape[0], shape[1] * 8, shape[2] * 32
    rng = np.random.default_rng(m)
    tensors = _random(rng, fmt, n, k)
    x = session.download(session.upload(rng.standard_normal((m, k)), x_dtype))
    bias = rng.standard_normal(n).astype(np.float32) if with_bias else None
    spec = MatmulSpec(fmt, n, k, x_dtype, out_dtype, with_bias)
    got = _run(session, spec, tensors, x, bias)
    assert got.shape == (m, n)
    _close(got, x, get_format(fmt).reference(tensors, n, k), out_dtype, 0.0 if bias is None else bias)


@pytest.mark.parametrize("fmt", ["bf16", "q4_1", "q8_0"])
def test_a_weight_of_many_tiles(session: Any, fmt: str):
    rng, n, k = np.random.default_rng(4), 4100, 544
    tensors = _random(rng, fmt, n, k)
    x = rng.standard_normal((3, k)).astype(np.float32)
    _close(_run(session, MatmulSpec(fmt, n, k), tensors, x), x, get_format(fmt).reference(tensors, n, k), "f32")


def test_x_may_be_a_slice_and_out_is_written_in_place(session: Any):
    rng = np.random.default_rng(5)
    tensors = _random(rng, "q8_0", 16, 64)
    request = Request(MatmulSpec("q8_0", 16, 64, out_dtype="f16"))
    plan, packed = session.plan(request), session.prepare_weight(request, tensors)
    fused, wide = session.upload(rng.standard_normal((4, 100)).astype(np.float32)), session.empty((4, 50), "f16")
    wide.fill_(7)
    want = plan.run(fused[:, 10:74].contiguous(), packed)
    out = wide[:, 3:19]
    assert plan.run(fused[:, 10:74], packed, out=out) is out
    assert torch.equal(out, want)
    assert (wide[:, :3] == 7).all()
    assert (wide[:, 19:] == 7).all()


def test_a_packed_weight_owns_its_memory_and_is_about_as_large_as_its_codes(session: Any):
    for fmt, bits in {
        "f32": 32,
        "bf16": 16,
        "q4_0": 5.5,
        "q4_1": 5,
        "q8_0": 8.5,
        "i8_channel": 8.5,
        "i2_g64": 2.6,
    }.items():
        tensors = _random(np.random.default_rng(6), fmt, 32, 256)
        request = Request(MatmulSpec(fmt, 32, 256))
        plan, packed = session.plan(request), session.prepare_weight(request, tensors)
        before = session.download(plan.dequantize(session, packed))
        for tensor in tensors.values():
            tensor.setflags(write=True)
            tensor.view(np.uint8)[...] = 0
        np.testing.assert_array_equal(session.download(plan.dequantize(session, packed)), before)
        assert packed.nbytes * 8 / (32 * 256) <= bits, fmt


def test_prepare_names_the_tensor_that_is_wrong(session: Any):
    request = Request(MatmulSpec("i4_g32", 8, 64))
    tensors = _random(np.random.default_rng(0), "i4_g32", 8, 64)
    with pytest.raises(ContractError) as error:
        session.prepare_weight(request, dict(tensors, scale=tensors["scale"][:, :1]))
    assert error.value.argument == "scale"


@pytest.mark.parametrize("provider", ["native", "torch"])
@pytest.mark.parametrize("fmt", ["q4_1", "gptq_v1_i4_g32_act", "bf16"])
def test_rows_meet_their_experts(provider: str, fmt: str):
    rng, n, k, rows = np.random.default_rng(7), 16, 64, 11
    offsets = np.array([0, 4, 4, 5, 9], np.int64)
    spec = GroupedMatmulSpec(4, fmt, n, k, "bf16", "bf16", bias=True)
    tensors = [_random(rng, fmt, n, k) for _ in range(4)]
    with opsocket.open("cpu", threads=1, operators={"grouped_matmul": provider}) as session:
        packed = [session.prepare_weight(Request(spec), t) for t in tensors]
        x = session.download(session.upload(rng.standard_normal((rows, k)), "bf16"))
        bias = rng.standard_normal((4, n)).astype(np.float32)
        out = session.upload(np.full((rows, n), 7.0), "bf16")
        session.plan(Request(spec)).run(
            session.upload(x, "bf16"), packed, session.upload(offsets), session.upload(bias), out=out
        )
        got = session.download(out)
    for e in range(4):
        at = slice(offsets[e], offsets[e + 1])
        _close(got[at], x[at], get_format(fmt).reference(tensors[e], n, k), "bf16", bias[e])
    assert (got[9:] == 7).all()


def test_a_list_of_experts_may_change_between_runs(session: Any):
    """Weights are looked at once, by their identity: not those of a list that has had others put into it since."""
    rng, n, k = np.random.default_rng(17), 16, 64
    spec, offsets = GroupedMatmulSpec(2, "q8_0", n, k), session.upload(np.array([0, 1, 3], np.int64))
    plan, x = session.plan(Request(spec)), rng.standard_normal((3, k)).astype(np.float32)
    tensors = [_random(rng, "q8_0", n, k) for _ in range(3)]
    packed = [session.prepare_weight(Request(spec), t) for t in tensors]
    experts = packed[:2]
    for second in (1, 2, 1):
        experts[1] = packed[second]
        got = session.download(plan.run(session.upload(x), experts, offsets))
        _close(got[1:], x[1:], get_format("q8_0").reference(tensors[second], n, k), "f32")
    experts[1] = session.prepare_weight(Request(MatmulSpec("q8_0", n, 32)), _random(rng, "q8_0", n, 32))
    with pytest.raises(ContractError) as error:
        plan.run(session.upload(x), experts, offsets)
    assert error.value.argument == "packed[1]"


def _quantized(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pinned activation quantizer, an element at a time."""
    scale = (np.abs(x).max(1) / np.float32(127)).astype(np.float32)
    codes = np.zeros(x.shape, np.int8)
    for m, j in np.ndindex(x.shape):
        codes[m, j] = 0 if scale[m] == 0 else max(-127, min(127, round(float(x[m, j] / scale[m]))))
    return codes, scale


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_activation_codes(session: Any, dtype: str):
    rng, k = np.random.default_rng(8), 33
    x = rng.standard_normal((7, k)) * 10.0 ** rng.integers(-3, 4, (7, 1))
    x[3], x[4] = 0, np.arange(k) - 16.5
    array = session.upload(x, dtype)
    codes, scale = session.plan(Request(QuantizeActivationSpec(k, x_dtype=dtype))).run(array)
    want_codes, want_scale = _quantized(session.download(array))
    np.testing.assert_array_equal(session.download(codes), want_codes)
    np.testing.assert_array_equal(session.download(scale), want_scale)


def _dequantized_codes(x: np.ndarray, group: int) -> np.ndarray:
    """f64: x as int8 codes times scales, one scale for each `group` columns."""
    codes, scale = _quantized(x.reshape(-1, group))
    return (codes * scale.astype(np.float64)[:, None]).reshape(x.shape)


@pytest.mark.parametrize("suffix", ["_a8", "_a8g32"])
@pytest.mark.parametrize(
    "base",
    ["q4_0", "q4_1", "q5_1", "q8_0", "q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "iq4_nl", "iq4_xs", "i4_g48", "i2_g64_z",
     "gptq_v1_i4_g32_act", "awq_i4_g128"],
)  # fmt: skip
@pytest.mark.parametrize("provider", ["native", "torch"])
def test_int8_activations_meet_every_grouped_format(provider: str, base: str, suffix: str):
    rng, n = np.random.default_rng(12), 24
    k = 768 if base != "i4_g48" else 288
    tensors = _random(rng, base, n, k)
    x = rng.standard_normal((5, k)) * 10.0 ** rng.integers(-3, 3, (5, k // 32)).repeat(32, 1)
    x = x.astype(np.float32)
    x[2, :64], x[3] = 0, 0
    order = np.argsort(tensors["g_idx"], kind="stable") if "g_idx" in tensors else np.arange(k)
    stood_for = np.empty((5, k))
    stood_for[:, order] = _dequantized_codes(x[:, order], k if suffix == "_a8" else 32)
    bias = rng.standard_normal(n).astype(np.float32)
    with opsocket.open("cpu", threads=1, operators={"matmul": provider}) as session:
        got = _run(session, MatmulSpec(base + suffix, n, k, bias=True), tensors, x, bias)
    weight = get_format(base).reference(tensors, n, k)
    want = stood_for @ weight.T + bias
    # The roundings of the product to f32 and of the sum with the bias; and where sums over groups are f32, theirs, with
    # minimums apart, which may be larger than what is left of them.
    bound = 2.0**-23 * (np.abs(want) + np.abs(bias)) + 1e-37
    if provider == "native":
        bound += 2.0**-18 * np.abs(stood_for) @ np.abs(weight).T
    np.testing.assert_array_less(np.abs(got - want), bound)


W8A8 = """
    import numpy as np, opsocket
    from opsocket.operators import MatmulSpec, Request
    rng = np.random.default_rng(9)
    with opsocket.open("cpu", threads=1) as session:
        for m, n, k in ((1, 1, 1), (3, 5, 1), (3, 5, 40), (17, 64, 64), (2, 300, 2500)):
            weight = rng.integers(-128, 128, (n, k), dtype=np.int8)
            x = rng.integers(-127, 128, (m, k)).astype(np.float32)
            x[:, 0], weight[: n // 2, 1:], x[: m // 2] = 127, 127, 127
            scale = np.full(n, 0.25, np.float32)
            request = Request(MatmulSpec("i8_channel_a8", n, k))
            packed = session.prepare_weight(request, {"weight": weight, "scale": scale})
            got = session.download(session.plan(request).run(session.upload(x), packed))
            want = x.astype(np.int64) @ weight.T.astype(np.int64)
            np.testing.assert_array_equal(got, want.astype(np.float32) * scale)
"""


@pytest.mark.parametrize("isa", ["DEFAULT", "AVX2"])
def test_w8a8_sums_are_exact_whatever_the_processor_has(isa: str):
    """Without VNNI, torch's own int8 product saturates; oneDNN can be told to do without."""
    environment = dict(os.environ, ONEDNN_MAX_CPU_ISA=isa)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(W8A8)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (MatmulSpec("q4_0", 8, 33), "k"),
        (MatmulSpec("q4_K", 8, 128), "k"),
        (EmbeddingSpec("awq_i4_g32", 12, 64), "n"),
        (GroupedMatmulSpec(2, "i4_g64", 8, 96), "k"),
        (MatmulSpec("i8_channel_a8", 8, 200_000), "k"),
        (MatmulSpec("i4_g16_a8g32", 8, 48), "k"),
        (MatmulSpec("f32", 8, 32, numerics=Numerics(accumulate="f64")), "numerics.accumulate"),
        (GroupedMatmulSpec(2, "f32", 8, 32, numerics=Numerics(accumulate="f64")), "numerics.accumulate"),
    ],
)
def test_what_is_refused_is_refused_with_the_reasons_of_supports(session: Any, spec: Any, field: str):
    support = session.supports(Request(spec))
    assert field in [r.field for r in support.reasons]
    for call in (lambda: session.plan(Request(spec)), lambda: session.prepare_weight(Request(spec), {})):
        with pytest.raises(Unsupported) as refused:
            call()
        assert refused.value.reasons == support.reasons


@pytest.mark.parametrize("prepared", ["q8_0", "q8_0_a8", "q8_0_a8g32"])
def test_a_table_may_have_been_packed_for_a_product_with_any_activation(session, prepared):
    table = quantize(get_format("q8_0"), np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32))
    packed = session.prepare_weight(Request(MatmulSpec(prepared, 8, 64)), table)
    ids = session.upload(np.array([5, 0], np.int64))
    got = session.download(session.plan(Request(EmbeddingSpec("q8_0", 8, 64))).run(ids, packed))
    np.testing.assert_array_equal(got, dequantize(get_format("q8_0"), table, 8, 64)[[5, 0]])
    other = session.plan(Request(EmbeddingSpec("i8_channel", 8, 64)))
    with pytest.raises(ContractError):
        other.run(ids, packed)
    if prepared != "q8_0":
        product = session.plan(Request(MatmulSpec("q8_0", 8, 64)))
        with pytest.raises(ContractError):
            product.run(session.upload(np.ones((1, 64), np.float32)), packed)


@pytest.mark.parametrize("weight_format", ["q4_0", "q8_0"])
def test_a_row_keeps_its_small_numbers_beside_a_large_one_that_meets_zeros(weight_format: str) -> None:
    # As digits of integers: three of bf16 would leave its small numbers a hundredth off, so such a row takes four.
    n, k, outlier = 64, 512, 37
    rng = np.random.default_rng(11)
    values = rng.standard_normal((n, k)).astype(np.float32)
    values[:, outlier] = 0
    fmt = get_format(weight_format)
    tensors = quantize(fmt, values)
    weight = fmt.reference(tensors, n, k)
    with opsocket.open("cpu") as session:
        if session.library is None or session.library.level not in ("amx", "avx512_bf16", "avx512_vnni", "avx_vnni"):
            pytest.skip("no digits at this level")
        x = session.upload(rng.standard_normal((1, k)).astype(np.float32), "bf16")
        x[0, outlier] = 2.0**15
        request = Request(MatmulSpec(weight_format, n, k, "bf16", "f32"), bounds=Bounds(max_tokens=1))
        y = session.plan(request).run(x, session.prepare_weight(request, tensors))
        exact, got = x.double().numpy() @ weight.T, y.double().numpy()
    small = np.abs(np.delete(x.double().numpy(), outlier, 1)) @ np.abs(np.delete(weight, outlier, 1)).T
    assert not weight[:, outlier].any()
    assert np.all(np.abs(got - exact) <= 1e-5 * small)
