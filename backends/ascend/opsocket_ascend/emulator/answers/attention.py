"""npu_fused_infer_attention_score of both versions, layout TND over pages: what its documentation says, in float64.

What the documentation leaves undefined (queries that see no key) or forbids is an error.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opsocket_ascend.emulator.answers.fused import absent, must
from opsocket_ascend.emulator.calls import answers
from opsocket_ascend.emulator.handles import EmulationError, Tensor, widened

_NO_MASK, _CAUSAL, _BAND = 0, 3, 4
_UNLIMITED = 2147483647
_COMPRESSED_MASK = 2048
_BLOCK_MULTIPLE, _LARGEST_BLOCK = 128, 512
_PER_TOKEN_HEAD_PAGED = 5
_MOST_GROUP, _MOST_HEADS, _MOST_DIM = 64, 256, 512
_LATENT_HEADS, _LATENT_DIM, _ROPE_DIM, _MOST_LATENT_QUERIES = (1, 2, 4, 8, 16, 32, 64, 128), 512, 64, 16
_MOST_SINK_DIM = 128
_WORKSPACE_BYTES = 64
"""Of a key."""

_Lengths = tuple[int, ...]

_INPUTS = (
    "query key value pse mask q_lens kv_lens deq_scale1 quant_scale1 deq_scale2 quant_scale2 quant_offset2 "
    "antiquant_scale antiquant_offset block_table query_padding kv_padding key_scale key_offset value_scale "
    "value_offset key_prefix value_prefix prefix_len "
)
_ROPE = "query_rope key_rope key_rope_scale "
_SINK = "query_scale sink "
_ATTRIBUTES = (
    "heads:int scale:double pre:int next:int layout:text kv_heads:int sparse:int precise:int block_size:int "
    "antiquant_mode:int want_lse:bool key_mode:int value_mode:int "
)
_OUTPUTS = "out lse"


def _workspace(arguments: dict[str, Any], most: bool) -> int:
    """How much CANN wants is not documented, but for its growing with lengths: a graph needs room for the most."""
    table, lens = arguments["block_table"], arguments["kv_lens"]
    if not isinstance(table, Tensor) or not lens:
        return 0
    tokens = table.shape[0] * table.shape[1] * arguments["block_size"] if most else sum(lens)
    return _WORKSPACE_BYTES * int(tokens)


def _register(operator: str, signature: str) -> None:
    names = [word.partition(":")[0] for word in signature.split()]

    @answers(operator, signature, _workspace)
    def answer(*arguments: object) -> None:
        _Attention(dict(zip(names, arguments, strict=True))).run()


# The first version is V2, and from CANN 8.2 on V3, which has rotary parts; the second is V4, which has sinks.
_register("aclnnFusedInferAttentionScoreV2", _INPUTS + _ATTRIBUTES + _OUTPUTS)
_register("aclnnFusedInferAttentionScoreV3", _INPUTS + _ROPE + _ATTRIBUTES + _OUTPUTS)
_register("aclnnFusedInferAttentionScoreV4", _INPUTS + _ROPE + _SINK + _ATTRIBUTES + "query_mode:int " + _OUTPUTS)

_SERVED = frozenset(
    word.partition(":")[0]
    for word in (
        "query key value mask q_lens kv_lens block_table key_scale value_scale query_rope key_rope sink query_mode "
        + _ATTRIBUTES
        + _OUTPUTS
    ).split()
)


class _Attention:
    """q [T, N, D], K and V [blocks, size, N_kv * D], the end of each sequence's queries, and how many keys it has."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        absent(**{name: value for name, value in arguments.items() if name not in _SERVED})
        must(not arguments.get("query_mode"), f"query_quant_mode {arguments.get('query_mode')}: not emulated")
        self._arguments = arguments
        self.query = self._tensor("query")
        self.key, self.value = self._only("key"), self._only("value")
        self.query_rope, self.key_rope = arguments.get("query_rope"), arguments.get("key_rope")
        self.heads, self.kv_heads = arguments["heads"], arguments["kv_heads"]
        self.sparse, self.size = arguments["sparse"], arguments["block_size"]
        self.q_ends, self.kv_lens = self._lengths("q_lens"), self._lengths("kv_lens")
        self.q_lens = np.diff((0, *self.q_ends))
        self._check_shapes()
        self._check_lengths()
        self._check_mask()
        self._check_codes()
        self._check_rope()
        self._check_sink()

    def _tensor(self, name: str) -> Tensor:
        tensor = self._arguments[name]
        if not isinstance(tensor, Tensor):
            raise EmulationError(f"{name} is missing: only paged TND is emulated")
        return tensor

    def _only(self, name: str) -> Tensor:
        tensors = self._arguments[name]
        must(len(tensors) == 1, f"a list of several {name}s: not emulated")
        tensor: Tensor = tensors[0]
        return tensor

    def _lengths(self, name: str) -> _Lengths:
        lengths = self._arguments[name]
        if not isinstance(lengths, tuple):
            raise EmulationError(f"{name} is missing")
        return lengths

    def _check_shapes(self) -> None:
        query, layout = self.query, self._arguments["layout"]
        must(layout == "TND", f"input_layout {layout!r}: only TND is emulated")
        _, heads, dim = query.shape
        must(query.dtype.name in ("f16", "bf16") and query.is_dense, f"query {query}")
        must(heads == self.heads, f"num_heads={self.heads} for query {query}")
        must(self.kv_heads > 0 and heads % self.kv_heads == 0, f"{heads} heads over {self.kv_heads}")
        most = _MOST_GROUP if self.query_rope is None else max(_LATENT_HEADS)
        must(heads // self.kv_heads <= most and heads <= _MOST_HEADS, f"{heads} heads over {self.kv_heads}")
        must(dim % 16 == 0 and dim <= _MOST_DIM, f"a head of {dim}")
        must(self.key.shape == self.value.shape, f"key {self.key} and value {self.value}")
        must(len(self.key.shape) == 3 and self.key.shape[1] == self.size, f"block_size={self.size} for {self.key}")
        must(self.key.shape[2] == self.kv_heads * dim, f"{self.kv_heads} heads of {dim} in {self.key}")
        must(self.key.is_dense and self.value.is_dense, f"{self.key}, {self.value}: only dense pages are served")
        must(self.size % _BLOCK_MULTIPLE == 0 and self.size <= _LARGEST_BLOCK, f"block_size={self.size}")

    def _check_lengths(self) -> None:
        table, ends, lens = self._tensor("block_table"), self.q_ends, self.kv_lens
        must(len(ends) == len(lens) == table.shape[0], f"{len(ends)}, {len(lens)} sequences, and table {table}")
        must(bool(all(self.q_lens >= 0)) and ends[-1] == self.query.shape[0], f"q lengths {ends} of {self.query}")
        must(min(lens) > 0, f"kv lengths {lens}: sequences without keys are not emulated")
        masked = self.sparse != _NO_MASK
        must(not masked or bool(np.all(self.q_lens <= lens)), f"queries {ends} under a mask, and keys {lens}")
        must(table.dtype.name == "i32" and table.is_dense, f"block_table {table}: dense i32 is wanted")
        most = max(lens, default=0)
        must(table.shape[1] * self.size >= most, f"block_table {table} for {most} keys")

    def _check_mask(self) -> None:
        mask, pre, after = self._arguments["mask"], self._arguments["pre"], self._arguments["next"]
        must(self.sparse in (_NO_MASK, _CAUSAL, _BAND), f"sparse_mode {self.sparse}: not emulated")
        if self.sparse == _NO_MASK:
            must(mask is None, "a mask of the caller's own: not emulated")
            return
        side = _COMPRESSED_MASK
        if not isinstance(mask, Tensor) or mask.shape != (side, side) or mask.dtype.name not in ("i8", "u8", "bool"):
            raise EmulationError(f"mask {mask}: sparse_mode {self.sparse} wants [{side}, {side}] of int8 or bool")
        must(np.array_equal(mask.raw() != 0, np.triu(np.ones((side, side), bool), 1)), "mask is not causal")
        must(self.sparse == _CAUSAL or (pre >= 0 and 0 <= after <= _UNLIMITED), f"a band of {pre} and {after}")

    def _check_codes(self) -> None:
        a, modes = self._arguments, (self._arguments["key_mode"], self._arguments["value_mode"])
        if self.key.dtype.name != "i8":
            must(self.key.dtype == self.value.dtype == self.query.dtype, f"{self.query} over {self.key}")
            must(a["key_scale"] is None and a["value_scale"] is None, "scales of keys that have none")
            return
        must(modes == (_PER_TOKEN_HEAD_PAGED,) * 2, f"antiquant modes {modes}: only 5 is emulated")
        must(max(self.q_lens) <= 1, f"{max(self.q_lens)} queries over int8 pages: one is served")
        must(self.query_rope is None, "int8 pages with rotary parts: not emulated")
        shape = (self.key.shape[0], self.kv_heads, self.size)
        for name in ("key_scale", "value_scale"):
            scale = self._tensor(name)
            must(scale.shape == shape and scale.dtype.name == "f32", f"{name} {scale}: f32{list(shape)} is wanted")

    def _check_rope(self) -> None:
        q, k = self.query_rope, self.key_rope
        if q is None and k is None:
            return
        must(isinstance(q, Tensor) and isinstance(k, Tensor), "query_rope without key_rope, or the reverse")
        tokens, heads, dim = self.query.shape
        must(dim == _LATENT_DIM and heads in _LATENT_HEADS and self.kv_heads == 1, f"query {self.query} with rope")
        must(self.key.data == self.value.data, "latent keys that are not the values")
        wanted = ((q, (tokens, heads, _ROPE_DIM)), (k, (*self.key.shape[:2], _ROPE_DIM)))
        for tensor, shape in wanted:
            must(tensor.shape == shape and tensor.dtype == self.query.dtype and tensor.is_dense, f"{tensor}: {shape}")
        longest = max(self.q_lens)
        must(longest <= _MOST_LATENT_QUERIES, f"{longest} queries of a sequence with rope")
        must(self.sparse == (_NO_MASK if longest <= 1 else _CAUSAL), f"sparse_mode {self.sparse}, {longest} queries")

    def _check_sink(self) -> None:
        sink = self._arguments.get("sink")
        if sink is not None:
            must(sink.dtype.name == "bf16" and sink.shape == (self.heads,), f"learnable_sink {sink}")
            must(self.query.dtype.name == "bf16" and self.key.dtype.name == "bf16", f"sinks with query {self.query}")
            must(self.query.shape[2] <= _MOST_SINK_DIM and self.query_rope is None, f"sinks with query {self.query}")

    def run(self) -> None:
        out, lse = self._tensor("out"), self._tensor("lse")
        table, start = self._tensor("block_table").value(), 0
        query, written = _with_rope(self.query.value(), self.query_rope), np.zeros(out.shape)
        logs = np.zeros(self.query.shape[:2])
        for at, (end, count) in enumerate(zip(self.q_ends, self.kv_lens, strict=True)):
            used = table[at, : -(-count // self.size)].astype(np.int64)
            must(not used.size or (used.min() >= 0 and used.max() < self.key.shape[0]), f"blocks {used}")
            if end > start:
                keys, values = self._keys(used)[:count], self._pages(self.value, "value", used)[:count]
                written[start:end], logs[start:end] = self._sequence(query[start:end], keys, values)
            start = end
        out.write(written)
        if self._arguments["want_lse"]:
            must(self._arguments.get("sink") is None, "LSE with sinks: the documentation does not define it")
            lse.write(logs.reshape(lse.shape))

    def _keys(self, used: np.ndarray) -> np.ndarray:
        keys = self._pages(self.key, "key", used)
        if self.key_rope is None:
            return keys
        rope = _rows(self.key_rope, used).reshape(len(keys), 1, _ROPE_DIM)
        return np.concatenate([keys, rope], -1)

    def _pages(self, pages: Tensor, name: str, used: np.ndarray) -> np.ndarray:
        """f64 [S, N_kv, D] of some blocks."""
        dim = self.query.shape[2]
        blocks = _rows(pages, used).reshape(len(used), self.size, self.kv_heads, dim)
        if pages.dtype.name == "i8":
            blocks = blocks * _rows(self._tensor(f"{name}_scale"), used).transpose(0, 2, 1)[..., None]
        return blocks.reshape(len(used) * self.size, self.kv_heads, dim)

    def _sequence(self, query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        group, n, count = self.heads // self.kv_heads, len(query), len(keys)
        scores = np.einsum("nhd,shd->hns", query, np.repeat(keys, group, axis=1)) * self._arguments["scale"]
        hidden = self._hidden(n, count)
        scores = np.where(hidden, -np.inf, scores)
        top = scores.max(-1, keepdims=True)
        sink = self._arguments.get("sink")
        logit = np.full((self.heads, 1, 1), -np.inf) if sink is None else sink.value()[:, None, None]
        top = np.maximum(top, logit)
        with np.errstate(invalid="ignore"):
            weights = np.exp(scores - top)
            total = weights.sum(-1, keepdims=True) + np.exp(logit - top)
            weights = weights / total
        # What a value adds that no query may see is 0, whatever it holds: its weight is 0 and it is not read.
        weights = np.where(hidden, 0.0, weights)
        clean = np.where(np.isfinite(values), values, 0.0) if hidden.any() else values
        out = np.einsum("hns,shd->nhd", weights, np.repeat(clean, group, axis=1))
        return out, (top + np.log(total))[..., 0].T

    def _hidden(self, n: int, count: int) -> np.ndarray:
        """bool [n, S]; a sequence of one query is given no mask, whatever is asked."""
        ahead = np.arange(count) - (np.arange(n)[:, None] + (count - n))
        if self.sparse == _NO_MASK or n == 1:
            return np.zeros(ahead.shape, bool)
        if self.sparse == _CAUSAL:
            return ahead > 0
        hidden: np.ndarray = (ahead > self._arguments["next"]) | (ahead < -self._arguments["pre"])
        return hidden


def _with_rope(values: np.ndarray, rope: Tensor | None) -> np.ndarray:
    return values if rope is None else np.concatenate([values, rope.value()], -1)


def _rows(tensor: Tensor, rows: np.ndarray) -> np.ndarray:
    """Values of some of a tensor's rows, without reading those of the others."""
    return widened(tensor.raw()[rows], tensor.dtype)
