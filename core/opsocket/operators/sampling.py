"""From logits to token ids. Sampling is a pure function: its randomness comes in as one uniform number per request, so
that every backend picks the same token and conformance can check it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar

import numpy as np

from opsocket.operators.device import Array
from opsocket.operators.dtypes import check_float
from opsocket.operators.errors import ContractError
from opsocket.operators.plan import Plan
from opsocket.operators.request import Spec
from opsocket.operators.validate import check_array, check_bound, check_indptr, host_ints


@dataclass(frozen=True)
class ArgmaxSpec(Spec):
    """Index of the largest logit; ties go to the lowest index."""

    op: ClassVar[str] = "argmax"
    width: int
    dtype: str = "f32"

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ContractError("width", "at least 1", self.width)
        check_float(self.dtype, "dtype")


class ArgmaxPlan(Plan):
    """run(logits[B, V]) -> i64[B]."""

    spec_type = ArgmaxSpec

    def run(self, logits: Array, *, out: Array | None = None) -> Array:
        if (again := self._again(logits, out)) is not None:
            return again
        spec = self.request.spec
        assert isinstance(spec, ArgmaxSpec)
        rows, _ = check_array(self.session, "logits", logits, spec.dtype, (None, spec.width), 1)
        if out is not None:
            check_array(self.session, "out", out, "i64", (rows,), 1)
        return self._call(self._run, logits, out, outs={"out": out})

    @abstractmethod
    def _run(self, logits: Array, out: Array | None) -> Array: ...


@dataclass(frozen=True)
class SampleSpec(Spec):
    """One token per request from its logits, in this order, in f32:

    1. penalties over the request's history: repetition r: l > 0 ? l / r : l * r (Keskar et al. 2019); then
       l - frequency * count - presence.
    2. temperature 0: argmax, ties to the lowest index; nothing below applies. Else l / temperature, softmax.
    3. top_k: the k most probable, ties to the lower index; 0 = all.
    4. top_p: the shortest prefix, in falling order, of the renormalized probabilities whose sum is at least p
       (Holtzman et al. 2019); 1 = all.
    5. min_p: those of at least min_p times the largest (Nguyen et al. 2024); 0 = all.
    6. the first token, in falling order of probability (ties to the lower index), whose cumulative share of what is
       left exceeds `uniform`.
    """

    op: ClassVar[str] = "sample"
    width: int
    dtype: str = "f32"

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ContractError("width", "at least 1", self.width)
        check_float(self.dtype, "dtype")


@dataclass(frozen=True, eq=False)
class SampleBatch:
    """Host arrays, one entry per request: temperature, top_p, min_p, uniform (in [0, 1)), repetition, presence,
    frequency f32[B]; top_k i32[B]. history_indptr i64[B+1], history_ids i64[H] (each id once per request) and
    history_counts i32[H].
    """

    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    min_p: np.ndarray
    uniform: np.ndarray
    repetition: np.ndarray
    presence: np.ndarray
    frequency: np.ndarray
    history_indptr: np.ndarray
    history_ids: np.ndarray
    history_counts: np.ndarray


class SamplePlan(Plan):
    """run(logits[B, V]) -> i64[B]. Batch: `SampleBatch`."""

    spec_type = SampleSpec
    batch_type = SampleBatch

    def _validate_batch(self, batch: Any) -> None:
        spec = self.request.spec
        assert isinstance(spec, SampleSpec)
        indptr = check_indptr("history_indptr", batch.history_indptr)
        size = indptr.size - 1
        check_bound("history_indptr", "sequences", size, self.request.bounds.max_batch)
        ids = host_ints("history_ids", batch.history_ids, (int(indptr[-1]),), low=0)
        if ids.size and int(ids.max()) >= spec.width:
            raise ContractError("history_ids", f"0 to {spec.width - 1}", int(ids.max()))
        host_ints("history_counts", batch.history_counts, (ids.size,), low=0)
        host_ints("top_k", batch.top_k, (size,), low=0)
        ranges = {
            "temperature": (0.0, np.inf),
            "top_p": (0.0, 1.0),
            "min_p": (0.0, 1.0),
            "uniform": (0.0, 1.0),
            "repetition": (1e-6, np.inf),
            "presence": (-np.inf, np.inf),
            "frequency": (-np.inf, np.inf),
        }
        for name, (low, high) in ranges.items():
            values = np.asarray(getattr(batch, name), np.float64)
            if values.shape != (size,):
                raise ContractError(name, f"shape [{size}]", f"shape {list(values.shape)}")
            # Of few numbers, Python's own are checked faster than an array.
            if not all(isfinite(value) and low <= value <= high for value in values.tolist()):
                raise ContractError(name, f"finite numbers from {low} to {high}", values.tolist())
        if size and np.max(batch.uniform) >= 1:
            raise ContractError("uniform", "numbers below 1", float(np.max(batch.uniform)))

    def run(self, logits: Array, *, out: Array | None = None) -> Array:
        spec = self.request.spec
        assert isinstance(spec, SampleSpec)
        rows, _ = check_array(self.session, "logits", logits, spec.dtype, (None, spec.width), 1)
        if out is not None:
            check_array(self.session, "out", out, "i64", (rows,), 1)
        return self._call(self._run, logits, out, room=(rows,), outs={"out": out})

    def _check_room(self, batch: Any, *room: Any) -> None:
        if room[0] != len(batch.temperature):
            raise ContractError("logits", f"{len(batch.temperature)} rows, one for each request", room[0])

    @abstractmethod
    def _run(self, logits: Array, out: Array | None) -> Array: ...
