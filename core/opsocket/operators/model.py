"""The rest of a decoder: norm, rotary embedding, gated activation, residual add, row selection.

Core has a composed version of each for torch sessions (`opsocket.operators.composed`); a backend may offer its own.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from opsocket.operators.device import Array
from opsocket.operators.dtypes import check_float
from opsocket.operators.errors import ContractError
from opsocket.operators.plan import Plan
from opsocket.operators.request import Spec
from opsocket.operators.validate import check_array, check_optional, check_positive


@dataclass(frozen=True)
class RMSNormSpec(Spec):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed in f32 (Zhang and Sennrich 2019).

    residual: `run` takes one; x + residual, rounded to `dtype`, is normalized and also returned.
    heads: None for x[T, width]; a number for x[T, heads, width] (QK norm), without residual.
    """

    op: ClassVar[str] = "rms_norm"
    width: int
    eps: float
    dtype: str = "f32"
    residual: bool = False
    heads: int | None = None

    def __post_init__(self) -> None:
        check_positive(self, "width")
        check_float(self.dtype, "dtype")
        if not (np.isfinite(self.eps) and self.eps >= 0):
            raise ContractError("eps", "a finite number of at least 0", self.eps)
        if self.heads is not None and (self.heads < 1 or self.residual):
            raise ContractError("heads", "at least 1 and no residual, or None", (self.heads, self.residual))


class RMSNormPlan(Plan):
    """run(x, weight f32[width], residual?) -> y, or (y, x + residual) where the spec has a residual.

    residual_out: where that sum goes, dense; neither x nor residual themselves.
    """

    spec_type = RMSNormSpec

    def run(
        self,
        x: Array,
        weight: Array,
        residual: Array | None = None,
        *,
        out: Array | None = None,
        residual_out: Array | None = None,
    ) -> Array | tuple[Array, Array]:
        if (again := self._again(x, weight, residual, out, residual_out)) is not None:
            return again
        spec = self.request.spec
        assert isinstance(spec, RMSNormSpec)
        shape = (None, spec.width) if spec.heads is None else (None, spec.heads, spec.width)
        got = check_array(self.session, "x", x, spec.dtype, shape, len(shape) - 1)
        check_array(self.session, "weight", weight, "f32", (spec.width,), 1)
        check_optional(self.session, "residual", residual, spec.residual, spec.dtype, got, 1)
        if out is not None:
            check_array(self.session, "out", out, spec.dtype, got, len(shape) - 1)
        if residual_out is not None:
            check_optional(self.session, "residual_out", residual_out, spec.residual, spec.dtype, got)
        return self._call(self._run, x, weight, residual, out, residual_out, outs={"out": out})

    @abstractmethod
    def _run(
        self, x: Array, weight: Array, residual: Array | None, out: Array | None, residual_out: Array | None
    ) -> Array | tuple[Array, Array]: ...


