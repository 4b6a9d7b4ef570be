"""Matrix products with weights in a named format, and the lookup of rows in such a weight.

A format's id states its activation precision too: W4A16 and W4A8 are two formats. See `opsocket.quantization`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from opsocket.operators.device import Array
from opsocket.operators.dtypes import check_float
from opsocket.operators.errors import ContractError
from opsocket.operators.identity import ByIdentity
from opsocket.operators.numerics import DEFAULT_NUMERICS, Numerics
from opsocket.operators.plan import Plan
from opsocket.operators.request import Request, Spec
from opsocket.operators.session import Session
from opsocket.operators.validate import check_array, check_bound, check_optional


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight [n, k] in a kernel's own layout, made by `Session.prepare_weight`.

    weight_format: the format's id. layout: names the arrangement; a plan refuses a layout that is not its own. A weight
    whose scales are rounded has one that no plan reads which may not round them.
    content: the provider's arrays. nbytes: what they take on the device.
    """

    weight_format: str
    n: int
    k: int
    layout: str
    content: Any
    nbytes: int


class _WeightSpec(Spec):
    weight_format: str
    n: int
    k: int

    def _check_weight(self) -> None:
        from opsocket.quantization import get_format

        get_format(self.weight_format)
        for name in ("n", "k"):
            if getattr(self, name) < 1:
                raise ContractError(name, "at least 1", getattr(self, name))


@dataclass(frozen=True)
class MatmulSpec(_WeightSpec):
    """y = x W^T + b, weight [n, k]. The activation precision is the format's, never implicit."""

    op: ClassVar[str] = "matmul"
    weight_format: str
    n: int
    k: int
    x_dtype: str = "f32"
    out_dtype: str = "f32"
    bias: bool = False
    numerics: Numerics = DEFAULT_NUMERICS

    def __post_init__(self) -> None:
        self._check_weight()
        check_float(self.x_dtype, "x_dtype")
        check_float(self.out_dtype, "out_dtype")


@dataclass(frozen=True)
class GroupedMatmulSpec(_WeightSpec):
    """One weight [n, k] for each of num_experts; rows come sorted by expert."""

    op: ClassVar[str] = "grouped_matmul"
    num_experts: int
    weight_format: str
    n: int
    k: int
    x_dtype: str = "f32"
    out_dtype: str = "f32"
    bias: bool = False
    numerics: Numerics = DEFAULT_NUMERICS

    def __post_init__(self) -> None:
        self._check_weight()
        if self.num_experts < 1:
            raise ContractError("num_experts", "at least 1", self.num_experts)
        check_float(self.x_dtype, "x_dtype")
        check_float(self.out_dtype, "out_dtype")


@dataclass(frozen=True)
class EmbeddingSpec(_WeightSpec):
    """Rows of a table [n, k] in any weight format, dequantized."""

    op: ClassVar[str] = "embedding"
    weight_format: str
    n: int
    k: int
    out_dtype: str = "f32"

    def __post_init__(self) -> None:
        self._check_weight()
        check_float(self.out_dtype, "out_dtype")


@dataclass(frozen=True)
class QuantizeActivationSpec(Spec):
    """scheme "i8_token": per row, s = amax / 127 in f32, codes = clamp(round_half_even(x / s), -127, 127); a zero row
    gives s = 0 and codes 0."""

    op: ClassVar[str] = "quantize_activation"
    k: int
    scheme: str = "i8_token"
    x_dtype: str = "f32"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ContractError("k", "at least 1", self.k)
        if self.scheme != "i8_token":
            raise ContractError("scheme", "'i8_token'", repr(self.scheme))
        check_float(self.x_dtype, "x_dtype")


class _WeightPlan(Plan):
    weight_layouts: ClassVar[tuple[str, ...]] = ()
    """The `PackedWeight.layout`s that this kernel reads."""
    _takes_any_activation: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        """The weight in this kernel's layout; `ContractError` names the tensor that is not as the format has it."""

    @classmethod
    @abstractmethod
    def dequantize(cls, session: Session, packed: PackedWeight) -> Array:
        """f32[n, k], equal to the format's reference within one unit in the last place of f32; of the rounded scales
        where `numerics.scales` let `prepare_weight` round them."""

    def _check_packed(self, name: str, packed: object) -> None:
        spec: Any = self.request.spec
        if not isinstance(packed, PackedWeight):
            raise ContractError(name, "a PackedWeight from prepare_weight", type(packed).__name__)
        want, got = (spec.weight_format, spec.n, spec.k), (packed.weight_format, packed.n, packed.k)
        if want != got and not (want[1:] == got[1:] and self._is_same_table(packed.weight_format)):
            raise ContractError(name, f"format, n, k = {want}", got)
        if packed.layout not in self.weight_layouts:
            raise ContractError(name, f"layout in {list(self.weight_layouts)}", repr(packed.layout))

    def _is_same_table(self, weight_format: str) -> bool:
        """Whether a weight of that format is, to this operator, one of its own: nothing here multiplies activations."""
        from opsocket.quantization import without_activation

        spec: Any = self.request.spec
        return self._takes_any_activation and without_activation(weight_format) == without_activation(
            spec.weight_format
        )


