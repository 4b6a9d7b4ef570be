"""What goes wrong where a cache is written: where tokens go, and how they are quantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from opsocket.operators import Cache, KVFormat
from opsocket_conformance.power.cache_access import (
    INTEGER,
    PLAIN,
    TOKEN_HEAD,
    Slots,
    Tokens,
    alike,
    all_slots,
    arguments,
    contents,
    divided,
    is_static,
    key_format,
    lower_code,
    nearest_code,
    put,
    static_scale,
    stored_as,
    true_scale,
)
from opsocket_conformance.power.fault import Fault, Hook
from opsocket_conformance.power.host import Float64, on_host, rounded, truncated

Step = Callable[..., Any]


def _same(value: Any, *others: Any) -> Any:
    return value


def _wrote(then: Step) -> Hook:
    """The right write, and then `then(plan, cache, before, slots, given)` -> (slots, tokens) over it, or None.
    before: every slot's tokens as they were. slots, given: of the kept tokens."""

    def run(plan: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        session, call = plan.session, arguments(plan, args, kwargs)
        cache = call["cache"]
        before = contents(session, cache, all_slots(cache)) if isinstance(cache, Cache) else None
        result = plan.right(*args, **kwargs)
        slots = np.asarray(plan.batch.slots)
        given = Tokens(on_host(session, call["k"]), on_host(session, call["v"]))
        kept = np.flatnonzero(slots >= 0)
        after = then(plan, result, before, slots[kept], given.rows(kept), given)
        return result if after is None or not len(after[0]) else put(session, result, *after)

    return run


def _values(change: Step) -> Hook:
    """Other values are stored: change(x, format, static scale, plan's session)."""

    def then(plan: Any, cache: Cache, before: Tokens, slots: Slots, kept: Tokens, given: Tokens) -> Any:
        k = change(kept.k, cache.spec.k, static_scale(plan.session, cache, "k"))
        v = None if kept.v is None else change(kept.v, cache.spec.v, static_scale(plan.session, cache, "v"))
        return slots, Tokens(k, v)

    return _wrote(then)


def quantized(scale: Step = true_scale, code: Step = nearest_code, held: Step = _same, divide: Step = divided) -> Hook:
    """The pinned quantizer, each step of which can be replaced. held: the scale as it is stored."""

    def change(x: Float64, fmt: KVFormat, static: Float64 | None) -> Float64:
        if not fmt.is_quantized:
            return x
        used = scale(x, fmt, static)
        return np.asarray(code(divide(x, used), fmt) * held(used, fmt))

    return _values(change)


def _elsewhere(where: Step) -> Hook:
    """Tokens go to where(slots, spec), and their own slots stay as they were."""

    def then(plan: Any, cache: Cache, before: Tokens, slots: Slots, kept: Tokens, given: Tokens) -> Any:
        put(plan.session, cache, slots, before.rows(slots))
        target, first = np.unique(where(slots, cache.spec), return_index=True)
        return target, kept.rows(first)

    return _wrote(then)


def _free(count: int, slots: Slots, cache: Cache) -> Slots:
    return np.setdiff1d(all_slots(cache), slots)[:count]


def _skipped_too(plan: Any, cache: Cache, before: Tokens, slots: Slots, kept: Tokens, given: Tokens) -> Any:
    skipped = np.flatnonzero(np.asarray(plan.batch.slots) < 0)
    free = _free(len(skipped), slots, cache)
    return free, given.rows(skipped[: len(free)])


def _padding_too(plan: Any, cache: Cache, before: Tokens, slots: Slots, kept: Tokens, given: Tokens) -> Any:
    padding = np.arange(len(plan.batch.slots), len(given.k))
    free = _free(len(padding), slots, cache)
    return free, given.rows(padding[: len(free)])


def _left(which: Step) -> Hook:
    """which(tokens, slots): parts of what is written, as views, that stay as they were."""

    def then(plan: Any, cache: Cache, before: Tokens, slots: Slots, kept: Tokens, given: Tokens) -> Any:
        old, new = before.rows(slots), kept.rows(slice(None))
        for part, was in ((new.k, old.k), (new.v, old.v)):
            if part is not None:
                which(part)[...] = which(was)
        return slots, new

    return _wrote(then)


def _rest_of_blocks(change: Step) -> Step:
    """The other tokens of every block that is written to."""

    def then(plan: Any, cache: Cache, before: Tokens, slots: Slots, kept: Tokens, given: Tokens) -> Any:
        size = cache.spec.block_size
        rest = np.setdiff1d(all_slots(cache)[np.isin(all_slots(cache) // size, slots // size)], slots)
        old = before.rows(rest)
        return rest, Tokens(change(old.k), None if old.v is None else change(old.v))

    return then


def _next_slot_too(plan: Any, cache: Cache, before: Tokens, slots: Slots, kept: Tokens, given: Tokens) -> Any:
    beside = np.isin(slots + 1, np.setdiff1d(all_slots(cache), slots))
    return slots[beside] + 1, kept.rows(beside)


def _both_from_k(plan: Any, cache: Cache, before: Tokens, slots: Slots, kept: Tokens, given: Tokens) -> Any:
    return slots, Tokens(kept.k, kept.k)


def _exchanged(plan: Any, cache: Cache, before: Tokens, slots: Slots, kept: Tokens, given: Tokens) -> Any:
    assert kept.v is not None
    return slots, Tokens(kept.v, kept.k)


def _keys_scale_for_values(plan: Any, cache: Cache, before: Tokens, slots: Slots, kept: Tokens, given: Tokens) -> Any:
    k, v = (static_scale(plan.session, cache, name) for name in "kv")
    assert k is not None
    assert v is not None
    assert kept.v is not None
    assert cache.spec.v is not None
    return slots, Tokens(kept.k, nearest_code(divided(kept.v, k), cache.spec.v) * v)


def _one_scale_for_all_heads(x: Float64, fmt: KVFormat, static: Float64 | None) -> Float64:
    scale = true_scale(x, fmt, static)
    return np.broadcast_to(scale.max(axis=1, keepdims=True), scale.shape)


def _rolled_scale(axis: int) -> Step:
    return lambda scale, fmt: np.roll(scale, 1, axis=axis)


def _plus(step: float) -> Step:
    return lambda x, fmt, static: true_scale(x, fmt, static) + step


def _wrapping(quotient: Float64, fmt: KVFormat) -> Float64:
    half = fmt.max_code + 1
    return np.asarray((np.rint(quotient) + half) % (2 * half) - half)


def _half_up(quotient: Float64, fmt: KVFormat) -> Float64:
    return np.clip(np.floor(quotient + 0.5), -fmt.max_code, fmt.max_code)


def _half_away(quotient: Float64, fmt: KVFormat) -> Float64:
    return np.clip(np.trunc(quotient + np.copysign(0.5, quotient)), -fmt.max_code, fmt.max_code)


def _overflow_to_nan(quotient: Float64, fmt: KVFormat) -> Float64:
    return np.where(np.abs(quotient) > fmt.max_code, np.nan, nearest_code(quotient, fmt))


def _flushed(quotient: Float64, fmt: KVFormat) -> Float64:
    return np.where(np.abs(quotient) < 2.0**-6, 0.0, nearest_code(quotient, fmt))


def _reciprocal_in_f16(x: Float64, scale: Float64) -> Float64:
    return np.asarray(x * rounded(np.where(scale == 0, 0.0, 1 / np.where(scale == 0, 1.0, scale)), "f16"))


def round_scale(scale: Float64, fmt: KVFormat) -> Float64:
    """As the format stores it."""
    return rounded(scale, fmt.scale_dtype)


def _write(name: str, wrong: str, run: Hook, where: Any = None, *telling: str) -> Fault:
    hooks = {"telling": telling} | ({} if where is None else {"where": where})
    return Fault("cache_write", name=f"cache_write: {name}", category="cache", wrong=wrong, run=run, **hooks)


FAULTS: Final[tuple[Fault, ...]] = (
    _write("-1 is written too", "a negative slot counts from the end", _wrote(_skipped_too)),
    _write("padding rows written", "as many tokens as k has rows", _wrote(_padding_too)),
    _write("slots off by one", "slot + 1", _elsewhere(lambda slots, spec: (slots + 1) % spec.num_slots)),
    _write(
        "block off by one",
        "the block before",
        _elsewhere(lambda slots, spec: (slots - spec.block_size) % spec.num_slots),
    ),
    _write(
        "block and offset exchanged",
        "offset * blocks + block",
        _elsewhere(lambda slots, spec: slots % spec.block_size * spec.num_blocks + slots // spec.block_size),
    ),
    _write(
        "blocks of 16",
        "the block size is a constant",
        _elsewhere(lambda slots, spec: (slots // 16 * spec.block_size + slots % 16) % spec.num_slots),
        lambda r: r.cache.block_size != 16,
        "bs=24",
        "bs=128",
    ),
    _write("tokens in slot order", "sorted for better writes", _elsewhere(lambda slots, spec: np.sort(slots))),
    _write("neighbour slot touched", "stores of two tokens at once", _wrote(_next_slot_too)),
    _write("rest of the block zeroed", "a block is set up anew at each write", _wrote(_rest_of_blocks(np.zeros_like))),
    _write(
        "rest of the block rounded",
        "a block is read, requantized and written",
        _wrote(_rest_of_blocks(lambda x: rounded(x * 1.001, "bf16"))),
    ),
    _write("last head not written", "Hkv - 1", _left(lambda part: part[:, -1:])),
    _write(
        "last channels not written",
        "a vector loop of 32 without its tail",
        _left(lambda part: part[..., part.shape[-1] // 32 * 32 :]),
        None,
        "d=80",
        "d=88",
    ),
    _write("last channel not written", "D - 1", _left(lambda part: part[..., -1:])),
    _write("tokens beyond 32 not written", "one tile of tokens", _left(lambda part: part[32:])),
    _write("last token not written", "T - 1", _left(lambda part: part[-1:])),
    _write("V written from K", "one pointer for both", _wrote(_both_from_k), alike),
    _write("K and V exchanged", "two pointers the other way round", _wrote(_exchanged), alike),
    _write(
        "K's scale for V", "one scale for both", _wrote(_keys_scale_for_values), lambda r: is_static(r) and alike(r)
    ),
    _write(
        "truncated to 16 bits",
        "the upper half of the f32",
        _values(lambda x, fmt, s: x if fmt.is_quantized else truncated(x, fmt.code)),
        PLAIN,
    ),
    _write("stored through bf16", "k and v are rounded to bf16 first", _values(lambda x, fmt, s: rounded(x, "bf16"))),
    _write("stored through f16", "k and v are rounded to f16 first", _values(lambda x, fmt, s: rounded(x, "f16"))),
    _write(
        "NaN dropped",
        "a maximum that ignores NaN",
        _values(lambda x, fmt, s: np.nan_to_num(x, nan=0.0)),
        lambda r: not INTEGER(r),
    ),
    _write(
        "amax / 128",
        "the range of two's complement",
        quantized(lambda x, f, s: round_scale(np.abs(x).max(-1, keepdims=True) / (f.max_code + 1), f)),
        stored_as("i8", "i4", granularity="token_head"),
    ),
    _write(
        "scale rounded up to a power of two",
        "a shift instead of a division",
        quantized(lambda x, f, s: np.exp2(np.ceil(np.log2(np.maximum(true_scale(x, f, s), 1e-30))))),
        TOKEN_HEAD,
    ),
    _write(
        "scale by the largest value",
        "max without abs",
        quantized(lambda x, f, s: round_scale(np.maximum(x.max(-1, keepdims=True), 2.0**-20) / f.max_code, f)),
        TOKEN_HEAD,
    ),
    _write("one scale for all heads", "amax of the whole token", quantized(_one_scale_for_all_heads), TOKEN_HEAD),
    _write(
        "scale in f16",
        "half precision where f32 is asked for",
        quantized(lambda x, f, s: rounded(true_scale(x, f, s), "f16")),
        lambda r: TOKEN_HEAD(r) and key_format(r).scale_dtype == "f32",
    ),
    _write(
        "scale used before it is rounded",
        "codes by an f32 scale of which f16 is stored",
        quantized(
            lambda x, f, s: np.abs(x).max(-1, keepdims=True) / f.max_code, held=lambda s, f: rounded(s, f.scale_dtype)
        ),
        lambda r: TOKEN_HEAD(r) and key_format(r).scale_dtype == "f16",
    ),
    _write(
        "scale 1 % off",
        "a margin against saturation",
        quantized(lambda x, f, s: 1.01 * true_scale(x, f, s)),
        TOKEN_HEAD,
    ),
    _write("scale plus 1e-4", "a guard against division by zero", quantized(_plus(1e-4)), TOKEN_HEAD),
    _write("scale of the neighbour head", "one index off", quantized(held=_rolled_scale(1)), TOKEN_HEAD),
    _write("scale of the neighbour token", "one index off", quantized(held=_rolled_scale(0)), TOKEN_HEAD),
    _write(
        "static scale of the neighbour",
        "one head or channel off",
        quantized(
            lambda x, f, s: np.roll(s, 1, axis=-2 if f.granularity == "head" else -1),
            held=lambda s, f: np.roll(s, -1, axis=-2 if f.granularity == "head" else -1),
        ),
        lambda r: key_format(r).granularity in ("head", "channel"),
    ),
    _write(
        "first static scale for all",
        "granularity tensor is assumed",
        quantized(lambda x, f, s: np.broadcast_to(s.reshape(-1)[0], s.shape), held=_same),
        lambda r: key_format(r).granularity in ("head", "channel"),
    ),
    _write("static scale ignored", "scale 1", quantized(lambda x, f, s: np.ones((1, 1, 1))), is_static),
    _write(
        "multiplied by the scale",
        "instead of divided",
        quantized(lambda x, f, s: 1 / s, held=lambda s, f: 1 / s),
        is_static,
    ),
    _write("reciprocal in f16", "x times 1 / scale in half precision", quantized(divide=_reciprocal_in_f16)),
    _write(
        "codes truncated",
        "a conversion that cuts off",
        quantized(code=lower_code),
        lambda r: key_format(r).is_quantized,
    ),
    _write("half up", "floor(x + 1/2)", quantized(code=_half_up), INTEGER),
    _write("ties away from zero", "rounded as C's round does", quantized(code=_half_away), INTEGER),
    _write("codes wrap", "no saturation", quantized(code=_wrapping), lambda r: INTEGER(r) and is_static(r)),
    _write(
        "fp8 overflow becomes NaN",
        "a conversion that does not saturate",
        quantized(code=_overflow_to_nan),
        lambda r: key_format(r).code.startswith("f8") and is_static(r),
    ),
    _write("fp8 subnormals flushed", "below 2^-6 nothing is kept", quantized(code=_flushed), stored_as("f8e4m3fn")),
    _write(
        "fp8 of the other bias",
        "FN stored as FNUZ",
        quantized(code=lambda q, f: nearest_code(q / 2, f)),
        stored_as("f8e4m3fn"),
    ),
    _write(
        "zero tokens give NaN",
        "0 / 0",
        _values(lambda x, fmt, s: np.where((x == 0).all(-1, keepdims=True), fmt.max_code, x)),
        TOKEN_HEAD,
    ),
)
