"""Laws that tie a format's two unpackings, its canonical form and its dequantization together."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsocket.operators.errors import ContractError
from opsocket.quantization import FORMATS, dequantize, f8e4m3fn_to_f32, get_format, quantize

QUANTIZED = [format for format in FORMATS if not format.is_float]
INTEGERS = [format for format in FORMATS if format.has_integer_codes]
SCALED_FLOATS = [format for format in QUANTIZED if not format.has_integer_codes]


def fitting_shapes(format):
    unit_n = 8 if format.packing in ("gptq_v1", "gptq_v2", "awq") else 1
    unit_k = 16 if format.block_n == 128 else format.super_block or format.block_k or 1
    return st.tuples(
        st.integers(1, 24 // unit_n).map(lambda m: m * unit_n),
        st.integers(1, max(1, 512 // unit_k)).map(lambda m: m * unit_k),
    )


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.id)
def test_dequantize_is_the_reference_to_one_ulp(format, random_tensors):
    @settings(derandomize=True, max_examples=12, deadline=None)
    @given(shape=fitting_shapes(format), seed=st.integers(0, 1 << 32))
    def law(shape, seed):
        tensors = random_tensors(format, *shape, np.random.default_rng(seed))
        reference = format.reference(tensors, *shape)
        assert reference.dtype == np.float64
        assert reference.shape == shape
        fast = dequantize(format, tensors, *shape)
        assert fast.dtype == np.float32
        np.testing.assert_array_max_ulp(reference.astype(np.float32), fast, maxulp=1)

    law()


@pytest.mark.parametrize("format", INTEGERS, ids=lambda format: format.id)
def test_canonical_form_means_what_it_says(format, random_tensors):
    n, k = 16, 512
    tensors = random_tensors(format, n, k, np.random.default_rng(11))
    weight = format.group(tensors, n, k)
    assert (weight.n, weight.k, weight.bits) == (n, k, format.integer_bits)
    assert weight.group_size == (format.block_k or k)
    assert (weight.codes.dtype, weight.codes.shape) == (np.int8, (n, k))
    assert (weight.scale.dtype, weight.scale.shape) == (np.float32, (n, k // weight.group_size))
    assert (weight.minimum is not None) == (format.zero == "float_min")
    assert (weight.input_permutation is not None) == format.g_idx
    per_column = np.arange(k) // weight.group_size
    value = weight.scale.astype(np.float64)[:, per_column] * weight.codes
    if weight.minimum is not None:
        assert (weight.minimum.dtype, weight.minimum.shape) == (np.float32, weight.scale.shape)
        value -= weight.minimum.astype(np.float64)[:, per_column]
    assert (weight.scale_codes is not None) == bool(format.super_block)
    assert (weight.minimum_codes is not None) == bool(format.super_block and weight.minimum is not None)
    for coded, floats in ((weight.scale_codes, weight.scale), (weight.minimum_codes, weight.minimum)):
        if coded is not None:
            assert (coded.codes.dtype, coded.codes.shape) == (np.int8, floats.shape)
            assert (coded.unit.dtype, coded.unit.shape) == (np.float32, (n, k // format.super_block))
            np.testing.assert_array_equal(coded.unit.astype(np.float16).astype(np.float32), coded.unit)
            units = np.repeat(coded.unit, format.super_block // format.block_k, axis=1)
            np.testing.assert_array_equal(units * coded.codes, floats)
    reference = format.reference(tensors, n, k)
    if weight.input_permutation is not None:
        assert weight.input_permutation.dtype == np.int64
        reference = reference[:, weight.input_permutation]
    np.testing.assert_array_equal(value, reference)  # exact: nothing was rounded on the way


@pytest.mark.parametrize("shape", [(1, 16), (130, 576), (256, 128), (257, 144)])
@pytest.mark.parametrize("format", SCALED_FLOATS, ids=lambda format: format.id)
def test_canonical_form_of_8_bit_floats_means_what_it_says(format, shape, random_tensors):
    n, k = shape
    tensors = random_tensors(format, n, k, np.random.default_rng(12))
    weight = format.scale_floats(tensors, n, k)
    assert (weight.n, weight.k, weight.group_size) == (n, k, format.group_size(k))
    assert (weight.codes.dtype, weight.codes.shape) == (np.uint8, (n, k))
    assert (weight.scale.dtype, weight.scale.shape) == (np.float32, (n, k // weight.group_size))
    value = np.repeat(weight.scale.astype(np.float64), weight.group_size, axis=1) * f8e4m3fn_to_f32(weight.codes)
    np.testing.assert_array_equal(value, format.reference(tensors, n, k))


@pytest.mark.parametrize("format", SCALED_FLOATS, ids=lambda format: format.id)
def test_a_code_that_is_no_number_is_a_weight_that_is_none(format):
    tensors = quantize(format, np.ones((4, 32), np.float32))
    tensors["weight"][[0, 3], [1, 31]] = 0x7F, 0xFF
    for values in (format.reference(tensors, 4, 32), dequantize(format, tensors, 4, 32)):
        assert np.argwhere(np.isnan(values)).tolist() == [[0, 1], [3, 31]]


def test_each_canonical_form_is_of_its_own_formats():
    with pytest.raises(ContractError, match="a format with integer codes"):
        get_format("f8e4m3fn_tensor").group(
            quantize(get_format("f8e4m3fn_tensor"), np.ones((2, 16), np.float32)), 2, 16
        )
    with pytest.raises(ContractError, match="a format of 8-bit floats"):
        get_format("mxfp4").scale_floats(quantize(get_format("mxfp4"), np.ones((2, 32), np.float32)), 2, 32)


def test_g_idx_in_order_needs_no_permutation(random_tensors):
    format, plain = get_format("gptq_v1_i4_g32_act"), get_format("gptq_v1_i4_g32")
    tensors = random_tensors(plain, 8, 96, np.random.default_rng(0))
    in_order = {**tensors, "g_idx": (np.arange(96) // 32).astype(np.int32)}
    assert format.group(in_order, 8, 96).input_permutation is None
    np.testing.assert_array_equal(format.reference(in_order, 8, 96), plain.reference(tensors, 8, 96))


@pytest.mark.parametrize("format", QUANTIZED, ids=lambda format: format.id)
def test_any_strides_will_do(format, random_tensors):
    tensors = random_tensors(format, 16, 512, np.random.default_rng(5))
    expected = dequantize(format, tensors, 16, 512)
    strided = {name: np.asfortranarray(tensor) for name, tensor in tensors.items()}
    for tensor in strided.values():
        tensor.flags.writeable = False
    np.testing.assert_array_equal(dequantize(format, strided, 16, 512), expected)


def test_rows_beyond_one_chunk(random_tensors):
    format, n, k = get_format("q4_1"), 40, 1 << 17
    tensors = random_tensors(format, n, k, np.random.default_rng(1))
    weight = dequantize(format, tensors, n, k)
    last = {"blocks": tensors["blocks"][-1:]}
    np.testing.assert_array_equal(weight[-1:], dequantize(format, last, 1, k))


def test_a_vocabulary_sized_table_groups_quickly(random_tensors):
    n, k = 49152, 576
    format = get_format("q8_0")
    tensors = random_tensors(format, n, k, np.random.default_rng(2))
    start = time.perf_counter()
    format.group(tensors, n, k)
    assert time.perf_counter() - start < 1  # 0.01 s on an idle core
