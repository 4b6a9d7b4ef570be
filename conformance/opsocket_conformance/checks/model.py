"""Norm, rotary embedding, gated activation, addition, row selection and expert routing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opsocket.operators import (
    AddSpec,
    MoERouteSpec,
    Request,
    RMSNormSpec,
    RopeScaling,
    RopeSpec,
    SiluMulSpec,
    TakeRowsSpec,
)
from opsocket_conformance import tolerance
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Check
from opsocket_conformance.floats import round_to
from opsocket_conformance.oracle import model


@dataclass(frozen=True)
class _ModelCheck(Check):
    """t: rows. dtype: of the activations."""

    shown: ClassVar[tuple[str, ...]] = ("t", "dtype", "width", "heads", "d", "experts", "k")

    t: int = 7
    dtype: str = "bf16"

    @property
    def operator(self) -> str:
        return self.name

    def features(self) -> frozenset[str]:
        return frozenset({f"op:{self.operator}", f"dtype:{self.dtype}"})


@dataclass(frozen=True)
class RMSNorm(_ModelCheck):
    """width, heads (0: none), residual, eps: as in `RMSNormSpec`. x: "normal"; "small": eps decides; "outlier": one
    channel is 1000 times larger, a row is 0."""

    name: ClassVar[str] = "rms_norm"
    width: int = 576
    heads: int = 0
    residual: bool = False
    eps: float = 1e-5
    x: str = "normal"
    strided: bool = False

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        spec = RMSNormSpec(self.width, self.eps, self.dtype, self.residual, self.heads or None)
        plan = bench.plan(Request(spec))
        shape = (self.t, self.heads, self.width) if self.heads else (self.t, self.width)
        values = rng.standard_normal(shape) * {"small": 2e-3}.get(self.x, 1.0)
        if self.x == "outlier":
            values[..., 3] *= 1000
            values[-1] = 0.0
        x = round_to(values, self.dtype)
        weight = (1 + 0.3 * rng.standard_normal(self.width)).astype(np.float32)
        put = bench.put_strided if self.strided else bench.put
        args = [put("x", x, self.dtype), bench.put("weight", weight)]
        exact = x.astype(np.float64)
        if self.residual:
            residual = round_to(rng.standard_normal(shape) * 3, self.dtype)
            args.append(bench.put("residual", residual, self.dtype))
        given = bench.out("out", shape, self.dtype)
        result = bench.run(plan, *args, out=given)
        if self.residual:
            y, added = result
            total = exact + residual.astype(np.float64)
            bench.compare("x + residual", bench.get(added), total, tolerance.rounded_once(total, self.dtype))
            exact = bench.get(added)
        else:
            y = result
        bench.check_padding("out", given, y, self.t)
        want = model.rms_norm(exact, weight.astype(np.float64), self.eps)
        bench.compare("y", bench.get(y), want, tolerance.rms_norm(want, self.width, self.dtype))


_SCALINGS = {
    "linear": RopeScaling("linear", 4.0),
    "llama3": RopeScaling("llama3", 8.0, 8192, 1.0, 4.0),
    "yarn": RopeScaling("yarn", 16.0, 4096, attention_factor=1.2772588722239782),
}


@dataclass(frozen=True)
class Rope(_ModelCheck):
    """heads, d, rotary, theta, interleaved, factors: as in `RopeSpec` (rotary 0: all of d). scaling: "", "linear",
    "llama3" or "yarn". far: the largest position."""

    name: ClassVar[str] = "rope"
    heads: int = 3
    d: int = 64
    rotary: int = 0
    theta: float = 10000.0
    interleaved: bool = False
    scaling: str = ""
    factors: bool = False
    far: int = 300
    strided: bool = False

    def features(self) -> frozenset[str]:
        return super().features() | ({"long"} if self.far > 8192 else set())

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        rotary = self.rotary or self.d
        scaling = _SCALINGS[self.scaling] if self.scaling else None
        spec = RopeSpec(self.heads, self.d, rotary, self.theta, self.interleaved, scaling, self.factors, self.dtype)
        plan = bench.plan(Request(spec))
        x = round_to(rng.standard_normal((self.t, self.heads, self.d)), self.dtype)
        positions = rng.integers(0, self.far + 1, self.t)
        positions[:2] = (0, self.far)
        factors = (1 + 7 * rng.random(rotary // 2)).astype(np.float32) if self.factors else None
        put = bench.put_strided if self.strided else bench.put
        given = bench.out("out", x.shape, self.dtype)
        y = bench.run(
            plan,
            put("x", x, self.dtype),
            bench.put("positions", positions),
            None if factors is None else bench.put("factors", factors),
            out=given,
        )
        bench.check_padding("out", given, y, self.t)
        exact = None if factors is None else factors.astype(np.float64)
        want, radius, angle = model.rope(x.astype(np.float64), positions, spec, exact)
        bench.compare("y", bench.get(y), want, tolerance.rotation(want, radius, angle, self.dtype))
        rest = bench.get(y)[..., rotary:]
        bench.same("channels at or past rotary_dim", rest, x[..., rotary:].astype(np.float64))


@dataclass(frozen=True)
class SiluMul(_ModelCheck):
    """x: "normal", or "wide": gates to +-100."""

    name: ClassVar[str] = "silu_mul"
    width: int = 536
    x: str = "normal"
    strided: bool = False

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        plan = bench.plan(Request(SiluMulSpec(self.width, self.dtype)))
        spread = 40.0 if self.x == "wide" else 2.0
        gate = round_to(np.clip(rng.standard_normal((self.t, self.width)) * spread, -100, 100), self.dtype)
        up = round_to(rng.standard_normal((self.t, self.width)), self.dtype)
        put = bench.put_strided if self.strided else bench.put
        given = bench.out("out", gate.shape, self.dtype)
        y = bench.run(plan, put("gate", gate, self.dtype), put("up", up, self.dtype), out=given)
        bench.check_padding("out", given, y, self.t)
        g, u = gate.astype(np.float64), up.astype(np.float64)
        want = model.silu_mul(g, u)
        bench.compare("y", bench.get(y), want, tolerance.silu_mul(g, u, want, self.dtype))


@dataclass(frozen=True)
class Add(_ModelCheck):
    """Rounded once."""

    name: ClassVar[str] = "add"
    width: int = 576

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        plan = bench.plan(Request(AddSpec(self.width, self.dtype)))
        a, b = (round_to(rng.standard_normal((self.t, self.width)) * size, self.dtype) for size in (1.0, 5.0))
        given = bench.out("out", a.shape, self.dtype)
        y = bench.run(plan, bench.put("a", a, self.dtype), bench.put("b", b, self.dtype), out=given)
        bench.check_padding("out", given, y, self.t)
        want = a.astype(np.float64) + b.astype(np.float64)
        bench.compare("y", bench.get(y), want, tolerance.rounded_once(want, self.dtype))


@dataclass(frozen=True)
class TakeRows(_ModelCheck):
    """Bit-exact; rows out of order, and one twice."""

    name: ClassVar[str] = "take_rows"
    width: int = 576

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        plan = bench.plan(Request(TakeRowsSpec(self.width, self.dtype)))
        x = round_to(rng.standard_normal((self.t, self.width)), self.dtype)
        x[1, :3] = (np.inf, np.nan, -0.0)
        rows = np.concatenate([[self.t - 1, 1, 1, 0], rng.integers(0, self.t, 3)])
        array = bench.put("x", x, self.dtype)
        given = bench.out("out", (len(rows), self.width), self.dtype)
        y = bench.run(plan, array, bench.put("rows", rows), out=given)
        bench.check_padding("out", given, y, len(rows))
        bench.same_bits("y", y, bench.bits(array)[rows])


@dataclass(frozen=True)
class MoERoute(_ModelCheck):
    """experts, k, renormalize: as in `MoERouteSpec`. x: "normal", "ties": equal logits, "peaky": one far above."""

    name: ClassVar[str] = "moe_route"
    experts: int = 23
    k: int = 4
    renormalize: bool = True
    x: str = "normal"

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        plan = bench.plan(Request(MoERouteSpec(self.experts, self.k, self.renormalize, self.dtype)))
        # Distinct logits are far enough apart for f32 probabilities to keep their order.
        steps = np.stack([rng.permutation(self.experts) for _ in range(self.t)]).astype(np.float64)
        if self.x == "ties":
            steps //= 3
        logits = steps / 8 - 1
        if self.x == "peaky":
            logits[:, self.experts // 2] += 30
        given = round_to(logits, self.dtype)
        weights, experts = bench.run(plan, bench.put("logits", given, self.dtype))
        exact = given.astype(np.float64)
        want, chosen = model.moe_route(exact, self.k, self.renormalize)
        bench.same("experts", bench.get(experts).astype(np.int64), chosen)
        bench.compare("weights", bench.get(weights), want, tolerance.softmax(want, exact), biased=False)
