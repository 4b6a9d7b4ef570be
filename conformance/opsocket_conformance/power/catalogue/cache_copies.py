"""What goes wrong where a cache is read, and where its tokens and blocks are copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from opsocket.operators import BlockPairs, Cache, MoveBatch
from opsocket_conformance.power.cache_access import (
    INTEGER,
    TOKEN_HEAD,
    Slots,
    Tokens,
    alike,
    all_slots,
    arguments,
    contents,
    has_values,
    key_format,
    put,
    stored_as,
)
from opsocket_conformance.power.fault import Fault, Hook
from opsocket_conformance.power.host import Float64, rounded, stored, truncated

Step = Callable[..., Any]


def _same(value: Any, *others: Any) -> Any:
    return value


# ---- cache_read


def _read_of(pick: Step = _same, change: Step = lambda k, v, fmt: (k, v)) -> Hook:
    """pick(slots, spec): what is read instead. change(k, v, dtype): what is made of it."""

    def run(plan: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        session, cache = plan.session, arguments(plan, args, kwargs)["cache"]
        result = plan.right(*args, **kwargs)
        slots = np.asarray(plan.batch.slots)
        if not len(slots):
            return result
        tokens = contents(session, cache, pick(slots, cache.spec))
        values = change(tokens.k, tokens.v, plan.request.spec.dtype)
        k, v = (None if a is None else stored(session, a, b) for a, b in zip(result, values, strict=True))
        return k, v

    return run


def _each(change: Step) -> Step:
    return lambda k, v, dtype: (change(k, dtype), None if v is None else change(v, dtype))


def _deduplicated(slots: Slots, spec: Any) -> Slots:
    first = np.sort(np.unique(slots, return_index=True)[1])
    return np.concatenate([slots[first], slots[: len(slots) - len(first)]])


def _read(name: str, wrong: str, run: Hook, where: Any = None) -> Fault:
    hooks = {} if where is None else {"where": where}
    return Fault("cache_read", name=f"cache_read: {name}", category="cache", wrong=wrong, run=run, **hooks)


_READ: Final = (
    _read("in slot order", "sorted for better reads", _read_of(lambda slots, spec: np.sort(slots))),
    _read("slots deduplicated", "each slot is read once", _read_of(_deduplicated)),
    _read("slot + 1", "one off", _read_of(lambda slots, spec: (slots + 1) % spec.num_slots)),
    _read(
        "block and offset exchanged",
        "offset * blocks + block",
        _read_of(lambda slots, spec: slots % spec.block_size * spec.num_blocks + slots // spec.block_size),
    ),
    _read(
        "clamped before the last slot",
        "min(slot, slots - 2)",
        _read_of(lambda slots, spec: np.minimum(slots, spec.num_slots - 2)),
    ),
    _read("the first slot for all", "a stride of 0", _read_of(lambda slots, spec: slots * 0)),
    _read("heads rolled", "one head off", _read_of(change=_each(lambda x, dtype: np.roll(x, 1, axis=1)))),
    _read("V from K", "one pointer for both", _read_of(change=lambda k, v, dtype: (k, k)), alike),
    _read("K and V exchanged", "two pointers the other way round", _read_of(change=lambda k, v, dtype: (v, k)), alike),
    _read(
        "read through bf16",
        "two roundings",
        _read_of(change=_each(lambda x, dtype: rounded(x, "bf16"))),
        lambda r: r.spec.dtype != "bf16",
    ),
    _read(
        "read through f16",
        "two roundings, and the range of f16",
        _read_of(change=_each(lambda x, dtype: rounded(x, "f16"))),
    ),
    _read("truncating store", "the upper half of the f32", _read_of(change=_each(truncated))),
    _read(
        "FN read as FNUZ",
        "the other bias of the same bits",
        _read_of(change=_each(lambda x, dtype: x / 2)),
        stored_as("f8e4m3fn"),
    ),
    _read(
        "NaN becomes 0",
        "a conversion without NaN",
        _read_of(change=_each(lambda x, dtype: np.nan_to_num(x))),
        lambda r: not INTEGER(r),
    ),
    _read(
        "scales 0.4 % off", "code * amax / 127.5", _read_of(change=_each(lambda x, dtype: x * 127 / 127.5)), TOKEN_HEAD
    ),
    _read(
        "channels of a byte exchanged",
        "the high nibble first",
        _read_of(change=_each(lambda x, dtype: x.reshape(*x.shape[:-1], -1, 2)[..., ::-1].reshape(x.shape))),
        stored_as("i4"),
    ),
    _read(
        "last token not written", "S - 1", _read_of(change=_each(lambda x, dtype: np.concatenate([x[:-1], 0 * x[-1:]])))
    ),
    _read(
        "tokens beyond 64 not written",
        "one tile of tokens",
        _read_of(change=_each(lambda x, dtype: np.where(np.arange(len(x))[:, None, None] < 64, x, 0.0))),
    ),
)


# ---- cache_move, cache_copy_blocks


def _as_asked(src: Slots, dst: Slots, within: bool) -> tuple[Slots, Slots]:
    return src, dst


def _moved(pairs: Step = _as_asked, then: Step = lambda session, call, src, dst, before: None) -> Hook:
    """pairs(src, dst, within): what is moved instead, slot by slot. then(session, call, src, dst, before): what is done
    to the caches afterwards; before: the destination's contents. Serves whole blocks too, by the pairs' blocks."""

    def run(plan: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        session, call = plan.session, arguments(plan, args, kwargs)
        before = contents(session, call["dst"], all_slots(call["dst"]))
        right, batch = plan.batch, plan.batch
        columns = batch.pairs.T if isinstance(batch, BlockPairs) else (batch.src_slots, batch.dst_slots)
        src, dst = pairs(*(np.asarray(column) for column in columns), call["src"] is call["dst"])
        changed = BlockPairs(np.stack([src, dst], axis=1)) if isinstance(batch, BlockPairs) else MoveBatch(src, dst)
        plan.inner.update(changed)
        try:
            result = plan.right(*args, **kwargs)
        finally:
            plan.inner.update(right)
        then(session, {**call, "dst": result}, *(np.asarray(column) for column in columns), before)
        return result

    return run


def _one_by_one(step: int) -> Step:
    """Moved one after the other, so that what is overwritten is moved on."""

    def pairs(src: Slots, dst: Slots, within: bool) -> tuple[Slots, Slots]:
        held: dict[int, int] = {}
        source = src.copy()
        for i in range(len(src))[::step]:
            source[i] = held.get(int(src[i]), int(src[i])) if within else src[i]
            held[int(dst[i])] = int(source[i])
        return source, dst

    return pairs


def _exchanged_ends(src: Slots, dst: Slots, within: bool) -> tuple[Slots, Slots]:
    target, first = np.unique(src, return_index=True)
    inside = dst[first] <= src.max()
    return dst[first][inside], target[inside]


def _expand(dst: Slots, cache: Cache, blocks: bool) -> Slots:
    size = cache.spec.block_size
    return (dst[:, None] * size + np.arange(size)).ravel() if blocks else dst


def _kept(part: Step, blocks: bool) -> Step:
    """part(tokens): what of the moved tokens stays as it was at the destination, as views."""

    def then(session: Any, call: Any, src: Slots, dst: Slots, before: Tokens) -> None:
        at = _expand(dst, call["dst"], blocks)
        new, old = contents(session, call["dst"], at), before.rows(at)
        for now, was in zip(part(new, call["dst"]), part(old, call["dst"]), strict=True):
            if now is not None:
                now[...] = was
        put(session, call["dst"], at, new)

    return then


def _scales_left(blocks: bool) -> Step:
    """Codes are moved, the scales of the tokens that lay there stay."""

    def then(session: Any, call: Any, src: Slots, dst: Slots, before: Tokens) -> None:
        at = _expand(dst, call["dst"], blocks)
        new, old = contents(session, call["dst"], at), before.rows(at)

        def scaled(now: Float64, was: Float64) -> Float64:
            size, other = (np.abs(x).max(-1, keepdims=True) for x in (now, was))
            return np.asarray(now * other / np.where(size == 0, 1.0, size))

        v = None if new.v is None or old.v is None else scaled(new.v, old.v)
        put(session, call["dst"], at, Tokens(scaled(new.k, old.k), v))

    return then


def _source_cleared(session: Any, call: Any, src: Slots, dst: Slots, before: Tokens) -> None:
    gone = src if call["src"] is not call["dst"] else np.setdiff1d(src, dst)
    gone = np.unique(gone)
    if len(gone):
        old = contents(session, call["src"], gone)
        put(session, call["src"], gone, Tokens(0 * old.k, None if old.v is None else 0 * old.v))


def _through(dtype: str) -> Step:
    def then(session: Any, call: Any, src: Slots, dst: Slots, before: Tokens) -> None:
        new = contents(session, call["dst"], dst)
        put(session, call["dst"], dst, Tokens(rounded(new.k, dtype), None if new.v is None else rounded(new.v, dtype)))

    return then


def _move(name: str, wrong: str, run: Hook, where: Any = None) -> Fault:
    hooks = {} if where is None else {"where": where}
    return Fault("cache_move", name=f"cache_move: {name}", category="cache", wrong=wrong, run=run, **hooks)


def _copy(name: str, wrong: str, run: Hook, where: Any = None) -> Fault:
    hooks = {} if where is None else {"where": where}
    return Fault(
        "cache_copy_blocks", name=f"cache_copy_blocks: {name}", category="cache", wrong=wrong, run=run, **hooks
    )


def _not_first(count: int) -> Step:
    return lambda src, dst, within: (src[:count], dst[:count])


_MOVE: Final = (
    _move("one by one, forwards", "no buffer", _moved(_one_by_one(1))),
    _move("one by one, backwards", "no buffer", _moved(_one_by_one(-1))),
    _move("ends exchanged", "from dst to src", _moved(_exchanged_ends)),
    _move("moves beyond 32 dropped", "one tile of tokens", _moved(_not_first(32))),
    _move("last move dropped", "N - 1", _moved(_not_first(-1))),
    _move("first source for all", "a stride of 0", _moved(lambda src, dst, within: (src[:1].repeat(len(src)), dst))),
    _move("destination + 1", "one off", _moved(lambda src, dst, within: (src, np.roll(dst, 1)))),
    _move("source cleared", "moved instead of copied", _moved(then=_source_cleared)),
    _move("V left behind", "only K's plane", _moved(then=_kept(lambda t, cache: (t.v,), False)), has_values),
    _move("last head left behind", "Hkv - 1", _moved(then=_kept(lambda t, cache: (t.k[:, -1:],), False))),
    _move(
        "last channels left behind",
        "a vector loop without its tail",
        _moved(then=_kept(lambda t, cache: (t.k[..., -8:],), False)),
    ),
    _move("scales left behind", "only the planes of codes", _moved(then=_scales_left(False)), TOKEN_HEAD),
    _move(
        "by way of bf16",
        "dequantized, rounded, and quantized anew",
        _moved(then=_through("bf16")),
        lambda r: key_format(r).code != "bf16",
    ),
    _move(
        "by way of f16",
        "dequantized, rounded, and quantized anew",
        _moved(then=_through("f16")),
        lambda r: key_format(r).code != "f16",
    ),
)

_COPY: Final = (
    _copy("one by one, forwards", "no buffer", _moved(_one_by_one(1))),
    _copy("one by one, backwards", "no buffer", _moved(_one_by_one(-1))),
    _copy("ends exchanged", "from dst to src", _moved(_exchanged_ends)),
    _copy("last pair dropped", "P - 1", _moved(_not_first(-1))),
    _copy("pairs beyond 4 dropped", "one launch of 4", _moved(_not_first(4))),
    _copy("first source for all", "a stride of 0", _moved(lambda src, dst, within: (src[:1].repeat(len(src)), dst))),
    _copy("V left behind", "only K's plane", _moved(then=_kept(lambda t, cache: (t.v,), True)), has_values),
    _copy("last head left behind", "Hkv - 1", _moved(then=_kept(lambda t, cache: (t.k[:, -1:],), True))),
    _copy(
        "last token of a block left behind",
        "block size - 1",
        _moved(then=_kept(lambda t, cache: (t.k[cache.spec.block_size - 1 :: cache.spec.block_size],), True)),
    ),
    _copy(
        "tokens beyond 16 left behind",
        "the block size is a constant",
        _moved(then=_kept(lambda t, cache: (t.k.reshape(-1, cache.spec.block_size, *t.k.shape[1:])[:, 16:],), True)),
    ),
    _copy(
        "last block left behind",
        "a copy of P - 1 blocks' bytes",
        _moved(then=_kept(lambda t, cache: (t.k[-cache.spec.block_size :],), True)),
    ),
    _copy("scales left behind", "only the planes of codes", _moved(then=_scales_left(True)), TOKEN_HEAD),
)

FAULTS: Final[tuple[Fault, ...]] = _READ + _MOVE + _COPY
