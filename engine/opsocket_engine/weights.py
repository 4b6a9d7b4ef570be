"""A decoder's matrices and norms on a session, each with the plan that multiplies by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opsocket.operators import Array, PackedWeight, Request, Session
from opsocket.quantization import concatenate
from opsocket_engine.canonical import matrix_shapes
from opsocket_engine.checkpoint import Checkpoint
from opsocket_engine.inputs import Inputs
from opsocket_engine.requests import Projection


@dataclass(frozen=True, eq=False)
class Linear:
    """y = x W^T + b, under a name that its output goes by."""

    name: str
    plan: Any
    weight: PackedWeight
    bias: Array | None

    def __call__(self, inputs: Inputs, x: Array) -> Array:
        out = inputs.out(self.name, self.plan.spec.out_dtype, self.plan.spec.n)
        return self.plan.run(x, self.weight, self.bias, out=out)


@dataclass(frozen=True, eq=False)
class ExpertsLinear:
    """The same by one weight for each expert; x has `top_k` rows for each token, sorted by expert."""

    name: str
    plan: Any
    weights: tuple[PackedWeight, ...]
    top_k: int

    def __call__(self, inputs: Inputs, x: Array, expert_offsets: Array) -> Array:
        out = inputs.out(self.name, self.plan.spec.out_dtype, self.plan.spec.n, each=self.top_k)
        return self.plan.run(x, self.weights, expert_offsets, out=out)


@dataclass(frozen=True, eq=False)
class Projections:
    """Matrices that multiply the same input; their outputs come back by name. Experts' take the rows' offsets too."""

    linears: tuple[tuple[Projection, Linear | ExpertsLinear], ...]
    split: Callable[[Array, Sequence[int]], tuple[Array, ...]]

    def __call__(self, inputs: Inputs, x: Array, *expert_offsets: Array) -> dict[str, Array]:
        outputs = {}
        for projection, linear in self.linears:
            y = linear(inputs, x, *expert_offsets)
            parts = (y,) if len(projection.names) == 1 else self.split(y, projection.widths)
            outputs |= zip(projection.names, parts, strict=True)
        return outputs


@dataclass(frozen=True, eq=False)
class Norm:
    """RMS norm; where the plan has a residual: (normed sum, sum)."""

    name: str
    plan: Any
    weight: Array

    def __call__(self, inputs: Inputs, x: Array, residual: Array | None = None) -> Any:
        spec = self.plan.request.spec
        shape = (spec.width,) if spec.heads is None else (spec.heads, spec.width)
        out = inputs.out(self.name, spec.dtype, *shape)
        if residual is None:
            return self.plan.run(x, self.weight, out=out)
        added = inputs.out(self.name + " sum", spec.dtype, *shape)
        return self.plan.run(x, self.weight, residual, out=out, residual_out=added)


class Loading:
    """How far loading is. report: is told (bytes of the file's matrices that are on the session, all of them)."""

    def __init__(self, report: Callable[[int, int], None], checkpoint: Checkpoint) -> None:
        self._report, self._done = report, 0
        self._total = sum(checkpoint.weight(name).nbytes for name in matrix_shapes(checkpoint.config))

    def add(self, size: int) -> None:
        # A table that the head shares, and needs in another layout, is read twice.
        self._done = min(self._done + size, self._total)
        self._report(self._done, self._total)

    def end(self) -> None:
        self.add(self._total)


@dataclass(frozen=True, eq=False)
class Loader:
    """Brings weights onto the session, each prepared by the kernel that will read it.

    weights: all but experts'; expert_weights: those, of which a token meets few.
    """

    session: Session
    checkpoint: Checkpoint
    plans: dict[Request, Any]
    loading: Loading | None = None
    weights: list[PackedWeight] = field(default_factory=list)
    expert_weights: list[PackedWeight] = field(default_factory=list)

    def linear(self, name: str, output: str, request: Request) -> Linear:
        return self._linear([name], output, request)

    def projections(self, prefix: str, projections: Sequence[Projection]) -> Projections:
        linears = []
        for projection in projections:
            names = [prefix + name for name in projection.names]
            linears.append((projection, self._linear(names, "+".join(projection.names), projection.request)))
        return Projections(tuple(linears), self.session.split)

    def experts_linear(self, prefix: str, names: Sequence[str], request: Request, top_k: int) -> ExpertsLinear:
        """Of each expert e the matrices `{prefix}{e}.{name}`, one below the other."""
        plan, weights = self.plans[request], []
        for expert in range(plan.spec.num_experts):
            weights.append(self._prepared([f"{prefix}{expert}.{name}" for name in names], request))
        self.expert_weights.extend(weights)
        return ExpertsLinear("+".join(names), plan, tuple(weights), top_k)

    def experts_projections(self, prefix: str, projections: Sequence[Projection], top_k: int) -> Projections:
        linears = [(p, self.experts_linear(prefix, p.names, p.request, top_k)) for p in projections]
        return Projections(tuple(linears), self.session.split)

    def norm(self, name: str, output: str, request: Request) -> Norm:
        return Norm(output, self.plans[request], self.session.upload(self.checkpoint.vector(name)))

    def table(self, name: str, request: Request, tied: PackedWeight | None) -> PackedWeight:
        """The embedding's table: the output head's weight where they are tied and one layout serves both kernels."""
        if tied is not None and tied.layout in self.plans[request].weight_layouts:
            return tied
        return self._prepare([name], request)

    def _linear(self, names: Sequence[str], output: str, request: Request) -> Linear:
        plan, bias = self.plans[request], None
        if plan.spec.bias:
            bias = self.session.upload(np.concatenate([self.checkpoint.vector(f"{name}_bias") for name in names]))
        return Linear(output, plan, self._prepare(names, request), bias)

    def _prepare(self, names: Sequence[str], request: Request) -> PackedWeight:
        weight = self._prepared(names, request)
        self.weights.append(weight)
        return weight

    def _prepared(self, names: Sequence[str], request: Request) -> PackedWeight:
        joined = concatenate([self.checkpoint.weight(name) for name in names])
        weight = self.session.prepare_weight(request, joined.tensors)
        if self.loading is not None:
            self.loading.add(joined.nbytes)
        return weight
