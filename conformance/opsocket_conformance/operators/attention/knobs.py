"""Attention against the oracle, in every combination of its knobs; and what a case's fields mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from opsocket.operators import Array, ContractError
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Check
from opsocket_conformance.findings import Float64
from opsocket_conformance.operators.attention.batches import rows_of
from opsocket_conformance.operators.attention.distributions import DISTRIBUTIONS
from opsocket_conformance.operators.attention.oracle import Problem, attention
from opsocket_conformance.operators.attention.scene import Scene, build, fill
from opsocket_conformance.operators.attention.tolerance import tolerance

COMMON_HEAD_DIMS = (64, 128)
PADDING_ROWS = 3


@dataclass(frozen=True)
class Attention(Check):
    """hq, hkv, d, dv: heads and head sizes (dv 0: as d). bs: block size, 0 for contiguous keys and values. q, kv, out:
    types of activations, cache, output ("": as q). batch: a name in `BATCHES`, or rows (`rows_of`). x: a name in
    `DISTRIBUTIONS`. left, right: window. cap: softcap. lse: ask for it. prob, exp, tanh, acc, step, deq, snk: the
    request's numerics. strided: rows of q are slices of wider ones. fresh: let the operator make its output. exact: the
    host's lengths are. layout: which of the session's. latent: V is the first dv channels of K.
    """

    name: ClassVar[str] = "attention"
    shown: ClassVar[tuple[str, ...]] = ("hq", "hkv", "d", "q", "batch", "x")

    hq: int = 14
    hkv: int = 2
    d: int = 64
    dv: int = 0
    bs: int = 16
    q: str = "bf16"
    kv: str = ""
    out: str = ""
    batch: str = "decode"
    x: str = "normal"
    mask: str = "causal"
    left: int | None = None
    right: int | None = None
    cap: float | None = None
    alibi: bool = False
    sinks: bool = False
    lse: bool = False
    prob: str = "f32"
    exp: str = "exact"
    tanh: str = "exact"
    strided: bool = False
    fresh: bool = False
    exact: bool = True
    layout: int = 0
    latent: bool = False
    acc: str = "f32"
    step: int = 1
    deq: str = "f32"
    snk: str = "f32"

    def __post_init__(self) -> None:
        rows_of(self.batch)
        if self.x not in DISTRIBUTIONS:
            raise ContractError("case.x", f"one of {sorted(DISTRIBUTIONS)}", repr(self.x))

    @property
    def operator(self) -> str:
        return "attention"

    def features(self) -> frozenset[str]:
        flags = {
            "window": self.left is not None or self.right is not None,
            "softcap": self.cap is not None,
            "alibi": self.alibi,
            "sinks": self.sinks,
            "lse": self.lse,
            "tree": self.mask == "tree",
            "full": self.mask == "full",
            "long": self.batch in ("needle", "longest"),
            "contiguous": not self.bs,
            "layout": self.layout > 0,
            "latent": self.latent,
            "mixed_cache": "+" in self.kv,
            "inexact_lengths": not self.exact,
            f"head_dim:{self.d}": self.d not in COMMON_HEAD_DIMS or self.dv not in (0, self.d),
            f"block_size:{self.bs}": self.bs not in (0, 16),
            f"out:{self.out}": self.out not in ("", self.q),
        }
        # Permission to be less exact asks nothing more of a backend: numerics are no feature.
        needs = {"op:attention", f"dtype:{self.q}", f"cache:{self.kv or 'same'}"}
        return frozenset(needs | {name for name, on in flags.items() if on})

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        scene = build(self, rng)
        run_and_judge(bench, scene, self)


def run_and_judge(bench: Bench, scene: Scene, check: Attention) -> tuple[Float64, Float64 | None]:
    """Plan, fill the cache, run once, and judge; returns the output and LSE of the rows that count."""
    _name_layout(bench, scene)
    plan = bench.plan(scene.request, scene.batch)
    kv, keys, values = fill(bench, scene)
    count, spec = int(scene.batch.q_indptr[-1]), scene.spec
    q = np.concatenate([scene.q, np.full((PADDING_ROWS, *scene.q.shape[1:]), np.nan, np.float32)])
    put = bench.put_strided if check.strided else bench.put
    kwargs = scene.operands(bench)
    if not check.fresh:
        kwargs["out"] = bench.out(
            "out", (len(q), spec.num_q_heads, spec.head_dim_vo), spec.out_dtype, strided=check.strided
        )
        if spec.want_lse:
            kwargs["lse_out"] = bench.out("lse", (len(q), spec.num_q_heads), "f32")
    out, lse = bench.run(plan, put("q", q, spec.q_dtype), kv, **kwargs)
    _check_outputs(bench, kwargs, out, lse, count, spec.want_lse)
    problem = scene.problem(keys, values)
    got = bench.get(out)[:count]
    got_lse = bench.get(lse)[:count] if lse is not None else None
    judge(bench, problem, got, got_lse)
    return got, got_lse


def _name_layout(bench: Bench, scene: Scene) -> None:
    """A request that names no layout means the session's first; another one has to be named."""
    if scene.layout and scene.request.cache is not None:
        layouts = bench.session.cache_layouts(scene.request.cache)
        if scene.layout < len(layouts):
            scene.request = replace(scene.request, layout=layouts[scene.layout])


def _check_outputs(
    bench: Bench, kwargs: dict[str, Array], out: Array, lse: Array | None, count: int, want_lse: bool
) -> None:
    if (lse is not None) != want_lse:
        bench.fail(f"lse: {'none came, the spec wants one' if want_lse else 'came unasked'}")
    bench.check_padding("out", kwargs.get("out"), out, count)
    if lse is not None:
        bench.check_padding("lse", kwargs.get("lse_out"), lse, count)


def judge(bench: Bench, problem: Problem, got: Float64, got_lse: Float64 | None) -> None:
    """Elementwise within E, and no trace of any knob's fault."""
    out, lse = attention(problem)
    bounds = tolerance(problem, out, lse)
    bench.compare("out", got, out, bounds.out)
    if got_lse is not None:
        bench.compare("lse", got_lse, lse, bounds.lse, biased=False)
    if got.shape != out.shape:
        return
    for knob, perturbed in perturbations(problem):
        bench.read_filter(knob, got, out, attention(perturbed)[0], bounds.out)


def perturbations(problem: Problem) -> Iterator[tuple[str, Problem]]:
    """The same problem with one knob a little off; what is said to be off is how far."""
    spec = problem.spec
    yield "scale +1%", replace(problem, spec=replace(spec, scale=spec.scale * 1.01))
    if spec.softcap is not None:
        yield "softcap +5%", replace(problem, spec=replace(spec, softcap=spec.softcap * 1.05))
    if problem.slopes is not None:
        yield "alibi +5%", replace(problem, slopes=problem.slopes * 1.05)
    if problem.sinks is not None:
        yield "sinks +0.05", replace(problem, sinks=problem.sinks + 0.05)
    if spec.window_left is not None:
        yield "window_left +1", replace(problem, spec=replace(spec, window_left=spec.window_left + 1))
        if spec.window_left:
            yield "window_left -1", replace(problem, spec=replace(spec, window_left=spec.window_left - 1))
    if spec.window_right is not None and spec.mask == "full":
        yield "window_right +1", replace(problem, spec=replace(spec, window_right=spec.window_right + 1))
