"""The vendor's fused operators for inference. What its documentation forbids and no check of its own refuses is an
error here, so that no answer hides it."""

from __future__ import annotations

import math

import numpy as np

from opsocket_ascend.emulator.answers.movement import numbers
from opsocket_ascend.emulator.answers.reductions import softmax
from opsocket_ascend.emulator.calls import answers
from opsocket_ascend.emulator.handles import EmulationError, Tensor, widened

_CAUSAL, _NO_MASK = 3, 0
_COMPRESSED_MASK = 2048
_BLOCK_MULTIPLE, _LARGEST_BLOCK = 128, 512
_PER_TOKEN_HEAD_PAGED = 5
_REPAIR_EMPTY_ROWS = 2
_MOST_GROUP, _MOST_HEADS, _MOST_DIM = 64, 256, 512
_Lengths = tuple[int, ...]


def _must(condition: bool, what: str) -> None:
    if not condition:
        raise EmulationError(what)


def _absent(**arguments: object) -> None:
    given = [name for name, value in arguments.items() if value is not None and value != ()]
    _must(not given, f"not emulated: {', '.join(given)}")


@answers("aclnnRmsNorm", "x gamma epsilon:double y rstd")
def _rms_norm(x: Tensor, gamma: Tensor, epsilon: float, y: Tensor, rstd: Tensor) -> None:
    _must(gamma.dtype == x.dtype, f"gamma {gamma} of another dtype than x {x}")
    _must(gamma.shape == x.shape[-len(gamma.shape) :], f"gamma {gamma} for x {x}")
    values = x.value()
    axes = tuple(range(len(x.shape) - len(gamma.shape), len(x.shape)))
    scale = 1 / np.sqrt((values**2).mean(axes, keepdims=True) + epsilon)
    y.write(values * scale * gamma.value())
    rstd.write(scale)


@answers("aclnnDynamicQuantV2", "x smooth groups dst_type:int y scale offset")
def _dynamic_quant(
    x: Tensor, smooth: Tensor | None, groups: Tensor | None, dst_type: int, y: Tensor, scale: Tensor, offset: None
) -> None:
    _absent(smooth=smooth, groups=groups, offset=offset)
    _must(x.dtype.name in ("f16", "bf16"), f"x {x}: only f16 and bf16 are quantized")
    _must(y.dtype.name == "i8", f"codes {y}: only int8 is emulated")
    values = x.value().astype(np.float32)
    step = np.abs(values).max(-1, keepdims=True) / np.float32(127)
    # A row of zeros gives 0 / 0 on the way, and codes of 0.
    codes = np.divide(values, step, out=np.zeros_like(values), where=step != 0)
    y.write(np.rint(codes))
    scale.write(step[..., 0])


@answers(
    "aclnnQuantMatmulV5",
    "x1 x2 x1_scale x2_scale y_scale x1_offset x2_offset y_offset bias transpose1:bool transpose2:bool group:int out",
)
def _quant_matmul(
    x1: Tensor,
    x2: Tensor,
    x1_scale: Tensor | None,
    x2_scale: Tensor,
    y_scale: Tensor | None,
    x1_offset: Tensor | None,
    x2_offset: Tensor | None,
    y_offset: Tensor | None,
    bias: Tensor | None,
    transpose1: bool,
    transpose2: bool,
    group: int,
    out: Tensor,
) -> None:
    for name, tensor in (("y_scale", y_scale), ("x1_offset", x1_offset), ("y_offset", y_offset)):
        _must(tensor is None or 0 in tensor.shape, f"not emulated: {name}")
    _absent(x2_offset=x2_offset)
    _must(not (transpose1 or transpose2 or group), "transposed or grouped operands: not emulated")
    _must((x1.dtype.name, x2.dtype.name) == ("i8", "i8"), f"{x1} and {x2}: only int8 is emulated")
    (rows, inner), (other, columns) = x1.shape, x2.shape
    _must(inner == other, f"K of {x1} and {x2}")
    _must(x2_scale.shape in ((1,), (columns,)), f"scale {x2_scale} for {columns} columns")
    product = x1.value().astype(np.float64) @ x2.value().astype(np.float64)  # exact: K 127^2 < 2^53
    product *= x2_scale.value()
    if x1_scale is not None:
        _must(x1_scale.shape == (rows,), f"per-token scale {x1_scale} for {rows} rows")
        product *= x1_scale.value()[:, None]
    if bias is not None:
        _must(bias.shape == (columns,), f"bias {bias} for {columns} columns")
        product += bias.value()
    out.write(product)


