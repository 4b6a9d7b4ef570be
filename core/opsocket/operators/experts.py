"""A mixture of experts around `grouped_matmul`: each token's experts, its rows sorted by expert, their weighted sum.

    weights, experts = route.run(logits)
    rows, expert_offsets, slots = sort.run(experts)
    y = grouped_matmul.run(take_rows.run(x, rows), packed, expert_offsets)
    x = combine.run(y, slots, weights)

Core has a composed version of each for torch sessions (`opsocket.operators.composed`); a backend may offer its own.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from opsocket.operators.device import Array
from opsocket.operators.dtypes import check_float
from opsocket.operators.errors import ContractError
from opsocket.operators.plan import Plan
from opsocket.operators.request import Spec
from opsocket.operators.validate import check_array, check_positive


class _ExpertsSpec(Spec):
    num_experts: int
    top_k: int

    def _check_experts(self) -> None:
        check_positive(self, "num_experts", "top_k")
        if self.top_k > self.num_experts:
            raise ContractError("top_k", f"at most num_experts={self.num_experts}", self.top_k)


@dataclass(frozen=True)
class MoERouteSpec(_ExpertsSpec):
    """softmax over experts in f32, the top_k largest (ties to the lower index), optionally renormalized to sum 1."""

    op: ClassVar[str] = "moe_route"
    num_experts: int
    top_k: int
    renormalize: bool = True
    dtype: str = "f32"

    def __post_init__(self) -> None:
        self._check_experts()
        check_float(self.dtype, "dtype")


class MoERoutePlan(Plan):
    """run(logits[T, E]) -> weights f32[T, top_k] in falling order, experts i64[T, top_k]."""

    spec_type = MoERouteSpec

    def run(self, logits: Array) -> tuple[Array, Array]:
        again: tuple[Array, Array] | None = self._again(logits)
        if again is not None:
            return again
        spec = self.request.spec
        assert isinstance(spec, MoERouteSpec)
        check_array(self.session, "logits", logits, spec.dtype, (None, spec.num_experts), 1)
        result: tuple[Array, Array] = self._call(self._run, logits)
        return result

    @abstractmethod
    def _run(self, logits: Array) -> tuple[Array, Array]: ...


@dataclass(frozen=True)
class MoESortSpec(_ExpertsSpec):
    """The choices of all tokens in the order in which `grouped_matmul` takes their rows: by expert, those of one expert
    by token."""

    op: ClassVar[str] = "moe_sort"
    num_experts: int
    top_k: int

    def __post_init__(self) -> None:
        self._check_experts()


class MoESortPlan(Plan):
    """run(experts i64[T, top_k]) -> rows i64[T * top_k], expert_offsets i64[E + 1], slots i64[T, top_k].

    In sorted order, choice i is of token rows[i], and expert e has choices expert_offsets[e] to expert_offsets[e + 1].
    Choice j of token t stands at slots[t, j].
    """

    spec_type = MoESortSpec

    def run(self, experts: Array) -> tuple[Array, Array, Array]:
        again: tuple[Array, Array, Array] | None = self._again(experts)
        if again is not None:
            return again
        spec = self.request.spec
        assert isinstance(spec, MoESortSpec)
        tokens, _ = check_array(self.session, "experts", experts, "i64", (None, spec.top_k))
        if self.session.options.checked == "deep" and tokens:
            host = self.session.download(experts)
            if host.min() < 0 or host.max() >= spec.num_experts:
                raise ContractError("experts", f"0 to {spec.num_experts - 1}", f"{host.min()} to {host.max()}")
        result: tuple[Array, Array, Array] = self._call(self._run, experts)
        return result

    @abstractmethod
    def _run(self, experts: Array) -> tuple[Array, Array, Array]: ...


@dataclass(frozen=True)
class MoECombineSpec(Spec):
    """Each token's weighted sum of its choices' rows: products and sum in f32, rounded once to `dtype`."""

    op: ClassVar[str] = "moe_combine"
    width: int
    top_k: int
    dtype: str = "f32"

    def __post_init__(self) -> None:
        check_positive(self, "width", "top_k")
        check_float(self.dtype, "dtype")


class MoECombinePlan(Plan):
    """run(x[C, width], slots i64[T, top_k], weights f32[T, top_k]) -> y[T, width], y[t] = sum_j weights[t, j]
    x[slots[t, j]]."""

    spec_type = MoECombineSpec

    def run(self, x: Array, slots: Array, weights: Array, *, out: Array | None = None) -> Array:
        if (again := self._again(x, slots, weights, out)) is not None:
            return again
        spec = self.request.spec
        assert isinstance(spec, MoECombineSpec)
        height, _ = check_array(self.session, "x", x, spec.dtype, (None, spec.width), 1)
        tokens, _ = check_array(self.session, "slots", slots, "i64", (None, spec.top_k))
        check_array(self.session, "weights", weights, "f32", (tokens, spec.top_k))
        if self.session.options.checked == "deep" and tokens:
            host = self.session.download(slots)
            if host.min() < 0 or host.max() >= height:
                raise ContractError("slots", f"0 to {height - 1}", f"{host.min()} to {host.max()}")
        if out is not None:
            check_array(self.session, "out", out, spec.dtype, (tokens, spec.width), 1)
        return self._call(self._run, x, slots, weights, out, outs={"out": out})

    @abstractmethod
    def _run(self, x: Array, slots: Array, weights: Array, out: Array | None) -> Array: ...
