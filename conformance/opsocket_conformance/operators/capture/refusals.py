"""What a capture refuses, because a replay could not do it: the exact error, and a graph that still replays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np

from opsocket.operators import AttentionBatch, ContractError, Graph, OpsocketError
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Check
from opsocket_conformance.operators.attention.knobs import Attention
from opsocket_conformance.operators.attention.scene import build, fill
from opsocket_conformance.operators.capture.recording import record, replay


@dataclass(eq=False)
class _Captured:
    """A captured decode step of four requests. run: the step again, by the keyword arguments of `run` given."""

    bench: Bench
    plan: Any
    batch: AttentionBatch
    graph: Graph
    run: Callable[..., Any]

    @contextmanager
    def refused(self, argument: str) -> Iterator[None]:
        try:
            yield
        except ContractError as error:
            if error.argument != argument:
                self.bench.fail(f"wanted a ContractError about {argument!r}, got one about {error.argument!r}: {error}")
        except OpsocketError as error:
            self.bench.fail(f"wanted a ContractError about {argument!r}, got {type(error).__name__}: {error}")
        else:
            self.bench.fail(f"nothing was raised, wanted a ContractError about {argument!r}")


def _no_output(step: _Captured) -> None:
    """A replay writes where the captured run wrote: an output that the kernel makes has no place."""
    with step.bench.session.capture(), step.refused("out"):
        step.run()


def _update_inside(step: _Captured) -> None:
    """A replay knows one batch of each plan: the second would stand for both."""
    with step.bench.session.capture(), step.refused("batch"):
        step.plan.update(step.batch)


def _more_rows(step: _Captured) -> None:
    with step.refused("q"):
        step.plan.update(replace(step.batch, q_indptr=np.array([0, 1, 2, 3, 5], np.int32)))


def _more_sequences(step: _Captured) -> None:
    table = np.asarray(step.batch.block_table)
    with step.refused("q_indptr"):
        step.plan.update(
            AttentionBatch(
                np.array([0, 1, 2, 3, 4, 4], np.int32),
                np.append(step.batch.kv_lens, 1).astype(np.int32),
                np.concatenate([table, table[:1]]),
            )
        )


def _nested(step: _Captured) -> None:
    with step.bench.session.capture(), step.refused("capture"), step.bench.session.capture():
        step.bench.fail("a capture began inside another")


def _replay_inside(step: _Captured) -> None:
    with step.bench.session.capture(), step.refused("graph"):
        step.graph.replay()


def _after_an_error(step: _Captured) -> None:
    """A block that ended with an error leaves nothing that could be replayed."""
    graph = step.bench.session.capture()
    with step.refused("out"), graph:
        step.run()
    with step.refused("graph"):
        graph.replay()


REFUSALS: Final[Mapping[str, Callable[[_Captured], None]]] = {
    "no_output": _no_output,
    "update_inside": _update_inside,
    "more_rows": _more_rows,
    "more_sequences": _more_sequences,
    "nested": _nested,
    "replay_inside": _replay_inside,
    "after_an_error": _after_an_error,
}


@dataclass(frozen=True)
class CaptureRefusal(Check):
    """breach: a name in `REFUSALS`. dtype: of the activations."""

    name: ClassVar[str] = "capture_refusal"
    shown: ClassVar[tuple[str, ...]] = ("breach", "dtype")

    breach: str = "no_output"
    dtype: str = "bf16"

    @property
    def operator(self) -> str:
        return "capture"

    def features(self) -> frozenset[str]:
        return frozenset({"op:attention", f"dtype:{self.dtype}", "cache:same", "capture", "deterministic"})

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        scene = build(Attention(q=self.dtype, batch="tail"), rng)
        request = replace(scene.request, spec=replace(scene.spec, deterministic=True))
        plan: Any = bench.plan(request, scene.batch)
        kv, _, _ = fill(bench, scene)
        q = bench.put("q", scene.q, self.dtype)
        out = bench.out("out", (len(scene.q), scene.spec.num_q_heads, scene.spec.head_dim_vo), self.dtype)
        graph, _ = record(bench, [plan], lambda: bench.run(plan, q, kv, out=out))
        before = bench.bits(out)
        REFUSALS[self.breach](_Captured(bench, plan, scene.batch, graph, lambda **outs: bench.run(plan, q, kv, **outs)))
        if plan.batch is not scene.batch:
            bench.fail("the refused batch stayed in the plan")
        replay(bench, graph, out)
        bench.same_bits("the graph replayed after the refusal", out, before)