@answers(
    "aclnnWeightQuantBatchMatmulV2",
    "x weight scale offset quant_scale quant_offset bias group:int out",
)
def _weight_quant_matmul(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    quant_scale: Tensor | None,
    quant_offset: Tensor | None,
    bias: Tensor | None,
    group: int,
    out: Tensor,
) -> None:
    _absent(quant_scale=quant_scale, quant_offset=quant_offset, bias=bias)
    _must(x.dtype.name in ("f16", "bf16") and scale.dtype == x.dtype, f"x {x} with scale {scale}")
    codes = unpacked_int4(weight) if weight.dtype.name == "i32" else weight.value().astype(np.float64)
    inner, columns = codes.shape
    _must(x.shape[-1] == inner, f"K of {x} and weight {weight}")
    groups = -(-inner // group) if group else 1
    _must(group == 0 or (group % 32 == 0 and 32 <= group < inner), f"a group of {group} for K={inner}")
    shapes = ((groups, columns),) if group else ((columns,), (1, columns), (1,), (1, 1))
    _must(scale.shape in shapes, f"scale {scale}: one of the shapes {shapes}")
    _must(offset is None or (offset.shape == scale.shape and offset.dtype == scale.dtype), f"offset {offset}")
    of_row = np.arange(inner) // (group or inner)
    steps = scale.value().reshape(-1, scale.shape[-1])[of_row]
    if offset is not None:
        codes = codes + offset.value().reshape(-1, scale.shape[-1])[of_row]
    out.write(x.value() @ (codes * steps))


def unpacked_int4(weight: Tensor) -> np.ndarray:
    """f64 [K, N] of int32 [K, N / 8]: eight codes in a word, the lowest bits first."""
    words = weight.value().view(np.uint32)
    nibbles = (words[..., None] >> np.arange(0, 32, 4, dtype=np.uint32)) & 0xF
    return (nibbles.astype(np.int8).reshape(words.shape[0], -1).astype(np.float64) + 8) % 16 - 8


@answers(
    "aclnnScatterPaKvCache",
    "key key_cache slots value value_cache lens offsets seq_lens mode:text scatter:text strides starts",
)
def _scatter_pa_kv_cache(
    key: Tensor,
    key_cache: Tensor,
    slots: Tensor,
    value: Tensor | None,
    value_cache: Tensor | None,
    lens: Tensor | None,
    offsets: Tensor | None,
    seq_lens: Tensor | None,
    mode: str | None,
    scatter: str | None,
    strides: _Lengths,
    starts: _Lengths,
) -> None:
    _absent(lens=lens, offsets=offsets, seq_lens=seq_lens)
    _must(mode == "Norm", f"cache_mode {mode!r}: only 'Norm' is emulated")
    for rows, cache in ((key, key_cache), (value, value_cache)):
        if rows is None or cache is None:
            raise EmulationError("keys without values: not emulated")
        _must(rows.dtype == cache.dtype == key.dtype, f"{rows} into {cache}")
        _must(rows.is_dense and cache.is_dense, f"{rows} into {cache}: only dense arrays are served")
        _must(rows.shape[:2] == key.shape[:2] and rows.shape[1:] == cache.shape[2:], f"{rows} into {cache}")
        blocks, size = cache.shape[:2]
        at = numbers(slots, blocks * size)
        _must(at.shape == (rows.shape[0],) and len(np.unique(at)) == len(at), f"slots {slots} for {rows}")
        cache.raw().reshape(blocks * size, *cache.shape[2:])[at] = rows.raw()


_FIA = (
    "query key value pse mask q_lens kv_lens deq_scale1 quant_scale1 deq_scale2 quant_scale2 quant_offset2 "
    "antiquant_scale antiquant_offset block_table query_padding kv_padding key_scale key_offset value_scale "
    "value_offset key_prefix value_prefix prefix_len "
)
_FIA_ATTRIBUTES = (
    "heads:int scale:double pre:int next:int layout:text kv_heads:int sparse:int precise:int block_size:int "
    "antiquant_mode:int want_lse:bool key_mode:int value_mode:int "
)


_FIA_ROPE = "query_rope key_rope key_rope_scale "


def _answers_attention(operator: str, signature: str) -> None:
    names = [word.partition(":")[0] for word in signature.split()]

    @answers(operator, signature)
    def answer(*arguments: object) -> None:
        _Attention(dict(zip(names, arguments, strict=True))).run()


# V3, which torch_npu takes from CANN 8.2 on, has the rotary parts of latent attention.
_answers_attention("aclnnFusedInferAttentionScoreV2", f"{_FIA}{_FIA_ATTRIBUTES}out lse")
_answers_attention("aclnnFusedInferAttentionScoreV3", f"{_FIA}{_FIA_ROPE}{_FIA_ATTRIBUTES}out lse")


class _Attention:
    """Layout TND over pages: q [T, N, D], K and V [blocks, size, N_kv * D], the end of each sequence's queries, and the
    length of its keys."""

    _served = (
        *("query", "key", "value", "mask", "q_lens", "kv_lens", "block_table", "key_scale", "value_scale"),
        *(word.partition(":")[0] for word in _FIA_ATTRIBUTES.split()),
        *("out", "lse"),
    )

    def __init__(self, arguments: dict[str, object]) -> None:
        _absent(**{name: value for name, value in arguments.items() if name not in self._served})
        self._arguments = arguments
        self.query: Tensor = self._tensor("query")
        self.key, self.value = (self._only(name) for name in ("key", "value"))
        self.heads, self.kv_heads = int(arguments["heads"]), int(arguments["kv_heads"])  # type: ignore[call-overload]
        self.sparse, self.size = int(arguments["sparse"]), int(arguments["block_size"])  # type: ignore[call-overload]
        self._check()

    def _tensor(self, name: str) -> Tensor:
        tensor = self._arguments[name]
        if not isinstance(tensor, Tensor):
            raise EmulationError(f"{name} is missing: only paged TND is emulated")
        return tensor

    def _only(self, name: str) -> Tensor:
        tensors = self._arguments[name]
        assert isinstance(tensors, tuple)
        _must(len(tensors) == 1, f"a list of several {name}s: not emulated")
        tensor: Tensor = tensors[0]
        return tensor

    def _check(self) -> None:
        a, query, table = self._arguments, self.query, self._tensor("block_table")
        _must(a["layout"] == "TND", f"input_layout {a['layout']!r}: only TND is emulated")
        tokens, heads, dim = query.shape
        _must(query.dtype.name in ("f16", "bf16"), f"query {query}")
        _must(heads == self.heads, f"num_heads={self.heads} for query {query}")
        _must(self.kv_heads > 0 and heads % self.kv_heads == 0, f"{heads} heads over {self.kv_heads}")
        _must(heads // self.kv_heads <= _MOST_GROUP and heads <= _MOST_HEADS, f"{heads} heads over {self.kv_heads}")
        _must(dim % 16 == 0 and dim <= _MOST_DIM, f"a head of {dim}")
        _must(self.key.shape == self.value.shape, f"key {self.key} and value {self.value}")
        _must(len(self.key.shape) == 3 and self.key.shape[1] == self.size, f"block_size={self.size} for {self.key}")
        _must(self.key.shape[2] == self.kv_heads * dim, f"{self.kv_heads} heads of {dim} in {self.key}")
        _must(self.size % _BLOCK_MULTIPLE == 0 and self.size <= _LARGEST_BLOCK, f"block_size={self.size}")
        ends, lens = self._lengths("q_lens"), self._lengths("kv_lens")
        _must(len(ends) == len(lens) == table.shape[0], f"{len(ends)}, {len(lens)} sequences, and table {table}")
        _must(all(np.diff((0, *ends)) >= 0) and ends[-1] == tokens, f"q lengths {ends} of {tokens} tokens")
        _must(table.dtype.name == "i32", f"block_table {table}: i32 is wanted")
        _must(
            table.shape[1] * self.size >= max(lens, default=0), f"block_table {table} for {max(lens, default=0)} keys"
        )
        _must(self.sparse in (_CAUSAL, _NO_MASK), f"sparse_mode {self.sparse}: not emulated")
        self._check_mask()
        self._check_codes(max(np.diff((0, *ends))))

    def _lengths(self, name: str) -> _Lengths:
        lengths = self._arguments[name]
        if not isinstance(lengths, tuple):
            raise EmulationError(f"{name} is missing")
        return lengths

    def _check_mask(self) -> None:
        mask = self._arguments["mask"]
        if self.sparse == _NO_MASK:
            _must(mask is None, "a mask of the caller's own: not emulated")
            return
        side = _COMPRESSED_MASK
        if not isinstance(mask, Tensor) or mask.shape != (side, side) or mask.dtype.name not in ("i8", "u8", "bool"):
            raise EmulationError(f"mask {mask}: sparse_mode 3 wants [{side}, {side}] of int8, uint8 or bool")
        _must(np.array_equal(mask.raw() != 0, np.triu(np.ones((side, side), bool), 1)), "mask is not causal")

    def _check_codes(self, longest: int) -> None:
        a, modes = self._arguments, (self._arguments["key_mode"], self._arguments["value_mode"])
        if self.key.dtype.name != "i8":
            _must(self.key.dtype == self.value.dtype == self.query.dtype, f"{self.query} over {self.key}")
            _must(a["key_scale"] is None and a["value_scale"] is None, "scales of keys that have none")
            return
        _must(modes == (_PER_TOKEN_HEAD_PAGED,) * 2, f"antiquant modes {modes}: only 5 is emulated")
        _must(longest <= 1, f"{longest} queries over int8 pages: one is served")
        shape = (self.key.shape[0], self.kv_heads, self.size)
        for name in ("key_scale", "value_scale"):
            scale = self._tensor(name)
            _must(scale.shape == shape and scale.dtype.name == "f32", f"{name} {scale}: f32{list(shape)} is wanted")

    def run(self) -> None:
        a, out, lse = self._arguments, self._tensor("out"), self._tensor("lse")
        table, start = self._tensor("block_table").value(), 0
        query, written = self.query.value(), np.zeros(out.shape)
        logs = np.zeros(self.query.shape[:2])
        for at, (end, count) in enumerate(zip(self._lengths("q_lens"), self._lengths("kv_lens"), strict=True)):
            used = table[at, : -(-count // self.size)].astype(np.int64)
            _must(not used.size or (used.min() >= 0 and used.max() < self.key.shape[0]), f"blocks {used}")
            if end > start:
                keys, values = (self._pages(name, used)[:count] for name in ("key", "value"))
                written[start:end], logs[start:end] = self._sequence(query[start:end], keys, values)
            start = end
        out.write(written)
        if a["want_lse"]:
            lse.write(logs.reshape(lse.shape))

    def _pages(self, name: str, used: np.ndarray) -> np.ndarray:
        """f64 [S, N_kv, D] of some blocks."""
        pages = self.key if name == "key" else self.value
        dim = self.query.shape[2]
        blocks = _rows(pages, used).reshape(len(used), self.size, self.kv_heads, dim)
        if pages.dtype.name == "i8":
            blocks = blocks * _rows(self._tensor(f"{name}_scale"), used).transpose(0, 2, 1)[..., None]
        return blocks.reshape(len(used) * self.size, self.kv_heads, dim)

    def _sequence(self, query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        group, scale = self.heads // self.kv_heads, float(self._arguments["scale"])  # type: ignore[arg-type]
        n, count = len(query), len(keys)
        if count == 0:
            return np.zeros_like(query), np.full(query.shape[:2], math.inf)
        scores = np.einsum("nhd,shd->hns", query, np.repeat(keys, group, axis=1)) * scale
        hidden = np.zeros((n, count), bool)
        if self.sparse == _CAUSAL:
            hidden = np.arange(count) > np.arange(n)[:, None] + (count - n)
        scores = np.where(hidden, -math.inf, scores)
        empty = hidden.all(-1)
        with np.errstate(invalid="ignore"):
            weights = softmax(scores, -1)
            top = scores.max(-1)
            logs = top + np.log(np.exp(scores - top[..., None]).sum(-1))
        # What a value adds that no query may see is 0, whatever it holds: its weight is 0 and it is not read.
        weights = np.where(hidden, 0.0, weights)
        clean = np.where(np.isfinite(values), values, 0.0) if hidden.any() else values
        out = np.einsum("hns,shd->nhd", weights, np.repeat(clean, group, axis=1))
        repaired = int(self._arguments["precise"]) & _REPAIR_EMPTY_ROWS  # type: ignore[call-overload]
        out[empty] = 0.0 if repaired else math.nan
        logs[:, empty] = math.inf
        return out, logs.T


def _rows(tensor: Tensor, rows: np.ndarray) -> np.ndarray:
    """Values of some of a tensor's rows, without reading those of the others."""
    return widened(tensor.raw()[rows], tensor.dtype)
