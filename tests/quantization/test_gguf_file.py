from __future__ import annotations

import os
import time

import gguf
import numpy as np
import pytest

from opsocket.operators.errors import ContractError, FormatError
from opsocket.quantization import bf16_to_f32, dequantize, get_format, quantize
from opsocket.quantization.gguf_file import open_gguf

METADATA = {
    "a.u8": ("uint8", 200),
    "a.i8": ("int8", -100),
    "a.u16": ("uint16", 60000),
    "a.i16": ("int16", -30000),
    "a.u32": ("uint32", 4_000_000_000),
    "a.i32": ("int32", -2_000_000_000),
    "a.u64": ("uint64", 1 << 63),
    "a.i64": ("int64", -(1 << 62)),
    "a.f32": ("float32", 0.5),
    "a.f64": ("float64", 1e300),
    "a.bool": ("bool", True),
    "a.string": ("string", "straße ✓"),
    "a.strings": ("array", ["", "one", "zwölf"]),
    "a.ints": ("array", [1, -2, 3]),
    "a.floats": ("array", [0.25, -4.0]),
    "a.bools": ("array", [True, False]),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file by gguf.GGUFWriter with every scalar type and every tensor format."""
    path = tmp_path_factory.mktemp("gguf") / "written.gguf"
    writer = gguf.GGUFWriter(path, "test")
    for key, (kind, value) in METADATA.items():
        getattr(writer, f"add_{kind}")(key, value)
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 512)).astype(np.float32)
    ids = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "iq4_nl", "iq4_xs", "mxfp4")
    tensors = {id: quantize(get_format(id), weight) for id in ids}
    for id, tensor in tensors.items():
        writer.add_tensor(id, tensor["blocks"], raw_dtype=gguf.GGMLQuantizationType[id.upper()])
    writer.add_tensor("experts", np.stack([tensors["q8_0"]["blocks"]] * 2), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("f32", weight)
    writer.add_tensor("norm", weight[0])
    writer.add_tensor("f16", weight.astype(np.float16))
    bf16 = quantize(get_format("bf16"), weight)["weight"]
    writer.add_tensor("bf16", bf16.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, weight, tensors


def test_metadata_comes_back(written):
    metadata = open_gguf(written[0]).metadata
    for key, (_, value) in METADATA.items():
        assert metadata[key] == value
        assert type(metadata[key]) is type(value)
    assert metadata["general.architecture"] == "test"


def test_tensors_come_back(written):
    path, weight, tensors = written
    file = open_gguf(str(path))
    assert list(file.tensors) == [*tensors, "experts", "f32", "norm", "f16", "bf16"]
    for id, expected in tensors.items():
        tensor = file.tensors[id]
        assert (tensor.name, tensor.shape, tensor.format) == (id, (3, 512), get_format(id))
        read = tensor.weight()
        assert (read.format.id, read.n, read.k) == (id, 3, 512)
        np.testing.assert_array_equal(read.tensors["blocks"], expected["blocks"])
        read.format.validate(read.tensors, read.n, read.k)
        assert not tensor.data.flags.writeable
    np.testing.assert_array_equal(file.tensors["f32"].array(), weight)
    np.testing.assert_array_equal(file.tensors["norm"].array(), weight[0])
    np.testing.assert_array_equal(file.tensors["f16"].array(), weight.astype(np.float16).astype(np.float32))
    bits = quantize(get_format("bf16"), weight)["weight"]
    np.testing.assert_array_equal(file.tensors["bf16"].weight().tensors["weight"], bits)
    np.testing.assert_array_equal(file.tensors["bf16"].array(), bf16_to_f32(bits))
    assert file.tensors["experts"].shape == (2, 3, 512)
    np.testing.assert_array_equal(file.tensors["experts"].data[1], tensors["q8_0"]["blocks"])


def test_a_weight_has_two_dimensions_and_an_array_has_floats(written):
    tensors = open_gguf(written[0]).tensors
    for name in ("norm", "experts"):
        with pytest.raises(ContractError, match=name):
            tensors[name].weight()
    with pytest.raises(ContractError, match="q4_0"):
        tensors["q4_0"].array()


def test_what_is_no_file(tmp_path):
    empty = tmp_path / "empty.gguf"
    empty.touch()
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    problems = {
        tmp_path / "absent.gguf": "cannot be read",
        tmp_path: "not a regular file",
        empty: "empty",
        pipe: "not a regular file",
        "/dev/zero": "not a regular file",
        "nul\0byte": "cannot be read",
    }
    for path, problem in problems.items():
        with pytest.raises(FormatError, match=problem) as error:
            open_gguf(path)
        assert error.value.path == str(path)
        assert error.value.where == "file"


@pytest.fixture(scope="module")
def file(smollm2_path):
    return open_gguf(smollm2_path)


@pytest.fixture(scope="module")
def reader(smollm2_path):
    return gguf.GGUFReader(smollm2_path)


@pytest.mark.model
class TestSmolLM2:
    """The real file, against the gguf package's own reader and dequantization."""

    def test_opens_in_under_a_second(self, smollm2_path):
        start = time.perf_counter()
        open_gguf(smollm2_path)
        assert time.perf_counter() - start < 1  # 0.07 s on an idle core

    def test_tensor_list(self, file, reader):
        expected = [
            (tensor.name, tuple(tensor.shape.tolist()[::-1]), tensor.tensor_type.name) for tensor in reader.tensors
        ]
        assert [(t.name, t.shape, t.format.id.upper()) for t in file.tensors.values()] == expected
        ids = [tensor.format.id for tensor in file.tensors.values()]
        assert {id: ids.count(id) for id in ids} == {"q8_0": 1, "f32": 61, "q4_1": 210}
        assert file.tensors["token_embd.weight"].shape == (49152, 576)

    def test_metadata(self, file, reader):
        fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        assert list(file.metadata) == list(fields)
        for key, field in fields.items():
            assert file.metadata[key] == field.contents(), key
        assert len(file.metadata["tokenizer.ggml.tokens"]) == 49152

    @pytest.mark.parametrize(
        "name", ["token_embd.weight", "blk.0.attn_q.weight", "blk.17.ffn_down.weight", "blk.29.attn_v.weight"]
    )
    def test_weights(self, file, reader, name):
        theirs = next(tensor for tensor in reader.tensors if tensor.name == name)
        rows = slice(0, 1024)
        expected = gguf.quants.dequantize(theirs.data[rows], theirs.tensor_type)
        weight = file.tensors[name].weight()
        part = {"blocks": weight.tensors["blocks"][rows]}
        np.testing.assert_array_equal(dequantize(weight.format, part, len(expected), weight.k), expected)
        reference = weight.format.reference(part, len(expected), weight.k)
        np.testing.assert_array_equal(reference.astype(np.float32), expected)

    def test_norm(self, file, reader):
        theirs = next(tensor for tensor in reader.tensors if tensor.name == "output_norm.weight")
        np.testing.assert_array_equal(file.tensors["output_norm.weight"].array(), theirs.data)
