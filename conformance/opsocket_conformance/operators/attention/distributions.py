"""Queries, keys and values that make faults visible: each distribution kills faults that no other does.

Logits below are meant after scaling with the case's scale, which is 1.25 / sqrt(D), so that a hard-coded scale shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from opsocket_conformance.operators.attention.batches import Row

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Heads:
    """hq, hkv: query and KV heads; d, dv: head sizes; dtype: of the activations; reach: window_left, or None; block:
    tokens of a page; cap: the softcap, or None."""

    hq: int
    hkv: int
    d: int
    dv: int
    dtype: str
    reach: int | None
    block: int
    cap: float | None


@dataclass(eq=False)
class Tensors:
    """q f64[T, Hq, D]; keys, values: per request f64[kv_len, Hkv, D]; not yet rounded to a type."""

    q: Float64
    keys: list[Float64]
    values: list[Float64]


def draw(kind: str, rng: np.random.Generator, heads: Heads, rows: Sequence[Row]) -> Tensors:
    """Numbers for one batch, from the distribution that `kind` names in `DISTRIBUTIONS`."""
    tokens = sum(row.q_len for row in rows)
    tensors = Tensors(
        rng.standard_normal((tokens, heads.hq, heads.d)),
        [rng.standard_normal((row.kv_len, heads.hkv, heads.d)) for row in rows],
        [rng.standard_normal((row.kv_len, heads.hkv, heads.dv)) for row in rows],
    )
    DISTRIBUTIONS[kind](tensors, rng, heads, rows)
    return tensors


def _normal(t: Tensors, rng: np.random.Generator, heads: Heads, rows: Sequence[Row]) -> None:
    """Logits of standard deviation 1.25."""


def _flat(t: Tensors, rng: np.random.Generator, heads: Heads, rows: Sequence[Row]) -> None:
    """Nearly equal probabilities: the output is a mean, and a key too many or too few shows in all of it."""
    t.q *= 0.04


def _peaky(t: Tensors, rng: np.random.Generator, heads: Heads, rows: Sequence[Row]) -> None:
    """Logits of standard deviation 4: a few keys matter, and the scale does."""
    t.q *= 3.2


def _large(t: Tensors, rng: np.random.Generator, heads: Heads, rows: Sequence[Row]) -> None:
    """Logits of +-150: beyond f32's exp without the maximum taken off."""
    t.q *= 40


def _offset(t: Tensors, rng: np.random.Generator, heads: Heads, rows: Sequence[Row]) -> None:
    """All logits of a row far from 0 on one side, far above or far below, by a head-dependent amount."""
    direction = rng.choice([-1.0, 1.0], heads.d)
    sign = np.where(np.arange(heads.hq) % 2 == 0, 1.0, -1.0)[:, None]
    t.q += 3.0 * sign * direction
    for keys in t.keys:
        keys += 3.0 * direction


def _onehot(t: Tensors, rng: np.random.Generator, heads: Heads, rows: Sequence[Row]) -> None:
    """V of key j is 1 in channel j (mod D, shifted by head), 0 elsewhere: the output names the keys that were seen."""
    for values in t.values:
        count = len(values)
        values[...] = 0.0
        for head in range(heads.hkv):
            values[np.arange(count), head, (np.arange(count) + 5 * head) % heads.dv] = 1.0


def _needle(t: Tensors, rng: np.random.Generator, heads: Heads, rows: Sequence[Row]) -> None:
    """One key per KV head holds nearly all probability, and sits at a boundary: first, last seen, last, either side of
    a page edge, either side of the window's edge; where it must not be seen, seeing it changes everything."""
    direction = rng.standard_normal((heads.hkv, heads.d))
    direction *= np.sqrt(heads.d) / np.linalg.norm(direction, axis=1, keepdims=True)
    t.q *= 0.3
    t.q += 3.0 * np.repeat(direction, heads.hq // heads.hkv, axis=0)
    reach = 0 if heads.reach is None else heads.reach
    for number, (row, keys) in enumerate(zip(rows, t.keys, strict=True)):
        if not row.kv_len:
            continue
        last_seen = row.kv_len - 1 - row.ahead
        edge = last_seen // heads.block * heads.block
        places = (0, last_seen, row.kv_len - 1, edge - 1, edge, last_seen - reach, last_seen - reach - 1)
        keys *= 0.3
        for head in range(heads.hkv):
            place = places[(number + head) % len(places)] % row.kv_len
            keys[place, head] += 3.0 * direction[head]


def _cancel(t: Tensors, rng: np.random.Generator, heads: Heads, rows: Sequence[Row]) -> None:
    """Values of alternating sign, 30 times larger than their weighted sum."""
    t.q *= 0.04
    for values in t.values:
        values += 30.0 * np.where(np.arange(len(values)) % 2 == 0, 1.0, -1.0)[:, None, None]


def _saturate(t: Tensors, rng: np.random.Generator, heads: Heads, rows: Sequence[Row]) -> None:
    """Logits of twice the softcap: tanh is deep in its bend."""
    t.q *= 1.6 * (30.0 if heads.cap is None else heads.cap)


def _denormal(t: Tensors, rng: np.random.Generator, heads: Heads, rows: Sequence[Row]) -> None:
    """Values a little above the smallest normal number of their type, so that their shares lie below it; far enough
    above what hardware may flush to 0 that an output of zeros shows."""
    for values in t.values:
        values *= 2.0**-15 if heads.dtype == "f16" else 2.0**-122


DISTRIBUTIONS: Final[Mapping[str, Callable[[Tensors, np.random.Generator, Heads, Sequence[Row]], None]]] = {
    "normal": _normal,
    "flat": _flat,
    "peaky": _peaky,
    "large": _large,
    "offset": _offset,
    "onehot": _onehot,
    "needle": _needle,
    "cancel": _cancel,
    "saturate": _saturate,
    "denormal": _denormal,
}
"""How the numbers of an attention case are drawn, by name."""
