"""Packing into panels loses nothing: what is unpacked equals the format's reference."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import opsocket
from opsocket.quantization import get_format, quantize

weights = pytest.importorskip("opsocket_cpu.native.weights")

FORMATS = [
    *(
        "q4_0",
        "q4_1",
        "q5_0",
        "q5_1",
        "q8_0",
        "q2_K",
        "q3_K",
        "q4_K",
        "q5_K",
        "q6_K",
        "iq4_nl",
        "iq4_xs",
        "mxfp4",
        "mxfp4_a8",
        "i4_g16",
        "i4_g32",
        "i4_g48",
        "i4_g64_z",
        "i2_g16",
        "i2_g32",
    ),
    *("i2_g128_z", "gptq_v1_i4_g32_act", "gptq_v2_i4_g64", "awq_i4_g32", "i8_channel", "q4_1_a8", "f32", "f16", "bf16"),
]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("n", [8, 64, 72])
def test_a_packed_weight_is_the_weight(name: str, n: int) -> None:
    fmt = get_format(name)
    k = {"i4_g48": 96, "i8_channel": 77, "f32": 77, "f16": 77, "bf16": 77}.get(name, 768)
    generator = np.random.default_rng(n)
    tensors = quantize(fmt, generator.standard_normal((n, k)).astype(np.float32))
    with opsocket.open("cpu") as session:
        packed = weights.prepare(session, SimpleNamespace(weight_format=name, n=n, k=k), tensors)
    reference = fmt.reference(tensors, n, k)
    values = weights.dequantize(packed).numpy()
    assert values.shape == (n, k)
    assert np.all(np.abs(values - reference) <= np.spacing(np.abs(reference).astype(np.float32)))
    data = packed.content.data
    assert data.data_ptr() % 64 == 0


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("q4_K", 1.03),
        ("q6_K", 1.0),
        ("q2_K", 1.2),
        ("q3_K", 1.35),
        ("q5_K", 1.03),
        ("q5_0", 1.0),
        ("q5_1", 1.0),
        ("q4_0_a8", 1.0),
        ("iq4_nl_a8", 1.0),
        ("iq4_xs", 1.02),
        ("mxfp4", 1.18),
        ("mxfp4_a8", 1.18),
    ],
)
def test_a_weight_takes_about_what_it_takes_in_a_file(name: str, most: float) -> None:
    # Decoding reads all of it for each token.
    fmt, n, k = get_format(name), 64, 1024
    tensors = quantize(fmt, np.random.default_rng(1).standard_normal((n, k)).astype(np.float32))
    with opsocket.open("cpu") as session:
        packed = weights.prepare(session, SimpleNamespace(weight_format=name, n=n, k=k), tensors)
    assert packed.nbytes <= most * tensors["blocks"].nbytes


@pytest.mark.parametrize("name", ["q4_1", "q5_0", "q6_K", "iq4_xs"])
def test_panels_packed_one_by_one_are_those_packed_together(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fmt, n, k = get_format(name), 136, 512
    tensors = quantize(fmt, np.random.default_rng(2).standard_normal((n, k)).astype(np.float32))
    with opsocket.open("cpu", threads=3) as session:
        spec = SimpleNamespace(weight_format=name, n=n, k=k)
        together = weights.prepare(session, spec, tensors).content.data
        monkeypatch.setattr("opsocket_cpu.native.packing._AT_A_TIME", 1)
        one_by_one = weights.prepare(session, spec, tensors).content.data
    assert np.array_equal(together.numpy(), one_by_one.numpy())


@pytest.mark.parametrize("name", ["i4_g32_z", "awq_i4_g32"])
def test_rows_that_take_fewer_bits_than_others_are_packed_with_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Zero points of 8 in the first 32 rows alone: signed codes of four bits do there.
    fmt, n, k = get_format(name), 96, 256
    tensors = dict(quantize(fmt, np.random.default_rng(3).standard_normal((n, k)).astype(np.float32) + 0.3))
    if name == "i4_g32_z":
        tensors["zero"] = tensors["zero"].copy()
        tensors["zero"][:32] = 8
    else:
        tensors["qzeros"] = tensors["qzeros"].copy()
        tensors["qzeros"][:, :4] = np.array(0x88888888, np.uint32).view(np.int32)
    monkeypatch.setattr("opsocket_cpu.native.packing._AT_A_TIME", 1)
    with opsocket.open("cpu") as session:
        packed = weights.prepare(session, SimpleNamespace(weight_format=name, n=n, k=k), tensors)
    reference = fmt.reference(tensors, n, k)
    assert np.all(
        np.abs(weights.dequantize(packed).numpy() - reference)
        <= 2 * np.spacing(np.abs(reference).astype(np.float32).max())
    )


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_floats_packed_one_by_one_are_those_packed_together(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fmt, n, k = get_format(dtype), 136, 77
    tensors = quantize(fmt, np.random.default_rng(4).standard_normal((n, k)).astype(np.float32))
    with opsocket.open("cpu", threads=3) as session:
        spec = SimpleNamespace(weight_format=dtype, n=n, k=k)
        together = weights.prepare(session, spec, tensors)
        monkeypatch.setattr("opsocket_cpu.native.packing._AT_A_TIME", 1)
        one_by_one = weights.prepare(session, spec, tensors)
    assert np.array_equal(weights.dequantize(together).numpy(), weights.dequantize(one_by_one).numpy())
    assert np.array_equal(weights.dequantize(together).numpy(), fmt.reference(tensors, n, k))
