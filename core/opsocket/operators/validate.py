"""Checks of specs and arrays that operators share: done once, in core, before any kernel sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from opsocket.operators.errors import ContractError

if TYPE_CHECKING:
    from opsocket.operators.device import Array
    from opsocket.operators.request import Spec
    from opsocket.operators.session import Session


def check_positive(spec: Spec, *names: str) -> None:
    """Fields of a spec that count something of which there has to be one."""
    for name in names:
        if getattr(spec, name) < 1:
            raise ContractError(name, "at least 1", getattr(spec, name))


def check_array(
    session: Session, name: str, array: Array, dtype: str, shape: Sequence[int | None], dense: int = 2
) -> tuple[int, ...]:
    """Shape of a device array, after checking dtype, shape (None: any) and that its last `dense` dimensions are dense.

    The strides of the dimensions before those are free: a slice of a fused projection is a valid query.
    """
    # The common case at a tenth of the price; whatever is wrong or uncommon is left to `describe` to say.
    dense_shape = session._dense_shape(array, dtype)
    if dense_shape is not None and len(dense_shape) == len(shape):
        for want, have in zip(shape, dense_shape):  # noqa: B905  (of one length)
            if want != have and want is not None:
                break
        else:
            return dense_shape
    info = session.describe(array)
    got = info.shape
    if len(got) != len(shape) or any(w is not None and w != g for w, g in zip(shape, got, strict=True)):
        raise ContractError(name, f"shape {_shape_text(shape)}", f"shape {_shape_text(got)}")
    if info.dtype != dtype:
        raise ContractError(name, f"dtype {dtype}", f"dtype {info.dtype}")
    if info.device != str(session.device):
        raise ContractError(name, f"device {session.device}", f"device {info.device}")
    if info.strides is not None and 0 not in got:  # strides of no elements say nothing
        expected = 1
        for i in range(len(got) - 1, max(len(got) - dense, 0) - 1, -1):
            if got[i] != 1 and info.strides[i] != expected:
                raise ContractError(name, f"last {dense} dimensions dense", f"strides {info.strides}")
            expected *= got[i]
    return got


def check_optional(
    session: Session,
    name: str,
    array: Array | None,
    wanted: bool,
    dtype: str,
    shape: Sequence[int | None],
    dense: int = 2,
) -> None:
    """An array that is there if and only if the spec says so; never inferred from its presence."""
    if wanted and array is None:
        raise ContractError(name, f"an array: the spec has {name}", None)
    if not wanted and array is not None:
        raise ContractError(name, f"None: the spec has no {name}", "an array")
    if array is not None:
        check_array(session, name, array, dtype, shape, dense)


def host_array(name: str, values: Any, shape: Sequence[int | None]) -> np.ndarray:
    """A host integer array, as it is, after checking rank and shape."""
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise ContractError(name, "a host array of integers", f"dtype {array.dtype}")
    if array.ndim != len(shape) or any(w is not None and w != g for w, g in zip(shape, array.shape, strict=True)):
        raise ContractError(name, f"shape {_shape_text(shape)}", f"shape {_shape_text(array.shape)}")
    return array


def host_ints(name: str, values: Any, shape: Sequence[int | None], low: int | None = None) -> np.ndarray:
    """A host integer array as contiguous i64, after checking rank, shape and lower bound."""
    array = host_array(name, values, shape)
    if low is not None and array.size and int(array.min()) < low:
        raise ContractError(name, f"values of at least {low}", int(array.min()))
    return np.ascontiguousarray(array, np.int64)


def host_counts(name: str, values: Any, length: int) -> list[int]:
    """A host array of integers of at least 0 as a list: of few numbers, Python's own are checked ten times faster."""
    counts: list[int] = host_array(name, values, (length,)).tolist()
    if counts and min(counts) < 0:
        raise ContractError(name, "values of at least 0", min(counts))
    return counts


def check_indptr(name: str, values: Any, length: int | None = None) -> np.ndarray:
    """Row starts [B + 1]: begins at 0 and never decreases."""
    array = host_ints(name, values, (length,))
    starts = array.tolist()
    if not starts or starts[0] != 0:
        raise ContractError(name, "a first entry of 0", starts[:1])
    if sorted(starts) != starts:
        at = int(np.argmax(np.diff(array) < 0))
        raise ContractError(name, "entries that never decrease", f"{starts[at]} then {starts[at + 1]} at {at + 1}")
    return array


def check_bound(name: str, what: str, value: int, bound: int | None) -> None:
    """A batch stays within the bounds that its plan was made for."""
    if bound is not None and value > bound:
        raise ContractError(name, f"{what} of at most {bound}, as planned", value)


def check_slots(name: str, slots: np.ndarray, num_slots: int, *, unique: bool, skip: bool) -> None:
    """Slots in range; only -1 skips, and only where `skip`; no slot twice where `unique`."""
    low = -1 if skip else 0
    if slots.size and (int(slots.min()) < low or int(slots.max()) >= num_slots):
        bad = slots[(slots < low) | (slots >= num_slots)][0]
        raise ContractError(name, f"{low} to {num_slots - 1}", int(bad))
    if unique and slots.size > 1:
        ordered = np.sort(slots)
        again = (ordered[1:] == ordered[:-1]) & (ordered[1:] >= 0)
        if again.any():
            raise ContractError(name, "each slot at most once", f"slot {int(ordered[1:][again][0])} twice")


def _shape_text(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("*" if d is None else str(d) for d in shape) + "]"