class MatmulPlan(_WeightPlan):
    """run(x[M, K], packed, bias f32[N]?) -> y[M, N]."""

    spec_type = MatmulSpec

    @property
    def spec(self) -> MatmulSpec:
        assert isinstance(self.request.spec, MatmulSpec)
        return self.request.spec

    def tune(self, packed: PackedWeight, *, keep: bool) -> None:
        """Hook of `opsocket tune`: measure what this kernel can vary with a weight, run with the fastest from now on,
        and with `keep` have later plans of this request on this device do so. May take seconds, and synchronizes."""

    def run(self, x: Array, packed: PackedWeight, bias: Array | None = None, *, out: Array | None = None) -> Array:
        if (again := self._again(x, packed, bias, out)) is not None:
            return again
        spec = self.spec
        rows, _ = check_array(self.session, "x", x, spec.x_dtype, (None, spec.k), 1)
        check_bound("x", "rows", rows, self.request.bounds.max_tokens)
        self._check_packed("packed", packed)
        check_optional(self.session, "bias", bias, spec.bias, "f32", (spec.n,), 1)
        if out is not None:
            check_array(self.session, "out", out, spec.out_dtype, (rows, spec.n), 1)
        return self._call(self._run, x, packed, bias, out, outs={"out": out})

    @abstractmethod
    def _run(self, x: Array, packed: PackedWeight, bias: Array | None, out: Array | None) -> Array: ...


class GroupedMatmulPlan(_WeightPlan):
    """run(x[M, K], packed: E weights, expert_offsets i64[E+1], bias f32[E, N]?) -> y[M, N].

    Rows expert_offsets[e] to expert_offsets[e+1] meet weight e. Rows at or past expert_offsets[E] are not written.
    """

    spec_type = GroupedMatmulSpec
    _checked: ByIdentity[bool] | None = None

    @property
    def spec(self) -> GroupedMatmulSpec:
        assert isinstance(self.request.spec, GroupedMatmulSpec)
        return self.request.spec

    def run(
        self,
        x: Array,
        packed: Sequence[PackedWeight],
        expert_offsets: Array,
        bias: Array | None = None,
        *,
        out: Array | None = None,
    ) -> Array:
        spec = self.spec
        rows, _ = check_array(self.session, "x", x, spec.x_dtype, (None, spec.k), 1)
        check_bound("x", "rows", rows, self.request.bounds.max_tokens)
        if len(packed) != spec.num_experts:
            raise ContractError("packed", f"{spec.num_experts} weights", len(packed))
        self._check_experts(packed)
        check_array(self.session, "expert_offsets", expert_offsets, "i64", (spec.num_experts + 1,), 1)
        if self.session.options.checked == "deep":
            offsets = self.session.download(expert_offsets)
            if offsets[0] != 0 or np.any(np.diff(offsets) < 0) or offsets[-1] > rows:
                raise ContractError("expert_offsets", f"0 to at most {rows}, never decreasing", offsets.tolist())
        check_optional(self.session, "bias", bias, spec.bias, "f32", (spec.num_experts, spec.n), 1)
        if out is not None:
            check_array(self.session, "out", out, spec.out_dtype, (rows, spec.n), 1)
        return self._call(self._run, x, packed, expert_offsets, bias, out, outs={"out": out})

    def _check_experts(self, packed: Sequence[PackedWeight]) -> None:
        """Each of them once: a model has hundreds, which are the same in every step."""
        if self._checked is None:
            self._checked = ByIdentity()
        if self._checked.get(packed):
            return
        for i, weight in enumerate(packed):
            self._check_packed(f"packed[{i}]", weight)
        self._checked.put(packed, True)

    @abstractmethod
    def _run(
        self, x: Array, packed: Sequence[PackedWeight], expert_offsets: Array, bias: Array | None, out: Array | None
    ) -> Array: ...


class EmbeddingPlan(_WeightPlan):
    """run(ids i64[T], packed) -> rows [T, K] of the table, dequantized and rounded to out_dtype.

    packed may have been prepared for a matmul, in a layout that this kernel reads too, and with any activation of the
    same stored format: a tied output head's weight is the table.
    """

    spec_type = EmbeddingSpec
    _takes_any_activation = True

    @property
    def spec(self) -> EmbeddingSpec:
        assert isinstance(self.request.spec, EmbeddingSpec)
        return self.request.spec

    def run(self, ids: Array, packed: PackedWeight, *, out: Array | None = None) -> Array:
        spec = self.spec
        (rows,) = check_array(self.session, "ids", ids, "i64", (None,), 1)
        check_bound("ids", "tokens", rows, self.request.bounds.max_tokens)
        self._check_packed("packed", packed)
        if self.session.options.checked == "deep" and rows:
            host = self.session.download(ids)
            if host.min() < 0 or host.max() >= spec.n:
                raise ContractError("ids", f"0 to {spec.n - 1}", f"{host.min()} to {host.max()}")
        if out is not None:
            check_array(self.session, "out", out, spec.out_dtype, (rows, spec.k), 1)
        return self._call(self._run, ids, packed, out, outs={"out": out})

    @abstractmethod
    def _run(self, ids: Array, packed: PackedWeight, out: Array | None) -> Array: ...


class QuantizeActivationPlan(Plan):
    """run(x[M, K]) -> codes i8[M, K], scale f32[M]."""

    spec_type = QuantizeActivationSpec

    def run(self, x: Array) -> tuple[Array, Array]:
        again: tuple[Array, Array] | None = self._again(x)
        if again is not None:
            return again
        spec = self.request.spec
        assert isinstance(spec, QuantizeActivationSpec)
        check_array(self.session, "x", x, spec.x_dtype, (None, spec.k), 1)
        result: tuple[Array, Array] = self._call(self._run, x)
        return result

    @abstractmethod
    def _run(self, x: Array) -> tuple[Array, Array]: ...


__all__ = [
    "EmbeddingPlan",
    "EmbeddingSpec",
    "GroupedMatmulPlan",
    "GroupedMatmulSpec",
    "MatmulPlan",
    "MatmulSpec",
    "PackedWeight",
    "QuantizeActivationPlan",
    "QuantizeActivationSpec",
]
