"""Capture's cases: every operator alone, a step with many batches, and what must be refused."""

from __future__ import annotations

from collections.abc import Iterator

from opsocket_conformance.case import Case, Tier
from opsocket_conformance.operators.activations import DTYPES
from opsocket_conformance.operators.capture.calls import Capture
from opsocket_conformance.operators.capture.fast import CaptureFast
from opsocket_conformance.operators.capture.refusals import REFUSALS, CaptureRefusal
from opsocket_conformance.operators.capture.steps import BATCHES, CaptureStep
from opsocket_conformance.preconditions.calls import CALLS


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for chain in ("attention", "layer"):
            for batch in BATCHES:
                tier: Tier = "smoke" if (chain, batch) == ("layer", "decode") else "default"
                yield Case(CaptureStep(chain, batch, q=dtype), 0, tier)
            for kv in ("i8.token_head", "i4.token_head", "f8e4m3fn"):
                yield Case(CaptureStep(chain, q=dtype, kv=kv))
            yield Case(CaptureStep(chain, hq=9, hkv=3, d=128, bs=1, q=dtype))
        yield Case(CaptureStep(hq=16, hkv=1, d=576, dv=512, q=dtype, latent=True))
        yield from (Case(Capture(call, dtype)) for call in CALLS)
    for dtype in ("bf16", "f16"):
        yield Case(CaptureFast(q=dtype))
        yield Case(CaptureFast(hq=32, hkv=8, d=128, q=dtype, lse=True))
        yield Case(CaptureFast(q=dtype, kv="i8.token_head"))
        yield Case(CaptureFast(hq=16, hkv=1, d=576, dv=512, q=dtype, latent=True))
    yield Case(CaptureFast(q="bf16", sinks=True))
    yield from (Case(CaptureRefusal(breach)) for breach in REFUSALS)
