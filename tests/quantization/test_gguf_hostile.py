"""Files from strangers: whatever the bytes, a FormatError or a valid file, quickly and in little memory.

Inputs: all 1,696 truncations of a valid file, 3,000 seeded mutations of it, and the 55 crafted headers below.
"""

from __future__ import annotations

import struct
import time
import tracemalloc

import gguf
import numpy as np
import pytest

from opsocket.operators.errors import FormatError
from opsocket.quantization import get_format, quantize
from opsocket.quantization.gguf_file import open_gguf

MUTATIONS = 3000
PEAK_BYTES = 4 << 20
U8, U32, STRING, ARRAY = 0, 4, 8, 9
F32, Q4_0, IQ3_S, MXFP4 = 0, 2, 21, 39
HUGE = 1 << 60


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, type_id: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", type_id) + value


def array(type_id: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", type_id, count) + values


def tensor(name: str = "w", dims: tuple[int, ...] = (32,), type_id: int = F32, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_id, offset)


def header(
    *pairs: bytes, tensors: tuple[bytes, ...] = (), version: int = 3, counts: tuple[int, int] | None = None
) -> bytes:
    counts = counts or (len(tensors), len(pairs))
    start = struct.pack("<4sIQQ", b"GGUF", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return start + bytes(-len(start) % 32) + bytes(512)


ALIGNMENT = "general.alignment"
NESTED = array(ARRAY, 1) * 20000 + array(U8, 1, b"\1")
MANY_EMPTY_ARRAYS = array(ARRAY, 20000, array(U8, 0) * 20000)

HOSTILE = {
    "not GGUF": (b"GGML" + bytes(60), "magic"),
    "shorter than the preamble": (b"GGUF\3\0\0\0", "reach past the end"),
    "version 1": (header(version=1), "version 1"),
    "version 4": (header(version=4), "version 4"),
    "big-endian": (header(version=3 << 24), "big-endian"),
    "2^60 tensors": (header(counts=(HUGE, 0)), "tensor count"),
    "2^60 pairs": (header(counts=(0, HUGE)), "metadata count"),
    "200,000 real pairs": (header(*(pair(f"{i}", U8, b"\1") for i in range(200_000))), "metadata count"),
    "200,000 real tensors": (header(tensors=tuple(tensor(f"{i}") for i in range(200_000))), "tensor count"),
    "five million real bytes": (header(pair("k", ARRAY, array(U8, 5 << 20, bytes(5 << 20)))), "all arrays together"),
    "2^64 - 1 of both": (header(counts=((1 << 64) - 1, (1 << 64) - 1)), "metadata count"),
    "a few more pairs than there are": (header(counts=(0, 9)), "empty"),
    "key of 2^63 bytes": (header(struct.pack("<Q", 1 << 63) + b"k"), "65535 are allowed"),
    "key of 65,535 bytes that are not there": (header(struct.pack("<Q", 65535) + b"k"), "reach past the end"),
    "empty key": (header(pair("", U8, b"\1")), "empty"),
    "key twice": (header(pair("k", U8, b"\1"), pair("k", U8, b"\2")), "'k' is a duplicate"),
    "key not UTF-8": (header(string(b"\xff\xfe") + bytes(8)), "not UTF-8"),
    "value not UTF-8": (header(pair("k", STRING, string(b"\xc3\x28"))), "not UTF-8"),
    "string of 2^62 bytes": (header(pair("k", STRING, struct.pack("<Q", 1 << 62))), "are allowed"),
    "string of a million bytes": (header(pair("k", STRING, struct.pack("<Q", 10**6))), "reach past the end"),
    "value type 99": (header(pair("k", 99, bytes(8))), "value type 99"),
    "boolean of 7": (header(pair("k", 7, b"\7")), "boolean of 7"),
    "array of 2^60 bytes": (header(pair("k", ARRAY, array(U8, HUGE))), "values"),
    "array of 2^60 strings": (header(pair("k", ARRAY, array(STRING, HUGE))), "values"),
    "array of a million strings": (header(pair("k", ARRAY, array(STRING, 10**6))), "fit into the file"),
    "array of a million numbers": (header(pair("k", ARRAY, array(U32, 10**6))), "reach past the end"),
    "array of 2^32 arrays": (header(pair("k", ARRAY, array(ARRAY, 1 << 32))), "values"),
    "array of 60,000 arrays": (header(pair("k", ARRAY, array(ARRAY, 60_000))), "fit into the file"),
    "array of type 99": (header(pair("k", ARRAY, array(99, 3))), "value type 99"),
    "arrays 20,000 deep": (header(pair("k", ARRAY, NESTED)), "nested"),
    "more array values than any model has": (
        header(*(pair(f"k{i}", ARRAY, MANY_EMPTY_ARRAYS) for i in range(5))),
        "all arrays together",
    ),
    "alignment 0": (header(pair(ALIGNMENT, U32, struct.pack("<I", 0)), tensors=(tensor(),)), "power of two"),
    "alignment 24": (header(pair(ALIGNMENT, U32, struct.pack("<I", 24)), tensors=(tensor(),)), "power of two"),
    "alignment true": (header(pair(ALIGNMENT, 7, b"\1"), tensors=(tensor(),)), "power of two"),
    "alignment of text": (header(pair(ALIGNMENT, STRING, string("32")), tensors=(tensor(),)), "power of two"),
    "alignment 2^31": (header(pair(ALIGNMENT, U32, struct.pack("<I", 1 << 31)), tensors=(tensor(),)), "data ends at"),
    "tensor name of 256 bytes": (header(tensors=(tensor("w" * 256),)), "255 are allowed"),
    "tensor without a name": (header(tensors=(tensor(""),)), "empty"),
    "tensor twice": (header(tensors=(tensor(), tensor(offset=128))), "'w' is a duplicate"),
    "no dimensions": (header(tensors=(tensor(dims=()),)), "0 dimensions"),
    "five dimensions": (header(tensors=(tensor(dims=(2, 2, 2, 2, 2)),)), "5 dimensions"),
    "2^32 - 1 dimensions": (header(tensors=(string("w") + struct.pack("<I", 0xFFFFFFFF),)), "4294967295 dimensions"),
    "a dimension of 0": (header(tensors=(tensor(dims=(32, 0)),)), "0 elements"),
    "a product that wraps to 0": (header(tensors=(tensor(dims=(1 << 32, 1 << 32)),)), "elements"),
    "a product that wraps to 32": (header(tensors=(tensor(dims=((1 << 63) + 16, 2)),)), "elements"),
    "2^62 elements": (header(tensors=(tensor(dims=(1 << 62,)),)), "data ends at"),
    "a row that is no whole number of blocks": (header(tensors=(tensor(dims=(48, 2), type_id=Q4_0),)), "blocks of 32"),
    "MXFP4 rows that are no whole number of blocks": (
        header(tensors=(tensor(dims=(80, 2), type_id=MXFP4),)),
        "no whole number of mxfp4 blocks of 32",
    ),
    "2^40 rows of MXFP4": (header(tensors=(tensor(dims=(32, 1 << 40), type_id=MXFP4),)), "data ends at"),
    "type 4, which was removed": (header(tensors=(tensor(type_id=4),)), "ggml type 4"),
    "type 2^32 - 1": (header(tensors=(tensor(type_id=0xFFFFFFFF),)), "does not exist"),
    "a type without a format here": (header(tensors=(tensor(dims=(256,), type_id=IQ3_S),)), "IQ3_S"),
    "offset off the alignment": (header(tensors=(tensor(offset=4),)), "alignment"),
    "offset 2^63": (header(tensors=(tensor(offset=1 << 63),)), "data ends at"),
    "offset that wraps": (header(tensors=(tensor(offset=(1 << 64) - 32),)), "data ends at"),
    "data past the end": (header(tensors=(tensor(dims=(129,)),)), "data ends at"),
    "two tensors in one place": (header(tensors=(tensor("a"), tensor("b", offset=96))), "inside tensor 'a'"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_crafted_header(case, tmp_path):
    data, problem = HOSTILE[case]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(FormatError, match=problem) as error:
        open_gguf(path)
    assert time.perf_counter() - start < 2
    assert error.value.path == str(path)


def test_the_crafted_headers_are_hostile_for_one_reason_only(tmp_path):
    """The helpers make valid files: so each case above fails for what it changes."""
    path = tmp_path / "fine.gguf"
    nested = array(ARRAY, 2, array(STRING, 1, string("x")) + array(U8, 2, b"\1\2"))
    tensors = (tensor(dims=(32, 4)),)
    path.write_bytes(header(pair("k", ARRAY, nested), pair(ALIGNMENT, U32, struct.pack("<I", 32)), tensors=tensors))
    file = open_gguf(path)
    assert file.metadata == {"k": [["x"], [1, 2]], ALIGNMENT: 32}
    assert file.tensors["w"].shape == (4, 32)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.rope.freq_base", 1e4)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "a", "b", "ab", "é"])
    writer.add_array("tokenizer.ggml.token_type", [3, 1, 1, 1, 1])
    writer.add_array("tokenizer.ggml.scores", [0.0, -1.0, -2.0, -3.0, -4.0])
    writer.add_string("general.name", "small")
    weight = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    for id in ("q4_0", "q4_1", "q8_0"):
        blocks = quantize(get_format(id), weight)["blocks"]
        writer.add_tensor(f"blk.0.{id}.weight", blocks, raw_dtype=gguf.GGMLQuantizationType[id.upper()])
    writer.add_tensor("output_norm.weight", weight[0])
    writer.add_tensor("bias", weight[1].astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def opens(path, data: bytes) -> bool:
    """Whether the bytes are a valid file; every value of a valid one can be read. Anything but FormatError is a bug."""
    path.write_bytes(data)
    try:
        file = open_gguf(path)
    except FormatError:
        return False
    for entry in file.tensors.values():
        assert entry.data.nbytes <= len(data)
        entry.data.tobytes()
        if len(entry.shape) == 2:
            weight = entry.weight()
            weight.format.validate(weight.tensors, weight.n, weight.k)
    return True


def test_truncated_at_every_byte(small, tmp_path):
    path = tmp_path / "truncated.gguf"
    assert len(small) == 1696
    file_end = max(start + size for start, size in _extents(small, path))
    for length in range(len(small)):
        assert opens(path, small[:length]) == (length >= file_end), length


def _extents(data, path):
    path.write_bytes(data)
    return [(tensor.data_offset, tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors]


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four bit flips, overwritten bytes, extreme integers, cuts, repetitions; mostly in the header."""
    mutant = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(0, len(mutant) if rng.random() < 0.1 else min(len(mutant), 900)))
        match rng.integers(0, 5):
            case 0:
                mutant[at] ^= 1 << rng.integers(0, 8)
            case 1:
                mutant[at] = rng.integers(0, 256)
            case 2:
                extreme = int(rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, 1 << 62, (1 << 63) - 1]))
                mutant[at : at + 8] = struct.pack("<Q", extreme)
            case 3:
                del mutant[at : at + int(rng.integers(1, 40))]
            case 4:
                piece = mutant[at : at + int(rng.integers(1, 40))]
                mutant[at:at] = piece
    return bytes(mutant)


def test_mutations(small, tmp_path):
    rng = np.random.default_rng(20240)
    path = tmp_path / "mutant.gguf"
    slowest = 0.0
    valid = 0
    opens(path, small)
    tracemalloc.start()
    try:
        for _ in range(MUTATIONS):
            mutant = mutate(small, rng)
            start = time.perf_counter()
            valid += opens(path, mutant)
            slowest = max(slowest, time.perf_counter() - start)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert MUTATIONS * 0.02 < valid < MUTATIONS * 0.9  # both outcomes are exercised
    assert peak < PEAK_BYTES
    assert slowest < 1


@pytest.mark.parametrize("case", [case for case, (data, _) in HOSTILE.items() if len(data) < 1 << 20])
def test_a_header_that_claims_much_allocates_little(case, tmp_path):
    path = tmp_path / "hostile.gguf"
    path.write_bytes(HOSTILE[case][0])
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            open_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < PEAK_BYTES
    finally:
        tracemalloc.stop()
