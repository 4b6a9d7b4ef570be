"""Negative tests: a broken precondition gives the exact error, names the argument, and changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from opsocket.operators import Cache, ContractError, OpsocketError
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Check
from opsocket_conformance.findings import Host
from opsocket_conformance.operators.cache import under_test as caches
from opsocket_conformance.preconditions.breaches import BREACHES
from opsocket_conformance.preconditions.calls import CALLS, Call


@dataclass(frozen=True)
class Negative(Check):
    """call: a name in `CALLS`. breach: a name in `BREACHES[call]`. dtype: of the activations."""

    name: ClassVar[str] = "negative"
    shown: ClassVar[tuple[str, ...]] = ("call", "breach", "dtype")

    call: str = "attention"
    breach: str = "q_dtype"
    dtype: str = "bf16"

    @property
    def operator(self) -> str:
        return "attention" if self.call.startswith("attention") else self.call

    def features(self) -> frozenset[str]:
        extra = {"attention_contiguous": {"contiguous"}, "attention_tree": {"tree", "window", "sinks", "alibi", "lse"}}
        return frozenset({f"op:{self.operator}", f"dtype:{self.dtype}"} | extra.get(self.call, set()))

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        call = CALLS[self.call](bench, rng, self.dtype)
        plan: Any = bench.plan(call.request, call.batch)
        bench.run(plan, **_given(call.args))  # a test that is broken to begin with would prove nothing
        before = _written(bench, call)
        breach = BREACHES[self.call][self.breach]
        valid = call.batch
        broken = Call(call.request, call.batch, dict(call.args), call.caches, dict(call.tensors or {}))
        breach.change(bench, broken)
        try:
            if breach.when == "prepare":
                bench.session.prepare_weight(call.request, broken.tensors or {})
            elif breach.when == "update":
                plan.update(broken.batch)
            else:
                plan.run(**_given(broken.args))
        except ContractError as error:
            if type(error) is not ContractError or error.argument != breach.argument:
                bench.fail(f"wanted a ContractError about {breach.argument!r}, got {type(error).__name__}: {error}")
        except OpsocketError as error:
            bench.fail(f"wanted a ContractError about {breach.argument!r}, got {type(error).__name__}: {error}")
        else:
            bench.fail(f"nothing was raised, wanted a ContractError about {breach.argument!r}")
        if plan.batch is not valid:
            bench.fail("the refused batch stayed in the plan")
        for index, (now, then) in enumerate(zip(_written(bench, call), before, strict=True)):
            bench.same(f"output or cache number {index}, after the refusal", now, then)


def _given(args: dict[str, Any]) -> dict[str, Any]:
    """Without `out` where there is none: it is keyword-only, and some operators have none."""
    return {name: value for name, value in args.items() if name != "out" or value is not None}


def _written(bench: Bench, call: Call) -> list[Host]:
    """Contents of everything that the call may write to."""
    contents: list[Host] = []
    out: Any = call.args.get("out")
    if out is not None:
        contents.append(bench.bits(out))
    for cache in call.caches:
        contents += _slots(bench, cache)
    return contents


def _slots(bench: Bench, cache: Cache) -> list[Host]:
    return [part.view(np.uint64) for part in caches.read(bench, cache, np.arange(cache.spec.num_slots))]
