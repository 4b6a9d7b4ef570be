"""Every precondition of every operator, and a way to break it: what a negative test reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from opsocket.operators import Cache, CacheSpec, Ragged
from opsocket_conformance.bench import Bench
from opsocket_conformance.operators.cache import under_test as caches
from opsocket_conformance.preconditions.calls import Call


@dataclass(frozen=True)
class Breach:
    """argument: which the ContractError must name. change: breaks the call. when: "run", "update", or "prepare" (of the
    weight)."""

    argument: str
    change: Callable[[Bench, Call], None]
    when: str = "run"


def _batch(argument: str, field: str, value: Callable[[Any], Any]) -> Breach:
    """One field of the batch replaced by a function of what it was."""

    def change(bench: Bench, call: Call) -> None:
        call.batch = replace(call.batch, **{field: value(getattr(call.batch, field))})

    return Breach(argument, change, "update")


def _arg(argument: str, make: Callable[[Bench, Any], Any], of: str = "") -> Breach:
    """One argument of `run` replaced."""
    name = of or argument

    def change(bench: Bench, call: Call) -> None:
        call.args[name] = make(bench, call.args[name])

    return Breach(argument, change)


def _arg_without_out(argument: str, make: Callable[[Bench, Any], Any]) -> Breach:
    """As `_arg`, where `out` would no longer fit either: it is the operator's to make."""

    def change(bench: Bench, call: Call) -> None:
        call.args[argument], call.args["out"] = make(bench, call.args[argument]), None

    return Breach(argument, change)


def _tensor(argument: str, make: Callable[[np.ndarray], np.ndarray | None]) -> Breach:
    """One tensor of a weight replaced, or taken away."""

    def change(bench: Bench, call: Call) -> None:
        assert call.tensors is not None
        made = make(call.tensors.pop(argument))
        if made is not None:
            call.tensors[argument] = made

    return Breach(argument, change, "prepare")


def _edited(at: Any, value: Any) -> Callable[[np.ndarray], np.ndarray]:
    def edit(array: np.ndarray) -> np.ndarray:
        array = np.array(array)
        array[at] = value
        return array

    return edit


# ---- replacements of arrays


def _none(bench: Bench, array: Any) -> None:
    return None


def _as(dtype: str) -> Callable[[Bench, Any], Any]:
    def make(bench: Bench, array: Any) -> Any:
        return bench.session.empty(bench.session.describe(array).shape, dtype)

    return make


def _other_float(bench: Bench, array: Any) -> Any:
    info = bench.session.describe(array)
    return bench.session.empty(info.shape, "f16" if info.dtype != "f16" else "f32")