@dataclass(frozen=True)
class RopeScaling:
    """How a rotary embedding is stretched beyond the context that a model was trained on.

    linear: positions divided by `factor` (Chen et al. 2023). llama3: frequencies with wavelengths above
    original_max_position / low_freq_factor divided by `factor`, those below original_max_position / high_freq_factor
    kept, between them interpolated (Llama 3.1). yarn: Peng et al. 2023, a ramp over pair numbers from those that make
    beta_fast rotations over the original context (kept) to those that make beta_slow (divided by `factor`), both
    rounded outwards to whole pairs, and cos, sin multiplied by attention_factor.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3", "yarn"):
            raise ContractError("scaling.kind", "one of ['linear', 'llama3', 'yarn']", repr(self.kind))
        if not (np.isfinite(self.factor) and self.factor > 0):
            raise ContractError("scaling.factor", "a positive finite number", self.factor)
        if self.kind != "linear" and self.original_max_position < 1:
            raise ContractError("scaling.original_max_position", "at least 1", self.original_max_position)


@dataclass(frozen=True)
class RopeSpec(Spec):
    """Rotary position embedding (Su et al. 2021) of the first `rotary_dim` of each head's channels.

    Channel pair i turns by position * theta^(-2i / rotary_dim). interleaved: pairs are (2i, 2i + 1), as in the original
    paper and in GGUF files of the llama architecture; else (i, i + rotary_dim / 2), as in Hugging Face and GPT-NeoX.
    factors: `run` takes f32[rotary_dim / 2] by which each pair's frequency is divided (GGUF's rope_freqs.weight).
    Angles are computed in f64 or exactly reduced, and applied in f32.
    """

    op: ClassVar[str] = "rope"
    num_heads: int
    head_dim: int
    rotary_dim: int
    theta: float
    interleaved: bool = False
    scaling: RopeScaling | None = None
    factors: bool = False
    dtype: str = "f32"

    def __post_init__(self) -> None:
        check_positive(self, "num_heads", "head_dim", "rotary_dim")
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise ContractError("rotary_dim", f"even and at most head_dim={self.head_dim}", self.rotary_dim)
        if not (np.isfinite(self.theta) and self.theta > 0):
            raise ContractError("theta", "a positive finite number", self.theta)
        check_float(self.dtype, "dtype")


class RopePlan(Plan):
    """run(x[T, H, D], positions i64[T], factors f32[rotary_dim / 2]?) -> x turned, [T, H, D]."""

    spec_type = RopeSpec

    def run(self, x: Array, positions: Array, factors: Array | None = None, *, out: Array | None = None) -> Array:
        if (again := self._again(x, positions, factors, out)) is not None:
            return again
        spec = self.request.spec
        assert isinstance(spec, RopeSpec)
        got = check_array(self.session, "x", x, spec.dtype, (None, spec.num_heads, spec.head_dim))
        check_array(self.session, "positions", positions, "i64", (got[0],), 1)
        check_optional(self.session, "factors", factors, spec.factors, "f32", (spec.rotary_dim // 2,), 1)
        if out is not None:
            check_array(self.session, "out", out, spec.dtype, got)
        return self._call(self._run, x, positions, factors, out, outs={"out": out})

    @abstractmethod
    def _run(self, x: Array, positions: Array, factors: Array | None, out: Array | None) -> Array: ...


@dataclass(frozen=True)
class SiluMulSpec(Spec):
    """y = silu(gate) * up, silu(g) = g / (1 + exp(-g)), in f32, rounded once (SwiGLU, Shazeer 2020)."""

    op: ClassVar[str] = "silu_mul"
    width: int
    dtype: str = "f32"

    def __post_init__(self) -> None:
        check_positive(self, "width")
        check_float(self.dtype, "dtype")


class SiluMulPlan(Plan):
    """run(gate[T, width], up[T, width]) -> [T, width]."""

    spec_type = SiluMulSpec

    def run(self, gate: Array, up: Array, *, out: Array | None = None) -> Array:
        if (again := self._again(gate, up, out)) is not None:
            return again
        spec = self.request.spec
        assert isinstance(spec, SiluMulSpec)
        got = check_array(self.session, "gate", gate, spec.dtype, (None, spec.width), 1)
        check_array(self.session, "up", up, spec.dtype, got, 1)
        if out is not None:
            check_array(self.session, "out", out, spec.dtype, got, 1)
        return self._call(self._run, gate, up, out, outs={"out": out})

    @abstractmethod
    def _run(self, gate: Array, up: Array, out: Array | None) -> Array: ...


@dataclass(frozen=True)
class AddSpec(Spec):
    """y = a + b, rounded once."""

    op: ClassVar[str] = "add"
    width: int
    dtype: str = "f32"

    def __post_init__(self) -> None:
        check_positive(self, "width")
        check_float(self.dtype, "dtype")


class AddPlan(Plan):
    """run(a[T, width], b[T, width]) -> [T, width]."""

    spec_type = AddSpec

    def run(self, a: Array, b: Array, *, out: Array | None = None) -> Array:
        if (again := self._again(a, b, out)) is not None:
            return again
        spec = self.request.spec
        assert isinstance(spec, AddSpec)
        got = check_array(self.session, "a", a, spec.dtype, (None, spec.width), 1)
        check_array(self.session, "b", b, spec.dtype, got, 1)
        if out is not None:
            check_array(self.session, "out", out, spec.dtype, got, 1)
        return self._call(self._run, a, b, out, outs={"out": out})

    @abstractmethod
    def _run(self, a: Array, b: Array, out: Array | None) -> Array: ...


@dataclass(frozen=True)
class TakeRowsSpec(Spec):
    """Rows of an activation matrix, bit-exact: the last token of each request goes on to the output head."""

    op: ClassVar[str] = "take_rows"
    width: int
    dtype: str = "f32"

    def __post_init__(self) -> None:
        check_positive(self, "width")
        check_float(self.dtype, "dtype")


class TakeRowsPlan(Plan):
    """run(x[T, width], rows i64[R]) -> [R, width]."""

    spec_type = TakeRowsSpec

    def run(self, x: Array, rows: Array, *, out: Array | None = None) -> Array:
        if (again := self._again(x, rows, out)) is not None:
            return again
        spec = self.request.spec
        assert isinstance(spec, TakeRowsSpec)
        height, _ = check_array(self.session, "x", x, spec.dtype, (None, spec.width), 1)
        (count,) = check_array(self.session, "rows", rows, "i64", (None,), 1)
        if self.session.options.checked == "deep" and count:
            host = self.session.download(rows)
            if host.min() < 0 or host.max() >= height:
                raise ContractError("rows", f"0 to {height - 1}", f"{host.min()} to {host.max()}")
        if out is not None:
            check_array(self.session, "out", out, spec.dtype, (count, spec.width), 1)
        return self._call(self._run, x, rows, out, outs={"out": out})

    @abstractmethod
    def _run(self, x: Array, rows: Array, out: Array | None) -> Array: ...
