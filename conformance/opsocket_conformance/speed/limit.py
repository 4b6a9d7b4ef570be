"""What the memory gives: the rate that the times of cases are held against, measured in the same run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from opsocket.operators import AddSpec, MatmulSpec, OpsocketError, Request, Session, TakeRowsSpec
from opsocket.quantization import get_format
from opsocket_conformance.operators.matmul.random_weights import random_weight
from opsocket_conformance.speed.moved import bytes_moved
from opsocket_conformance.speed.timing import Call, seconds_per_call

ASSUMED_CACHE: Final = 64 << 20
"""Bytes of a last-level cache that is not told."""
_LARGEST: Final = 512 << 20
_BUDGET_S: Final = 0.2
_WIDTH: Final = 4096
_TYPES: Final = ("bf16", "f16", "f32")


@dataclass(frozen=True)
class Limit:
    """gb_s: the best rate that anything reached, None where nothing could be measured. by: what reached it.
    cache_bytes: of the last-level cache. cache_by: "detected" on the host, or "assumed"."""

    gb_s: float | None
    by: str
    cache_bytes: int
    cache_by: str


def measure_limit(session: Session) -> Limit:
    """The best of `take_rows`, `add` and a one-row `matmul` on arrays larger than the cache, and on host devices of a
    plain NumPy read. An operator that is not supported, or for which memory does not suffice, is left out."""
    on_host = _is_host(session)
    told = _told_cache() if on_host else None
    cache_bytes = told or ASSUMED_CACHE
    size = min(max(ASSUMED_CACHE, 2 * cache_bytes), _LARGEST)
    best, by = None, "nothing could be measured"
    for name, start in _candidates(size, on_host):
        try:
            call, moved = start(session)
            (seconds,) = seconds_per_call([call], synchronize=session.synchronize, budget_s=_BUDGET_S)
            rate = moved / seconds / 1e9
        except OpsocketError:
            continue
        if best is None or rate > best:
            best, by = rate, name
    return Limit(best, by, cache_bytes, "detected" if told else "assumed")


def _candidates(size: int, on_host: bool) -> Iterator[tuple[str, Callable[[Session], tuple[Call, int]]]]:
    if on_host:
        yield "a plain NumPy read", partial(_numpy_read, size=size)
    for dtype in _TYPES:
        for name, start in (("take_rows", _take_rows), ("add", _add), ("one-row matmul", _matmul)):
            yield f"{name}, {dtype}, through the session", partial(start, dtype=dtype, size=size)


def _numpy_read(session: Session, size: int) -> tuple[Call, int]:
    return np.ones(size // 4, np.float32).max, size


def _take_rows(session: Session, dtype: str, size: int) -> tuple[Call, int]:
    x = _filled(session, dtype, size)
    rows = session.upload(np.arange(session.describe(x).shape[0], dtype=np.int64))
    return _prepared(session, Request(TakeRowsSpec(_WIDTH, dtype)), (x, rows))


def _add(session: Session, dtype: str, size: int) -> tuple[Call, int]:
    return _prepared(session, Request(AddSpec(_WIDTH, dtype)), tuple(_filled(session, dtype, size) for _ in range(2)))


def _matmul(session: Session, dtype: str, size: int) -> tuple[Call, int]:
    n = size // _WIDTH // (4 if dtype == "f32" else 2)
    request = Request(MatmulSpec(dtype, n, _WIDTH, dtype, dtype))
    session.plan(request)  # refused before a weight is made
    few = random_weight(np.random.default_rng(0), get_format(dtype), 64, _WIDTH)["weight"]
    packed = session.prepare_weight(request, {"weight": np.resize(few, (n, _WIDTH))})
    return _prepared(session, request, (session.upload(np.ones((1, _WIDTH), np.float32), dtype), packed))


def _filled(session: Session, dtype: str, size: int) -> Any:
    return session.upload(np.ones((size // _WIDTH // (4 if dtype == "f32" else 2), _WIDTH), np.float32), dtype)


def _prepared(session: Session, request: Request, args: tuple[Any, ...]) -> tuple[Call, int]:
    plan: Any = session.plan(request)
    result = plan.run(*args)
    moved = bytes_moved(session, plan, args, {}, result)
    return partial(plan.run, *args, **({"out": result} if session.in_place else {})), moved


def _is_host(session: Session) -> bool:
    array = session.empty((1,), "f32")
    return isinstance(array, np.ndarray) or session.describe(array).device.startswith("cpu")


def _told_cache() -> int | None:
    """Bytes of the largest cache that Linux lists."""
    units = {"K": 1 << 10, "M": 1 << 20}
    texts = (path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    sizes = [int(match[1]) * units[match[2]] for text in texts if (match := re.fullmatch(r"(\d+)([KM])", text))]
    return max(sizes, default=None)
