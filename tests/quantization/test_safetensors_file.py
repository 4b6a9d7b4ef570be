"""The safetensors reader; hostile inputs: every truncation of a small file, 1,500 seeded mutations, crafted headers."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from opsocket.operators.errors import ContractError, FormatError
from opsocket.quantization import bf16_to_f32
from opsocket.quantization.safetensors_file import open_safetensors

MUTATIONS = 1500
PEAK_BYTES = 4 << 20

ARRAYS = {
    "f32": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "f16": np.arange(4, dtype=np.float16),
    "f64": np.arange(3, dtype=np.float64),
    "i64": np.array([-(1 << 62)]),
    "i32": np.array([[-5, 7]], np.int32),
    "u8": np.arange(9, dtype=np.uint8).reshape(3, 3),
    "i8": np.arange(-3, 3, dtype=np.int8),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
}


@pytest.fixture
def single(tmp_path):
    path = tmp_path / "single.safetensors"
    save_file(ARRAYS, path, metadata={"format": "np"})
    return path


def raw_file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_arrays_come_back(single):
    file = open_safetensors(single)
    assert sorted(file.names()) == sorted(ARRAYS)
    for name, expected in ARRAYS.items():
        array = file.array(name)
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == expected.dtype
        assert file.shape(name) == expected.shape
        assert file.dtype(name) == {"scalar": "f32", "empty": "f32"}.get(name, name)
        assert not array.flags.writeable


def test_types_that_numpy_lacks_come_as_bits(tmp_path):
    path = tmp_path / "torch.safetensors"
    values = torch.linspace(-3, 3, 12).reshape(3, 4)
    fp8 = {"f8e4m3fn": values.to(torch.float8_e4m3fn), "f8e5m2": values.to(torch.float8_e5m2)}
    save_torch_file({"bf16": values.bfloat16(), "bool": values > 0, **fp8}, path)
    file = open_safetensors(path)
    assert {name: file.dtype(name) for name in file.names()} == {name: name for name in ("bf16", "bool", *fp8)}
    assert file.array("bf16").dtype == np.uint16
    np.testing.assert_array_equal(bf16_to_f32(file.array("bf16")), values.bfloat16().float().numpy())
    np.testing.assert_array_equal(file.array("bool").astype(bool), (values > 0).numpy())
    for name, tensor in fp8.items():
        np.testing.assert_array_equal(file.array(name), tensor.view(torch.uint8).numpy())


def test_unknown_name(single):
    with pytest.raises(ContractError, match="'absent'"):
        open_safetensors(single).array("absent")


def shard(folder, weight_map):
    for file_name in {name for name in weight_map.values() if name.startswith("model-")}:
        own = {name: ARRAYS[name] for name, owner in weight_map.items() if owner == file_name and name in ARRAYS}
        save_file(own, folder / file_name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def test_shards_read_as_one_file(tmp_path):
    index = shard(tmp_path, {"f32": "model-1.safetensors", "i8": "model-2.safetensors", "f16": "model-1.safetensors"})
    for path in (tmp_path, index, str(tmp_path)):
        file = open_safetensors(path)
        assert file.names() == ("f32", "i8", "f16")
        for name in file.names():
            np.testing.assert_array_equal(file.array(name), ARRAYS[name])


def test_a_folder_with_a_single_file(single):
    single.rename(single.parent / "model.safetensors")
    assert sorted(open_safetensors(single.parent).names()) == sorted(ARRAYS)


@pytest.mark.parametrize(
    "file_name",
    [
        "../secret.safetensors",
        "/tmp/secret.safetensors",
        "sub/secret.safetensors",
        "..\\secret.safetensors",
        "C:secret.safetensors",
        "nul\0.safetensors",
        "passwd",
        "",
        7,
        None,
        ["model-1.safetensors"],
    ],
)
def test_an_index_leads_nowhere_else(tmp_path, file_name):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for secret in (tmp_path, folder / "sub"):
        save_file(ARRAYS, secret / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"f32": file_name}}))
    with pytest.raises(FormatError, match="in this folder") as error:
        open_safetensors(folder)
    assert error.value.where == "weight_map 'f32'"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        ("{", "not JSON"),
        ("[]", "weight_map"),
        ("{}", "weight_map"),
        ('{"weight_map": []}', "weight_map"),
        ('{"weight_map": {"f32": "model-9.safetensors"}}', "cannot be read"),
        ('{"weight_map": {"absent": "model-1.safetensors"}}', "no such tensor"),
        ('{"weight_map": {"f32": "model-1.safetensors", "f32": "model-1.safetensors"}}', "twice"),
        ("[" * 200_000, "not JSON"),
        (" " * ((16 << 20) + 1), "at most"),
    ],
)
def test_broken_index(tmp_path, text, problem):
    shard(tmp_path, {"f32": "model-1.safetensors"}).write_text(text)
    with pytest.raises(FormatError, match=problem):
        open_safetensors(tmp_path)


def entry(shape=(4,), offsets=(0, 16), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


BYTES_16 = bytes(16)
HOSTILE = {
    "three bytes": b"abc",
    "header of 2^63 bytes": struct.pack("<Q", 1 << 63) + b"{}",
    "header one byte longer than the file": struct.pack("<Q", 3) + b"{}",
    "header of 17 MB": raw_file(b"{}" + b" " * (17 << 20)),
    "not JSON": raw_file(b"{'a'"),
    "not UTF-8": raw_file(b'{"\xff": 1}'),
    "a list": raw_file([]),
    "a number": raw_file(7),
    "nested 100,000 deep": raw_file(b'{"w":' * 100_000),
    "an entry that is a number": raw_file({"w": 7}, BYTES_16),
    "an entry without offsets": raw_file({"w": {"dtype": "F32", "shape": [4]}}, BYTES_16),
    "negative shape": raw_file({"w": entry(shape=(-4,))}, BYTES_16),
    "fractional shape": raw_file({"w": entry(shape=(4.5,))}, BYTES_16),
    "shape that overflows": raw_file({"w": entry(shape=(1 << 62, 1 << 62))}, BYTES_16),
    "shape that wraps to the right size": raw_file({"w": entry(shape=((1 << 63) + 2, 2))}, BYTES_16),
    "shape beyond u64": raw_file({"w": entry(shape=(1 << 70,))}, BYTES_16),
    "shape and offsets at odds": raw_file({"w": entry(shape=(3,))}, BYTES_16),
    "offsets past the end": raw_file({"w": entry(shape=(8,), offsets=(0, 32))}, BYTES_16),
    "offsets the wrong way round": raw_file({"w": entry(offsets=(16, 0))}, BYTES_16),
    "three offsets": raw_file({"w": entry(offsets=(0, 16, 16))}, BYTES_16),
    "overlap": raw_file({"v": entry((2,), (0, 8)), "w": entry((3,), (4, 16))}, BYTES_16),
    "a gap": raw_file({"v": entry((1,), (0, 4)), "w": entry((1,), (12, 16))}, BYTES_16),
    "data beyond the last tensor": raw_file({"w": entry()}, bytes(20)),
    "unknown dtype": raw_file({"w": entry(dtype="F31")}, BYTES_16),
    "a dtype without an array type": raw_file({"w": entry(shape=(32,), dtype="F4")}, BYTES_16),
    "a name twice": raw_file(b'{"w": %s, "w": %s}' % ((json.dumps(entry()).encode(),) * 2), BYTES_16),
    "a dtype twice": raw_file(b'{"w": {"dtype":"F32","dtype":"I32","shape":[4],"data_offsets":[0,16]}}', BYTES_16),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_crafted_header(case, tmp_path):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(HOSTILE[case])
    start = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as error:
            open_safetensors(path)
        assert tracemalloc.get_traced_memory()[1] < PEAK_BYTES
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 2
    assert error.value.path == str(path)


@pytest.mark.parametrize("case", [case for case in HOSTILE if case.startswith("header")])
def test_a_header_too_long_is_refused_before_it_is_read(case, tmp_path):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(HOSTILE[case])
    with pytest.raises(FormatError, match="claims"):
        open_safetensors(path)


def test_the_crafted_headers_are_hostile_for_one_reason_only(tmp_path):
    path = tmp_path / "fine.safetensors"
    path.write_bytes(raw_file({"w": entry()}, BYTES_16))
    assert open_safetensors(path).shape("w") == (4,)


def test_what_is_no_file(tmp_path):
    for path in (tmp_path / "absent.safetensors", tmp_path, "/dev/zero", "nul\0byte"):
        with pytest.raises(FormatError):
            open_safetensors(path)


def opens(path, data: bytes) -> bool:
    path.write_bytes(data)
    try:
        file = open_safetensors(path)
    except FormatError:
        return False
    for name in file.names():
        assert file.array(name).nbytes <= len(data)
        file.array(name).tobytes()
    return True


def test_truncated_at_every_byte(single, tmp_path):
    data = single.read_bytes()
    for length in range(len(data)):
        assert not opens(tmp_path / "truncated.safetensors", data[:length])


def test_mutations(single, tmp_path):
    rng = np.random.default_rng(7)
    data = single.read_bytes()
    path = tmp_path / "mutant.safetensors"
    valid = 0
    tracemalloc.start()
    try:
        for _ in range(MUTATIONS):
            mutant = bytearray(data)
            for _ in range(rng.integers(1, 4)):
                at = int(rng.integers(0, len(mutant)))
                match rng.integers(0, 4):
                    case 0:
                        mutant[at] ^= 1 << rng.integers(0, 8)
                    case 1:
                        mutant[at] = rng.choice(list(b'0123456789[]{}:,"eE-.')).item()
                    case 2:
                        del mutant[at : at + int(rng.integers(1, 9))]
                    case 3:
                        mutant[at:at] = mutant[at : at + int(rng.integers(1, 9))]
            valid += opens(path, bytes(mutant))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert MUTATIONS * 0.02 < valid < MUTATIONS * 0.9
    assert peak < PEAK_BYTES
