"""The rest of a decoder."""

from __future__ import annotations

from collections.abc import Iterator

from opsocket_conformance.case import Case, Tier
from opsocket_conformance.cases.attention import DTYPES
from opsocket_conformance.checks.model import Add, MoERoute, RMSNorm, Rope, SiluMul, TakeRows
from opsocket_conformance.checks.sampling import Argmax, Sample


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        yield from _norms(dtype)
        yield from _ropes(dtype)
        for width, t in ((536, 7), (1, 1), (33, 0), (4864, 3)):
            tier: Tier = "smoke" if width == 536 else "default"
            yield Case(SiluMul(t, dtype, width), 0, tier)
            yield Case(Add(t, dtype, width), 0, tier)
        yield Case(SiluMul(7, dtype, x="wide"))
        yield Case(SiluMul(7, dtype, strided=True))
        yield Case(TakeRows(7, dtype), 0, "smoke")
        for x in ("normal", "ties", "peaky"):
            for experts, k, renormalize in ((23, 4, True), (8, 2, False), (128, 8, True), (5, 5, False), (3, 1, True)):
                check = MoERoute(7, dtype, experts, k, renormalize, x)
                yield Case(check, 0, "smoke" if (experts, x) == (23, "normal") else "default")
        for x in ("normal", "ties", "infinite"):
            yield Case(Argmax(dtype=dtype, x=x), 0, "smoke" if x == "ties" else "default")
        yield Case(Argmax(2, 49152, dtype))
        yield Case(Argmax(1, 1, dtype))
        for how in ("plain", "greedy", "top_k", "top_p", "min_p", "penalties", "all"):
            yield Case(Sample(dtype=dtype, how=how), 0, "smoke" if how == "all" else "default")
        for draw in range(1, 6):
            yield Case(Sample(23, 97, dtype), draw)


def _norms(dtype: str) -> Iterator[Case]:
    yield Case(RMSNorm(7, dtype), 0, "smoke")
    yield Case(RMSNorm(7, dtype, residual=True), 0, "smoke")
    for x in ("small", "outlier"):
        yield Case(RMSNorm(7, dtype, x=x))
        yield Case(RMSNorm(5, dtype, 896, residual=True, x=x))
    yield Case(RMSNorm(7, dtype, 64, heads=5), 0, "smoke")
    yield Case(RMSNorm(7, dtype, 128, heads=3, strided=True))
    yield Case(RMSNorm(7, dtype, strided=True))
    yield Case(RMSNorm(3, dtype, 8192, eps=1e-6))
    yield Case(RMSNorm(2, dtype, 1))
    yield Case(RMSNorm(0, dtype))


def _ropes(dtype: str) -> Iterator[Case]:
    for interleaved in (False, True):
        yield Case(Rope(7, dtype, interleaved=interleaved), 0, "smoke")
        for scaling in ("linear", "llama3", "yarn"):
            yield Case(Rope(11, dtype, 5, 128, theta=500000.0, interleaved=interleaved, scaling=scaling, far=8000))
        yield Case(Rope(7, dtype, 3, 96, 32, interleaved=interleaved))
        yield Case(Rope(7, dtype, factors=True, interleaved=interleaved))
        yield Case(Rope(7, dtype, 2, 80, theta=1e6, interleaved=interleaved, far=131071))
        yield Case(Rope(7, dtype, strided=True, interleaved=interleaved))
    yield Case(Rope(7, dtype, far=1048575))
    yield Case(Rope(7, dtype, 1, 2))
    yield Case(Rope(3, dtype, 2, 64, 2))
