"""Every operator alone: captured, and replayed on other contents of the same arrays, it gives an eager run's bits."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np

from opsocket.operators import AttentionSpec, Request
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Check
from opsocket_conformance.operators.cache import under_test as caches
from opsocket_conformance.operators.capture.recording import record, replay, same
from opsocket_conformance.preconditions.calls import CALLS, Call

_CHANGED: Final = (
    "q", "k", "v", "x", "residual", "a", "b", "gate", "up", "logits", "outs", "ids", "rows", "positions",
    "experts", "slots", "weights",
)  # fmt: skip


@dataclass(frozen=True)
class Capture(Check):
    """call: a name in `CALLS`. dtype: of the activations.

    Kills: contents or addresses taken by the host when captured; a result written elsewhere by a replay; a kernel that
    is left out of the graph; a replay that adds to what is there.
    """

    name: ClassVar[str] = "capture"
    shown: ClassVar[tuple[str, ...]] = ("call", "dtype")

    call: str = "add"
    dtype: str = "bf16"

    @property
    def operator(self) -> str:
        return "capture"

    def features(self) -> frozenset[str]:
        if not self.call.startswith("attention"):
            return frozenset({f"op:{self.call}", f"dtype:{self.dtype}", "capture"})
        extra = {"attention_contiguous": {"contiguous"}, "attention_tree": {"tree", "window", "sinks", "alibi", "lse"}}
        needs = {"op:attention", f"dtype:{self.dtype}", "capture", "capture:mixed", "deterministic"}
        return frozenset(needs | extra.get(self.call, set()))

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        eager, captured = (_call(bench, deepcopy(rng), self) for _ in range(2))
        plan: Any = bench.plan(captured.request, captured.batch)
        eager_plan: Any = bench.plan(eager.request, eager.batch)
        graph, result = record(bench, [plan], lambda: bench.run(plan, **captured.args), "mixed")
        same(bench, "captured", result, bench.run(eager_plan, **eager.args))
        for turn in ("replayed", "replayed again"):
            for call in (eager, captured):
                _change(bench, call, deepcopy(rng), self.dtype)
            replay(bench, graph, [captured.args.get("out"), result])
            same(bench, turn, result, bench.run(eager_plan, **eager.args))
            for number, (ours, theirs) in enumerate(zip(captured.caches, eager.caches, strict=True)):
                same(bench, f"{turn}, cache {number}", ours, theirs)


def _call(bench: Bench, rng: np.random.Generator, check: Capture) -> Call:
    call = CALLS[check.call](bench, rng, check.dtype)
    spec = call.request.spec
    if isinstance(spec, AttentionSpec):
        call.request = Request(replace(spec, deterministic=True), call.request.cache, bounds=call.request.bounds)
        if spec.want_lse:
            rows = bench.session.describe(call.args["out"]).shape[0]
            call.args["lse_out"] = bench.out("lse", (rows, spec.num_q_heads), "f32")
    return call


def _change(bench: Bench, call: Call, rng: np.random.Generator, dtype: str) -> None:
    """The rows of every input in another order, and other tokens in every cache."""
    for name in _CHANGED:
        if (array := call.args.get(name)) is not None:
            bench.session.write(array, np.roll(bench.session.download(array), 1, axis=0))
    for cache in call.caches:
        tokens = caches.tokens(rng, cache.spec, dtype, cache.spec.num_slots)
        caches.write(bench, cache, dtype, np.arange(cache.spec.num_slots), tokens.k, tokens.v)
