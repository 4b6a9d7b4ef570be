from __future__ import annotations

import dataclasses

import gguf
import numpy as np
import pytest

from opsocket.operators.errors import ContractError
from opsocket.quantization import FORMATS, dequantize, get_format, quantize, with_activation, without_activation


def test_every_format_is_found_by_its_id_and_hashable():
    assert len({format.id for format in FORMATS}) == len(set(FORMATS)) == len(FORMATS)
    assert all(get_format(format.id) == format for format in FORMATS)


@pytest.mark.parametrize("id", ["i4_g16", "i2_g48_z", "gptq_v2_i4_g1024_act", "awq_i4_g256"])
def test_parametric_families_take_any_multiple_of_16(id):
    format = get_format(id)
    assert format.id == id
    assert f"_g{format.block_k}" in id


@pytest.mark.parametrize(
    "id", ["i4_g20", "i4_g0", "i4_g-32", "i4_g032", "i4_g9999999999", "gptq_v3_i4_g64", "q4_k", "awq_i4_g64_act", ""]
)
def test_unknown_ids_are_refused(id):
    with pytest.raises(ContractError) as error:
        get_format(id)
    assert error.value.argument == "format"


def test_unknown_id_names_the_nearest():
    with pytest.raises(ContractError, match="q4_K"):
        get_format("q4_k")


@pytest.mark.parametrize(
    "format", [format for format in FORMATS if format.packing == "ggml"], ids=lambda format: format.id
)
def test_block_sizes_are_ggmls(format):
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[format.base.id.upper()]]
    assert (format.super_block or format.block_k, format.block_bytes) == (block, block_bytes)


QUANTIZED = [format for format in FORMATS if format.activation == "none" and format.has_integer_codes]


@pytest.mark.parametrize(("suffix", "activation"), [("_a8", "i8_token"), ("_a8g32", "i8_g32")])
@pytest.mark.parametrize("base", QUANTIZED, ids=lambda format: format.id)
def test_activation_precision_is_part_of_the_format(base, suffix, activation):
    format = get_format(base.id + suffix)
    assert (format.activation, base.activation) == (activation, "none")
    assert dataclasses.replace(format, id=base.id, activation="none") == base == format.base == base.base
    assert with_activation(base.id, activation) == format.id
    assert without_activation(format.id) == with_activation(format.id, "none") == base.id
    other = {"i8_token": "i8_g32", "i8_g32": "i8_token"}[activation]
    assert get_format(with_activation(format.id, other)).activation == other


@pytest.mark.parametrize(
    "id", ["q4_1", "q4_K", "i2_g32_z", "gptq_v1_i4_g64_act", "awq_i4_g32", "i8_channel", "iq4_xs", "mxfp4"]
)
def test_the_stored_weight_is_the_same_whatever_the_activations(id):
    weight = np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32)
    base, format = get_format(id), get_format(id + "_a8g32")
    assert base.tensor_specs(8, 256) == format.tensor_specs(8, 256)
    tensors = quantize(format, weight)
    for name, tensor in quantize(base, weight).items():
        np.testing.assert_array_equal(tensor, tensors[name])
    np.testing.assert_array_equal(base.reference(tensors, 8, 256), format.reference(tensors, 8, 256))
    np.testing.assert_array_equal(dequantize(base, tensors, 8, 256), dequantize(format, tensors, 8, 256))


@pytest.mark.parametrize(
    "id",
    [
        "f32_a8",
        "bf16_a8g32",
        "q4_1_a8_a8",
        "q4_1_a8g64",
        "q4_1_a16",
        "_a8",
        "i4_g20_a8",
        "f8e4m3fn_tensor_a8",
        "f8e4m3fn_64x128",
    ],
)
def test_ids_that_name_no_activation_of_a_quantized_format(id):
    with pytest.raises(ContractError) as error:
        get_format(id)
    assert error.value.argument == "format"


def test_floats_have_no_int8_activations():
    for id in ("bf16", "f8e4m3fn_128x128"):
        assert with_activation(id, "none") == without_activation(id) == id
    for id, activation in (("bf16", "i8_token"), ("f8e4m3fn_channel", "i8_g32"), ("q4_1", "i8"), ("q4_1_a8", "")):
        with pytest.raises(ContractError) as error:
            with_activation(id, activation)
        assert error.value.argument == "activation"


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.id)
def test_validate_names_the_tensor_at_fault(format):
    n, k = 8, 256
    good = quantize(format, np.ones((n, k), np.float32))
    format.validate(good, n, k)
    for name, tensor in good.items():
        for bad in (tensor[:-1], tensor.astype(np.int64), tensor[None], tensor.tolist()):
            with pytest.raises(ContractError) as error:
                format.validate({**good, name: bad}, n, k)
            assert error.value.argument == name
        with pytest.raises(ContractError) as error:
            format.validate({key: value for key, value in good.items() if key != name}, n, k)
        assert error.value.argument == name
        assert "no such tensor" in str(error.value)
    with pytest.raises(ContractError, match=r"^surplus"):
        format.validate({**good, "surplus": np.zeros(1)}, n, k)


@pytest.mark.parametrize(
    ("id", "n", "k", "argument"),
    [
        ("q4_0", 1, 48, "k"),
        ("q6_K", 1, 128, "k"),
        ("i4_g64", 1, 96, "k"),
        ("gptq_v1_i4_g32", 12, 64, "n"),
        ("awq_i4_g32", 12, 64, "n"),
        ("f32", 0, 4, "n"),
        ("i8_channel", 4, 0, "k"),
        ("iq4_xs", 4, 128, "k"),
        ("mxfp4", 4, 48, "k"),
        ("f8e4m3fn_128x128", 4, 136, "k"),
        ("f8e4m3fn_tensor", 0, 16, "n"),
        ("i4_g16_a8g32", 4, 48, "k"),
        ("i8_channel_a8g32", 4, 40, "k"),
    ],
)
def test_shapes_that_do_not_fit(id, n, k, argument):
    with pytest.raises(ContractError) as error:
        get_format(id).tensor_specs(n, k)
    assert error.value.argument == argument


def test_zero_points_beyond_the_code_range_are_refused():
    format = get_format("i4_g32_z")
    tensors = quantize(format, np.ones((2, 64), np.float32))
    tensors["zero"][1, 1] = 16
    with pytest.raises(ContractError, match=r"^zero: wanted values in 0\.\.15, got 16"):
        format.group(tensors, 2, 64)


@pytest.mark.parametrize(("column", "group"), [(3, -1), (3, 2), (3, 1)])
def test_g_idx_must_fill_every_group(column, group):
    format = get_format("gptq_v2_i4_g32_act")
    tensors = quantize(format, np.ones((8, 64), np.float32))
    tensors["g_idx"] = (np.arange(64) // 32).astype(np.int32)
    format.validate(tensors, 8, 64)
    tensors["g_idx"][column] = group
    with pytest.raises(ContractError) as error:
        dequantize(format, tensors, 8, 64)
    assert error.value.argument == "g_idx"


def test_a_float_format_has_no_codes():
    with pytest.raises(ContractError, match="f16"):
        get_format("f16").group({"weight": np.ones((2, 2), np.float16)}, 2, 2)
