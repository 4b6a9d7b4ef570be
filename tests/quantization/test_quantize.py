from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsocket.operators.errors import ContractError
from opsocket.quantization import FORMATS, dequantize, get_format, quantize
from opsocket.quantization.grouped import IQ4

QUANTIZED = [format for format in FORMATS if not format.is_float]


@st.composite
def weights(draw):
    """Gaussian rows over many magnitudes, some shifted to one side, some groups zero, some with one outlier; none so
    large that a scale of 2 bits would not fit f16, which is refused."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    weight = rng.standard_normal((8, 512)) * 10.0 ** draw(st.integers(-7, 1)) * 10.0 ** rng.uniform(-1, 1, (8, 1))
    weight += draw(st.sampled_from([0, 0, 5, -5])) * np.abs(weight).max()
    weight[draw(st.integers(0, 7)), :256] = 0
    weight[draw(st.integers(0, 7)), draw(st.integers(0, 511))] *= 20
    return weight.astype(np.float32)


def half_step(format, tensors, weight):
    """Half the distance between neighbouring codes at each weight."""
    n, k = weight.shape
    if format.code == "f8e4m3fn":
        unit = np.abs(np.repeat(format.scale_floats(tensors, n, k).scale, format.group_size(k), axis=1))
        return np.maximum(np.abs(weight) * 2.0**-4, unit * 2.0**-10)
    grouped = format.group(tensors, n, k)
    unit = np.repeat(np.abs(grouped.scale.astype(np.float64)), grouped.group_size, axis=1)
    if format.code == "iq4":
        negative = np.repeat(np.signbit(grouped.scale), grouped.group_size, axis=1)
        of_unit = np.divide(np.where(negative, -weight, weight), unit, out=np.zeros_like(unit), where=unit != 0)
        gap = np.searchsorted(IQ4[1:-1], of_unit)
        return unit * np.diff(IQ4.astype(np.float64))[gap] / 2
    if format.code == "e2m1":  # 0, 1, 2, 3, 4, 6, 8, 12 halves
        return unit * np.select([np.abs(weight) > 8 * unit, np.abs(weight) > 4 * unit], [2, 1], 0.5)
    if grouped.input_permutation is not None:
        unit[:, grouped.input_permutation] = unit.copy()
    return unit / 2


@pytest.mark.parametrize("format", QUANTIZED, ids=lambda format: format.id)
def test_every_weight_comes_back_within_half_a_step(format):
    @settings(derandomize=True, max_examples=25, deadline=None)
    @given(weight=weights())
    def law(weight):
        n, k = weight.shape
        tensors = quantize(format, weight)
        error = np.abs(format.reference(tensors, n, k) - weight)
        rounding = np.abs(weight).max(axis=1, keepdims=True) * 2.0**-20
        assert np.all(error <= half_step(format, tensors, weight) + rounding)

    law()


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("format", QUANTIZED, ids=lambda format: format.id)
def test_groups_almost_on_one_side_of_zero(format, side):
    """Where the zero point would round to the end of the code range, and leave no code for the other side."""
    weight = np.full((64, 256), side, np.float32)
    weight[:, ::16] = -side * np.linspace(0, 0.3, 64, dtype=np.float32)[:, None]
    tensors = quantize(format, weight)
    step = half_step(format, tensors, weight).max(axis=1, keepdims=True)
    assert np.all(np.abs(format.reference(tensors, 64, 256) - weight) <= step + 2.0**-20)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.id)
def test_zeros_stay_zeros(format):
    weight = np.zeros((8, 256), np.float32)
    np.testing.assert_array_equal(dequantize(format, quantize(format, weight), 8, 256), weight)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.id)
def test_more_bits_and_smaller_groups_lose_less(format):
    weight = np.random.default_rng(0).standard_normal((32, 512)).astype(np.float32)
    restored = dequantize(format, quantize(format, weight), 32, 512)
    loss = np.sqrt(np.mean((restored - weight) ** 2))
    of_floats = {"f8e4m3fn": 3e-2}  # whose steps grow with the weight
    bits = {32: 1e-9, 16: 2e-3, 8: 8e-3, 6: 2e-2, 5: 5e-2, 4: 0.115, 3: 0.18, 2: 0.75}
    assert loss < of_floats.get(format.code, bits[format.bits])


@pytest.mark.parametrize("id", ["f16", "bf16", "f32"])
def test_float_formats_round_to_nearest(id):
    format = get_format(id)
    weight = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)
    unit = {"f16": 2.0**-11, "bf16": 2.0**-8, "f32": 0.0}[id]
    restored = dequantize(format, quantize(format, weight), 4, 64)
    assert np.all(np.abs(restored - weight) <= unit * np.abs(weight))


def test_act_order_puts_columns_of_like_size_together():
    format = get_format("gptq_v2_i4_g32_act")
    weight = np.random.default_rng(2).standard_normal((8, 128)).astype(np.float32)
    weight[:, ::4] *= 50
    np.testing.assert_array_equal(np.flatnonzero(quantize(format, weight)["g_idx"] == 0), np.arange(0, 128, 4))


@pytest.mark.parametrize(
    "weight",
    [
        np.zeros((8, 256), np.float64),
        np.zeros((2, 8, 256), np.float32),
        np.full((8, 256), np.nan, np.float32),
        np.full((8, 256), np.inf, np.float32),
    ],
    ids=["f64", "three dimensions", "nan", "inf"],
)
def test_only_finite_f32_matrices(weight):
    with pytest.raises(ContractError, match=r"^weight"):
        quantize(get_format("q4_0"), weight)


@pytest.mark.parametrize("format", [f for f in FORMATS if f.scale_dtype == "f16" or f.id == "f16"], ids=lambda f: f.id)
def test_scales_beyond_f16_are_refused_not_made_infinite(format):
    with pytest.raises(ContractError, match=r"^weight"):
        quantize(format, np.full((8, 256), -3e8, np.float32))
