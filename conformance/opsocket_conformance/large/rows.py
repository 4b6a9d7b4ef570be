"""Tables of more than 2^31 elements: the rows of an embedding, and rows taken of an activation matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from opsocket.operators import ContractError, EmbeddingSpec, Reason, Request, ResourceError, TakeRowsSpec
from opsocket.quantization import get_format
from opsocket_conformance.bench import Bench, Denied
from opsocket_conformance.case import Case, Check
from opsocket_conformance.floats import round_to
from opsocket_conformance.large.room import BOUNDARY, check_room
from opsocket_conformance.operators.matmul.random_weights import random_weight
from opsocket_conformance.operators.matmul.weights import dequantize
from opsocket_conformance.tolerance import rounded_once

Int64 = npt.NDArray[np.int64]

_NEIGHBOURS: Final = 3


@dataclass(frozen=True)
class LargeRows(Check):
    """op: embedding or take_rows. w: weight format of the table. k: channels. elements: that the table has at least."""

    name: ClassVar[str] = "large_rows"
    shown: ClassVar[tuple[str, ...]] = ("op", "dtype")

    op: str = "take_rows"
    dtype: str = "bf16"
    w: str = "i8_channel"
    k: int = 4096
    elements: int = BOUNDARY

    def __post_init__(self) -> None:
        if self.op not in ("embedding", "take_rows"):
            raise ContractError("case.op", "embedding or take_rows", repr(self.op))

    @property
    def operator(self) -> str:
        return self.op

    def features(self) -> frozenset[str]:
        weight = {f"weight:{self.w}"} if self.op == "embedding" else set()
        return frozenset({f"op:{self.op}", f"dtype:{self.dtype}", "large"} | weight)

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        boundary = self.elements // self.k
        count = boundary + 2 * _NEIGHBOURS
        at = (0, boundary // 2, boundary, count - 1)
        ids = np.array([row + n for row in at for n in range(-_NEIGHBOURS, _NEIGHBOURS + 1) if 0 <= row + n < count])
        ids = rng.permutation(np.concatenate([ids, rng.integers(0, count, 9)]))
        (_embedding if self.op == "embedding" else _take_rows)(bench, rng, self, count, ids)


def _embedding(bench: Bench, rng: np.random.Generator, check: LargeRows, count: int, ids: Int64) -> None:
    """A table whose rows differ near the ids, and are of one kind elsewhere."""
    fmt = get_format(check.w)
    plan = bench.plan(Request(EmbeddingSpec(check.w, count, check.k, check.dtype)))
    specs = fmt.tensor_specs(count, check.k)
    item = {"i8": 1, "u8": 1, "f16": 2, "bf16": 2, "f32": 4, "i32": 4}
    need = sum(int(np.prod(shape, dtype=object)) * item[dtype] for dtype, shape in specs.values())
    check_room(bench.session, 2 * need)  # the tensors, and what is made of them
    near, where = np.unique(ids, return_inverse=True)
    some = random_weight(rng, fmt, len(near), check.k)
    if any(shape[0] != count for _, shape in specs.values()):
        raise Denied((Reason("weight_format", "w", check.w, "a format that is stored row by row"),))
    tensors = {}
    for name, rows in some.items():
        tensors[name] = np.broadcast_to(rows[:1], (count, *rows.shape[1:])).copy()
        tensors[name][near] = rows
    try:
        packed = bench.session.prepare_weight(plan.request, tensors)
    except ResourceError as error:
        raise Denied((Reason("memory", error.what, error.have, error.need),)) from None
    got = bench.run(plan, bench.put("ids", ids), packed)
    want = dequantize(fmt, some, len(near), check.k).value[where.ravel()]
    bench.compare("rows", bench.get(got), want, rounded_once(want, check.dtype))


def _take_rows(bench: Bench, rng: np.random.Generator, check: LargeRows, count: int, ids: Int64) -> None:
    plan = bench.plan(Request(TakeRowsSpec(check.k, check.dtype)))
    session = bench.session
    check_room(session, count * check.k * (4 if check.dtype == "f32" else 2))
    near, where = np.unique(ids, return_inverse=True)
    values = round_to(rng.standard_normal((len(near), check.k)), check.dtype)
    if not session.in_place:
        raise Denied((Reason("in_place", "in_place", False, "arrays that can be filled part by part"),))
    try:
        x = session.empty((count, check.k), check.dtype)
    except ResourceError as error:
        raise Denied((Reason("memory", error.what, error.have, error.need),)) from None
    for row, content in zip(near, values, strict=True):
        session.write(x[int(row) : int(row) + 1], content[None])
    got = bench.run(plan, x, bench.put("rows", ids))
    bench.same("rows", bench.get(got), values[where.ravel()].astype(np.float64))


def cases() -> Iterator[Case]:
    for op in ("embedding", "take_rows"):
        yield Case(LargeRows(op), 0, "large")
