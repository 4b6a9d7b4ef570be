"""Integer formats against tensors packed here, one code at a time, from the definition of each layout."""

from __future__ import annotations

import numpy as np
import pytest

from opsocket.quantization import dequantize, get_format, quantize

N, K, G = 16, 96, 32


def to_i32(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def draw(bits, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << bits, (N, K))
    zeros = rng.integers(0, 1 << bits, (N, K // G))
    scales = rng.uniform(-2, 2, (N, K // G)).astype(np.float16)
    return codes, zeros, scales


def expected_weight(codes, zeros, scales, group_of_column):
    weight = np.empty((N, K))
    for row in range(N):
        for column in range(K):
            group = group_of_column[column]
            weight[row, column] = float(scales[row, group]) * (int(codes[row, column]) - int(zeros[row, group]))
    return weight


def check(format, tensors, expected):
    np.testing.assert_array_equal(format.reference(tensors, N, K), expected)
    np.testing.assert_array_max_ulp(dequantize(format, tensors, N, K), expected.astype(np.float32), maxulp=1)


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("with_zero", [False, True])
def test_lowest_bits_first(bits, with_zero):
    codes, zeros, scales = draw(bits)
    packed = np.zeros((N, K * bits // 8), np.uint8)
    for row in range(N):
        bitstring = sum(int(code) << (bits * column) for column, code in enumerate(codes[row]))
        packed[row] = list(bitstring.to_bytes(K * bits // 8, "little"))
    tensors = {"codes": packed, "scale": scales}
    if with_zero:
        tensors["zero"] = zeros.astype(np.uint8)
    else:
        zeros[:] = 1 << (bits - 1)
    format = get_format(f"i{bits}_g{G}" + ("_z" if with_zero else ""))
    check(format, tensors, expected_weight(codes, zeros, scales, np.arange(K) // G))


@pytest.mark.parametrize("id", ["i8_channel", "i8_channel_a8"])
def test_i8_channel(id):
    rng = np.random.default_rng(1)
    codes = rng.integers(-128, 128, (N, K), dtype=np.int8)
    scale = rng.standard_normal(N).astype(np.float32)
    expected = np.array([[float(s) * int(q) for q in row] for s, row in zip(scale, codes, strict=True)])
    check(get_format(id), {"weight": codes, "scale": scale}, expected)


def gptq_tensors(codes, stored_zeros, scales):
    qweight = np.zeros((K // 8, N), np.int32)
    for row in range(K // 8):
        for column in range(N):
            qweight[row, column] = to_i32(sum(int(codes[column, 8 * row + i]) << (4 * i) for i in range(8)))
    qzeros = np.zeros((K // G, N // 8), np.int32)
    for group in range(K // G):
        for column in range(N // 8):
            word = sum(int(stored_zeros[8 * column + i, group]) << (4 * i) for i in range(8))
            qzeros[group, column] = to_i32(word)
    return {"qweight": qweight, "qzeros": qzeros, "scales": np.ascontiguousarray(scales.T)}


@pytest.mark.parametrize(("version", "added"), [("v1", 1), ("v2", 0)])
@pytest.mark.parametrize("act", [False, True])
def test_gptq(version, added, act):
    codes, stored_zeros, scales = draw(4, seed=2)
    tensors = gptq_tensors(codes, stored_zeros, scales)
    group_of_column = np.arange(K) // G
    if act:
        group_of_column = np.random.default_rng(3).permutation(group_of_column)
        tensors["g_idx"] = group_of_column.astype(np.int32)
    format = get_format(f"gptq_{version}_i4_g{G}" + ("_act" if act else ""))
    check(format, tensors, expected_weight(codes, stored_zeros + added, scales, group_of_column))


def test_gptq_versions_differ_by_one_in_the_zero():
    tensors = gptq_tensors(*draw(4, seed=4))
    v1 = get_format(f"gptq_v1_i4_g{G}").reference(tensors, N, K)
    v2 = get_format(f"gptq_v2_i4_g{G}").reference(tensors, N, K)
    np.testing.assert_array_equal(v2 - v1, np.repeat(tensors["scales"].T.astype(np.float64), G, axis=1))
    weight = np.random.default_rng(5).standard_normal((N, K)).astype(np.float32)
    packed_v1 = quantize(get_format(f"gptq_v1_i4_g{G}"), weight)
    packed_v2 = quantize(get_format(f"gptq_v2_i4_g{G}"), weight)
    np.testing.assert_array_equal(packed_v2["qzeros"].view(np.uint32) - packed_v1["qzeros"].view(np.uint32), 0x11111111)
    np.testing.assert_array_equal(packed_v1["qweight"], packed_v2["qweight"])


def test_awq():
    codes, zeros, scales = draw(4, seed=6)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    qweight, qzeros = np.zeros((K, N // 8), np.int32), np.zeros((K // G, N // 8), np.int32)
    for column in range(N // 8):
        for row in range(K):
            word = sum(int(codes[8 * column + order[i], row]) << (4 * i) for i in range(8))
            qweight[row, column] = to_i32(word)
        for group in range(K // G):
            word = sum(int(zeros[8 * column + order[i], group]) << (4 * i) for i in range(8))
            qzeros[group, column] = to_i32(word)
    tensors = {"qweight": qweight, "qzeros": qzeros, "scales": np.ascontiguousarray(scales.T)}
    check(get_format(f"awq_i4_g{G}"), tensors, expected_weight(codes, zeros, scales, np.arange(K) // G))


@pytest.mark.parametrize(
    ("id", "word", "along"),
    [("gptq_v2_i4_g32", 0x76543210, "k"), ("awq_i4_g32", 0x75316420, "n")],
)
def test_one_word_by_hand(id, word, along):
    format, shape = get_format(id), (8, 32)
    specs = format.tensor_specs(*shape)
    tensors = {
        "qweight": np.full(specs["qweight"][1], word, np.int32),
        "qzeros": np.zeros(specs["qzeros"][1], np.int32),
        "scales": np.ones(specs["scales"][1], np.float16),
    }
    weight = format.reference(tensors, *shape)
    np.testing.assert_array_equal(weight[0, :8] if along == "k" else weight[:, 0], np.arange(8))