def _shaped(change: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Callable[[Bench, Any], Any]:
    def make(bench: Bench, array: Any) -> Any:
        info = bench.session.describe(array)
        return bench.session.empty(change(info.shape), info.dtype)

    return make


_WIDER = _shaped(lambda s: (*s[:-1], s[-1] + 8))
_SHORTER = _shaped(lambda s: (s[0] - 1, *s[1:]))
_LONGER = _shaped(lambda s: (s[0] + 1, *s[1:]))
_FLATTER = _shaped(lambda s: (int(np.prod(s)),) if len(s) > 1 else (s[0], 1))


def _vector(length: int, dtype: str = "f32") -> Callable[[Bench, Any], Any]:
    return lambda bench, array: bench.session.empty((length,), dtype)


def _host(bench: Bench, array: Any) -> Any:
    return [1, 2, 3]


def _other_cache(bench: Bench, cache: Cache) -> Cache:
    """One block size read where another was written."""
    spec: CacheSpec = replace(cache.spec, block_size=32)
    return caches.allocate(bench, spec, cache.spec.k.code, caches.Scales(None, None))


def _other_packed(bench: Bench, packed: Any) -> Any:
    return replace(packed, n=packed.n + 8)


def _other_packed_layout(bench: Bench, packed: Any) -> Any:
    return replace(packed, layout="tiles of some other kernel")


def _ragged(**changes: Callable[[Bench, Any], Any]) -> Callable[[Bench, Any], Any]:
    def make(bench: Bench, kv: Ragged) -> Ragged:
        return kv._replace(**{name: change(bench, getattr(kv, name)) for name, change in changes.items()})

    return make


def _wrong_batch(bench: Bench, call: Call) -> None:
    call.batch = dataclasses.asdict(call.batch)


def _fewer_tokens(bench: Bench, call: Call) -> None:
    for name in ("k", "v"):
        call.args[name] = _SHORTER(bench, call.args[name])


_ATTENTION: dict[str, Breach] = {
    "batch_type": Breach("batch", _wrong_batch, "update"),
    "q_indptr_starts_late": _batch("q_indptr", "q_indptr", lambda a: a + 1),
    "q_indptr_falls": _batch("q_indptr", "q_indptr", _edited(1, 10**4)),
    "q_indptr_float": _batch("q_indptr", "q_indptr", lambda a: a.astype(np.float32)),
    "kv_lens_negative": _batch("kv_lens", "kv_lens", _edited(0, -1)),
    "kv_lens_short": _batch("kv_lens", "kv_lens", lambda a: a[:-1]),
    "kv_lens_beyond_bound": _batch("kv_lens", "kv_lens", _edited(0, 141)),
    "too_many_tokens": _batch("q_indptr", "q_indptr", _edited(-1, 10**6)),
    "q_start_short": _batch("q_start", "q_start", lambda a: np.zeros(2, np.int32)),
    "kv_start_short": _batch("kv_start", "kv_start", lambda a: np.zeros(2, np.int32)),
    "q_positions_short": _batch("q_positions", "q_positions", lambda a: np.zeros(2, np.int32)),
    "q_dtype": _arg("q", _other_float),
    "q_rank": _arg("q", _FLATTER),
    "q_head_dim": _arg("q", _WIDER),
    "q_rows": _arg_without_out("q", _SHORTER),
    "q_not_an_array": _arg("array", _host, "q"),
    "out_dtype": _arg("out", _other_float),
    "out_rows": _arg("out", _LONGER),
}

_TABLES: dict[str, Breach] = {
    "block_table_none": _batch("block_table", "block_table", lambda a: None),
    "block_table_beyond": _batch("block_table[0, 1]", "block_table", _edited((0, 1), 10**6)),
    "block_table_negative": _batch("block_table[0, 0]", "block_table", _edited((0, 0), -1)),
    "block_table_narrow": _batch("block_table", "block_table", lambda a: a[:, :1]),
    "kv_indptr_with_cache": _batch("kv_indptr", "kv_indptr", lambda a: np.zeros(6, np.int64)),
    "mask_indptr_without_tree": _batch("mask_indptr", "mask_indptr", lambda a: np.zeros(6, np.int64)),
    "kv_of_other_block_size": _arg("kv", _other_cache),
    "kv_not_a_cache": _arg("kv", _host),
    "sinks_unasked": _arg("sinks", _vector(14)),
    "alibi_unasked": _arg("alibi", _vector(14)),
    "tree_mask_unasked": _arg("tree_mask", _vector(64, "u8")),
}

BREACHES: Final[Mapping[str, Mapping[str, Breach]]] = {
    "attention": _ATTENTION | _TABLES,
    "attention_contiguous": {
        "kv_indptr_none": _batch("kv_indptr", "kv_indptr", lambda a: None),
        "kv_indptr_falls": _batch("kv_indptr", "kv_indptr", _edited(1, 10**6)),
        "kv_lens_beyond_rows": _batch("kv_lens", "kv_lens", _edited(2, 24)),
        "block_table_without_cache": _batch("block_table", "block_table", lambda a: np.zeros((5, 9), np.int32)),
        "kv_not_ragged": _arg("kv", _host),
        "k_dtype": _arg("kv.k", _ragged(k=_other_float), "kv"),
        "k_head_dim": _arg("kv.k", _ragged(k=_WIDER), "kv"),
        "k_rows": _arg("kv.k", _ragged(k=_SHORTER, v=_SHORTER), "kv"),
        "v_rows": _arg("kv.v", _ragged(v=_SHORTER), "kv"),
    },
    "attention_tree": {
        "mask_indptr_none": _batch("mask_indptr", "mask_indptr", lambda a: None),
        "mask_indptr_tight": _batch("mask_indptr", "mask_indptr", lambda a: a // 3),
        "q_positions_none": _batch("q_positions", "q_positions", lambda a: None),
        "kv_lens_below_q_len": _batch("kv_lens", "kv_lens", _edited(0, 4)),
        "tree_mask_none": _arg("tree_mask", _none),
        "tree_mask_short": _arg("tree_mask", _vector(3, "u8")),
        "tree_mask_dtype": _arg("tree_mask", _as("i8")),
        "sinks_none": _arg("sinks", _none),
        "sinks_dtype": _arg("sinks", _as("f16")),
        "sinks_length": _arg("sinks", _vector(13)),
        "alibi_none": _arg("alibi", _none),
        "alibi_length": _arg("alibi", _vector(15)),
    },
    "merge_states": {
        "outs_dtype": _arg("outs", _other_float),
        "outs_rank": _arg("outs", _FLATTER),
        "outs_head_dim": _arg("outs", _WIDER),
        "outs_no_parts": _arg("outs", _shaped(lambda s: (0, *s[1:]))),
        "lses_dtype": _arg("lses", _as("f16")),
        "lses_parts": _arg("lses", _LONGER),
        "out_rows": _arg("out", _LONGER),
    },
    "cache_write": {
        "slots_beyond": _batch("slots", "slots", _edited(0, 80)),
        "slots_below": _batch("slots", "slots", _edited(0, -2)),
        "slots_twice": _batch("slots", "slots", _edited(0, 70)),
        "slots_float": _batch("slots", "slots", lambda a: a.astype(np.float64)),
        "slots_beyond_bound": _batch("slots", "slots", lambda a: np.arange(7)),
        "k_dtype": _arg("k", _other_float),
        "k_heads": _arg("k", _shaped(lambda s: (s[0], s[1] + 1, s[2]))),
        "k_and_v_rows": Breach("k", _fewer_tokens),
        "v_none": _arg("v", _none),
        "v_rows": _arg("v", _LONGER),
        "cache_of_other_block_size": _arg("cache", _other_cache),
    },
    "cache_read": {
        "slots_skipped": _batch("slots", "slots", _edited(0, -1)),
        "slots_beyond": _batch("slots", "slots", _edited(1, 80)),
        "slots_rank": _batch("slots", "slots", lambda a: a[:, None]),
        "cache_of_other_block_size": _arg("cache", _other_cache),
    },
    "cache_move": {
        "src_skipped": _batch("src_slots", "src_slots", _edited(0, -1)),
        "dst_skipped": _batch("dst_slots", "dst_slots", _edited(0, -1)),
        "dst_twice": _batch("dst_slots", "dst_slots", _edited(0, 79)),
        "lengths_differ": _batch("dst_slots", "dst_slots", lambda a: a[:-1]),
        "dst_of_other_block_size": _arg("dst", _other_cache),
        "src_not_a_cache": _arg("src", _host),
    },
    "cache_copy_blocks": {
        "dst_twice": _batch("pairs[:, 1]", "pairs", _edited((0, 1), 4)),
        "dst_beyond": _batch("pairs[:, 1]", "pairs", _edited((0, 1), 5)),
        "pairs_rank": _batch("pairs", "pairs", lambda a: a.ravel()),
        "pairs_negative": _batch("pairs", "pairs", _edited((0, 0), -1)),
        "src_of_other_block_size": _arg("src", _other_cache),
        "dst_not_a_cache": _arg("dst", _host),
    },
    "matmul": {
        "x_dtype": _arg("x", _other_float),
        "x_width": _arg("x", _WIDER),
        "x_rows_beyond_bound": _arg("x", _LONGER),
        "packed_of_other_shape": _arg("packed", _other_packed),
        "packed_in_other_layout": _arg("packed", _other_packed_layout),
        "packed_not_packed": _arg("packed", _host),
        "bias_none": _arg("bias", _none),
        "bias_dtype": _arg("bias", _as("f16")),
        "bias_length": _arg("bias", _LONGER),
        "out_dtype": _arg("out", _other_float),
        "out_width": _arg("out", _WIDER),
        "weight_missing": _tensor("weight", lambda t: None),
        "weight_dtype": _tensor("weight", lambda t: t.astype(np.float64)),
        "weight_shape": _tensor("weight", lambda t: t.T.copy()),
    },
    "grouped_matmul": {
        "too_few_weights": _arg("packed", lambda bench, packed: packed[:-1]),
        "one_weight_of_other_shape": _arg(
            "packed[1]", lambda bench, packed: [packed[0], _other_packed(bench, packed[1]), packed[2]], "packed"
        ),
        "expert_offsets_dtype": _arg("expert_offsets", _as("i32")),
        "expert_offsets_length": _arg("expert_offsets", _SHORTER),
        "bias_unasked": _arg("bias", lambda bench, bias: bench.session.empty((3, 24), "f32")),
        "x_width": _arg("x", _WIDER),
        "out_rows": _arg("out", _LONGER),
    },
    "embedding": {
        "ids_dtype": _arg("ids", _as("i32")),
        "ids_rank": _arg("ids", _FLATTER),
        "ids_beyond_bound": _arg("ids", _vector(6, "i64")),
        "packed_of_other_shape": _arg("packed", _other_packed),
        "out_width": _arg("out", _WIDER),
    },
    "quantize_activation": {"x_dtype": _arg("x", _other_float), "x_width": _arg("x", _WIDER)},
    "rms_norm": {
        "x_dtype": _arg("x", _other_float),
        "x_width": _arg("x", _WIDER),
        "weight_dtype": _arg("weight", _as("f16")),
        "residual_none": _arg("residual", _none),
        "residual_rows": _arg("residual", _LONGER),
        "out_rows": _arg("out", _LONGER),
    },
    "rope": {
        "x_head_dim": _arg("x", _WIDER),
        "positions_dtype": _arg("positions", _as("i32")),
        "positions_length": _arg("positions", _LONGER),
        "factors_unasked": _arg("factors", _vector(32)),
        "out_rows": _arg("out", _LONGER),
    },
    "silu_mul": {
        "gate_width": _arg("gate", _WIDER),
        "up_rows": _arg("up", _LONGER),
        "out_dtype": _arg("out", _other_float),
    },
    "add": {"a_dtype": _arg("a", _other_float), "b_rows": _arg("b", _LONGER), "out_rows": _arg("out", _LONGER)},
    "take_rows": {
        "x_width": _arg("x", _WIDER),
        "rows_dtype": _arg("rows", _as("i32")),
        "rows_rank": _arg("rows", _FLATTER),
        "out_rows": _arg("out", _LONGER),
    },
    "moe_route": {"logits_width": _arg("logits", _WIDER), "logits_dtype": _arg("logits", _other_float)},
    "moe_sort": {
        "experts_dtype": _arg("experts", _as("i32")),
        "experts_rank": _arg("experts", _FLATTER),
        "experts_width": _arg("experts", _WIDER),
        "experts_not_an_array": _arg("array", _host, "experts"),
    },
    "moe_combine": {
        "x_dtype": _arg("x", _other_float),
        "x_rank": _arg("x", _FLATTER),
        "x_width": _arg("x", _WIDER),
        "slots_dtype": _arg("slots", _as("i32")),
        "slots_rank": _arg("slots", _FLATTER),
        "slots_width": _arg("slots", _WIDER),
        "weights_dtype": _arg("weights", _as("f16")),
        "weights_rank": _arg("weights", _FLATTER),
        "weights_width": _arg("weights", _WIDER),
        "weights_rows": _arg("weights", _LONGER),
        "out_dtype": _arg("out", _other_float),
        "out_width": _arg("out", _WIDER),
        "out_rows": _arg("out", _LONGER),
    },
    "argmax": {
        "logits_width": _arg("logits", _WIDER),
        "logits_dtype": _arg("logits", _other_float),
        "out_dtype": _arg("out", _as("i32")),
        "out_length": _arg("out", _LONGER),
    },
    "sample": {
        "top_p_above_1": _batch("top_p", "top_p", _edited(0, 1.5)),
        "uniform_of_1": _batch("uniform", "uniform", _edited(0, 1.0)),
        "temperature_negative": _batch("temperature", "temperature", _edited(0, -1.0)),
        "temperature_nan": _batch("temperature", "temperature", _edited(0, np.nan)),
        "top_k_negative": _batch("top_k", "top_k", _edited(0, -1)),
        "repetition_of_0": _batch("repetition", "repetition", _edited(0, 0.0)),
        "history_beyond": _batch("history_ids", "history_ids", _edited(0, 64)),
        "history_falls": _batch("history_indptr", "history_indptr", _edited(1, 9)),
        "logits_rows": _arg_without_out("logits", _LONGER),
        "out_dtype": _arg("out", _as("i32")),
    },
}
"""By the name of a call in `CALLS`, then by what is broken."""
