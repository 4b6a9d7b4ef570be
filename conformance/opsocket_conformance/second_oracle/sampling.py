"""From logits to tokens as ONNX primitives: the six steps of `SampleSpec`, on sorted probabilities."""

from __future__ import annotations

from functools import cache

import numpy as np

from opsocket.operators import SampleBatch
from opsocket_conformance.second_oracle.answer import Float64, Part
from opsocket_conformance.second_oracle.evaluators import Evaluator
from opsocket_conformance.second_oracle.graph import Graph, Tensor, Writer


def argmax(evaluate: Evaluator, logits: Float64) -> tuple[Part, ...]:
    """logits f64[B, V] -> i64[B], exactly."""
    (ids,) = evaluate(_argmax(), logits=logits)
    return (Part("ids", ids),)


@cache
def _argmax() -> Graph:
    g = Writer()
    return g.finish(ids=_first_largest(g.input("logits", "f64")))


def _first_largest(logits: Tensor) -> Tensor:
    return logits.writer("ArgMax", logits, dtype="i64", axis=-1, keepdims=0, select_last_index=0)


def sample(evaluate: Evaluator, logits: Float64, batch: SampleBatch, row: int) -> tuple[Part | None, ...]:
    """The token of one request, logits f64[V]. How near the next decision was is not asked here."""
    history = slice(int(batch.history_indptr[row]), int(batch.history_indptr[row + 1]))
    per_request = ("temperature", "top_p", "min_p", "uniform", "repetition", "presence", "frequency")
    inputs: dict[str, np.generic] = {name: np.float64(getattr(batch, name)[row]) for name in per_request}
    greedy = inputs["temperature"] == 0
    if greedy:
        inputs = {name: inputs[name] for name in ("repetition", "presence", "frequency")}
    else:
        inputs["top_k"] = np.int64(batch.top_k[row] or len(logits))
    (token,) = evaluate(
        _sample(bool(greedy)),
        logits=logits,
        ids=np.asarray(batch.history_ids[history], np.int64),
        counts=np.asarray(batch.history_counts[history], np.float64),
        **inputs,
    )
    return Part("token", token), None


@cache
def _sample(greedy: bool) -> Graph:
    """Probabilities in falling order, ties in the order of their indices; each step keeps a prefix of what it is
    given, and `kept` is what is left of them, the rest 0."""
    g = Writer()
    logits = _penalized(g)
    if greedy:
        return g.finish(token=_first_largest(logits))

    scaled = logits / g.input("temperature", "f64")
    everything = g("Shape", scaled, dtype="i64")
    falling, order = g.many("TopK", scaled, everything, dtypes=("f64", "i64"), axis=-1, largest=1, sorted=1)
    power = g("Exp", falling - falling.part(0, 0, 1))
    rank = g("Range", 0, g("Squeeze", everything), 1, dtype="i64")
    kept = g("Where", rank < g.input("top_k", "i64"), power, 0.0)

    top_p = g.input("top_p", "f64")
    before = g("CumSum", kept, g.constant(0, "i64"), exclusive=1)
    is_short = before < top_p * g("ReduceSum", kept, [0], keepdims=1)
    kept = g("Where", is_short | (top_p >= 1.0), kept, 0.0)

    kept = g("Where", power >= g.input("min_p", "f64"), kept, 0.0)

    reached = g("CumSum", kept, g.constant(0, "i64"))
    exceeds = reached > g.input("uniform", "f64") * g("ReduceSum", kept, [0], keepdims=1)
    first = g("ArgMax", exceeds.cast("i64"), dtype="i64", axis=0, keepdims=0, select_last_index=0)
    return g.finish(token=g("Gather", order, first, axis=0))


def _penalized(g: Writer) -> Tensor:
    """Repetition, then frequency and presence, over the ids of the history."""
    logits, ids, counts = g.input("logits", "f64"), g.input("ids", "i64"), g.input("counts", "f64")
    repetition = g.input("repetition", "f64")
    seen = g("Gather", logits, ids, axis=0)
    seen = g("Where", seen > 0.0, seen / repetition, seen * repetition)
    seen = seen - g.input("frequency", "f64") * counts - g.input("presence", "f64")
    return g("ScatterElements", logits, ids, seen, axis=0)
