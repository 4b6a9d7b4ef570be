"""Which faults a case could see: from its inputs and the oracle alone, before any backend has answered.

A case earns credit for a knob where the noise that E allows in the matched filter of that knob's fault is small
(`Filtered.credited`). Knobs with a value have a small fault (`perturbations`); the others a gross one, named here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from opsocket_conformance.case import Case
from opsocket_conformance.findings import Float64, matched_filter
from opsocket_conformance.operators.attention.knobs import Attention, perturbations
from opsocket_conformance.operators.attention.oracle import Problem, attention
from opsocket_conformance.operators.attention.scene import Scene, build
from opsocket_conformance.operators.attention.tolerance import tolerance
from opsocket_conformance.operators.cache import under_test as caches


def gross_perturbations(problem: Problem, page: int) -> Iterator[tuple[str, Problem]]:
    """The same problem with the wrong keys, heads, mask or numbers. page: tokens by which pages are off by one."""
    spec = problem.spec
    if spec.mask == "full":
        yield "mask: full read as causal", replace(problem, spec=replace(spec, mask="causal", window_right=None))
    elif spec.mask == "causal":
        yield "mask: causal read as full", replace(problem, spec=replace(spec, mask="full"))
    else:
        yield "mask: tree read as causal", replace(problem, spec=replace(spec, mask="causal"))
    if spec.num_kv_heads > 1:
        keys, values = ([np.roll(part, 1, axis=1) for part in parts] for parts in (problem.keys, problem.values))
        yield "heads: of the next group", replace(problem, keys=keys, values=values)
    else:
        yield "heads: the next one", replace(problem, q=np.roll(problem.q, 1, axis=1))
    if any(len(part) for part in problem.keys):
        rolled = [_shifted(parts, page) for parts in (problem.keys, problem.values)]
        yield "pages: off by one", replace(problem, keys=rolled[0], values=rolled[1])
    if problem.quantized:
        larger = [[1.05 * part for part in parts] for parts in (problem.keys, problem.values)]
        yield "cache: scales +5%", replace(problem, keys=larger[0], values=larger[1])


def _shifted(parts: Iterable[Float64], by: int) -> list[Float64]:
    """Tokens of all requests, in a row, moved on by some."""
    held = list(parts)
    joined = np.roll(np.concatenate(held), by, axis=0)
    return np.split(joined, np.cumsum([len(part) for part in held])[:-1])


def credit(case: Case, seed: int = 0) -> dict[str, float]:
    """The noise of every fault's filter in an attention case; faults that change nothing in it are left out."""
    check = case.check
    if not isinstance(check, Attention):
        raise TypeError(f"credit is defined for attention, not for {check.name}")
    with np.errstate(all="ignore"):
        scene = build(check, case.rng(seed))
        problem = scene.problem(*_held(scene))
        out, lse = attention(problem)
        bounds = tolerance(problem, out, lse).out
        noise: dict[str, float] = {}
        for knob, perturbed in (*perturbations(problem), *gross_perturbations(problem, check.bs or 1)):
            reading = matched_filter(out, out, attention(perturbed)[0], bounds)
            if reading is not None:
                noise[knob] = reading.noise
    return noise


def is_blind(noise: Mapping[str, float], credited_below: float = 0.1) -> bool:
    """Whether a case could see something change, and none of it well enough to be believed."""
    return bool(noise) and min(noise.values()) >= credited_below


def _held(scene: Scene) -> tuple[list[Float64], list[Float64]]:
    """Keys and values as a cache holds them, by the pinned quantizer."""
    keys, values = ([part.astype(np.float64) for part in parts] for parts in (scene.keys, scene.values))
    cache = scene.request.cache
    if cache is None or not scene.keys or not any(f is not None and f.is_quantized for f in (cache.k, cache.v)):
        return keys, values
    k, v = np.concatenate(scene.keys), np.concatenate(scene.values)
    cuts = np.cumsum([len(part) for part in keys])[:-1]
    stored = caches.expected(cache, k, v, caches.calibrate(cache, k, v))
    split = [np.split(part.values, cuts) for part in stored]
    return split[0], split[-1]
