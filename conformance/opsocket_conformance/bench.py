"""The only door between a case and a session: moves data, runs plans under guard, and takes down what it finds.

A case reaches a session by `upload`, `download`, `write`, `view`, `split`, `plan` and `allocate_cache` alone, and by
slices of arrays, so that it runs on any array type. Here a denial is checked against `supports`, every call needs a
receipt from the provider that `supports` named, and every input is compared with what was put in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opsocket.operators import (
    Array,
    Cache,
    CacheLayout,
    CacheSpec,
    Ladder,
    Plan,
    Reason,
    Request,
    Session,
    Support,
    Unsupported,
)
from opsocket_conformance.findings import Findings, Float64, Host
from opsocket_conformance.floats import round_to
from opsocket_conformance.guard import kernel_running
from opsocket_conformance.returned import check_returned
from opsocket_conformance.watch import watching

SENTINEL = -12345.0
"""What every output holds before a call; no case computes it."""

_GUARD_ROWS = 2


class Denied(Exception):
    """The backend does not serve the request, says so, and refuses to plan it for the same reasons."""

    def __init__(self, reasons: tuple[Reason, ...]) -> None:
        self.reasons = reasons
        super().__init__("; ".join(map(str, reasons)))


@dataclass(eq=False, kw_only=True)
class Bench(Findings):
    """One case's view of a session. providers, tiers: of the kernels that ran, by receipt and by operator. launched:
    as in `Result`, where a ladder takes it down."""

    session: Session
    ladder: Ladder | None = None
    launched: dict[str, dict[str, None]] = field(default_factory=dict)
    providers: dict[str, str] = field(default_factory=dict)
    tiers: dict[str, str] = field(default_factory=dict)
    _inputs: list[tuple[str, Array, Host]] = field(default_factory=list)
    _guards: list[tuple[str, Array, Host]] = field(default_factory=list)
    _batches: list[tuple[str, Any, Any]] = field(default_factory=list)
    _receipts: list[Plan] = field(default_factory=list)
    _planned: dict[int, tuple[Plan, Support]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._anchor = self.session.empty((1,), "f32")

    # ---- arrays

    def put(self, name: str, values: Host, dtype: str | None = None) -> Array:
        """An input on the device; `finish` checks that nothing wrote to it."""
        array = self.session.upload(values, dtype)
        self._inputs.append((name, array, self.bits(array)))
        return array

    def put_strided(self, name: str, values: Host, dtype: str) -> Array:
        """As `put`, but each row is a slice of a wider one, as of a fused projection; NaN lies between rows."""
        rows, width = values.shape[0], int(np.prod(values.shape[1:]))
        wide = np.full((rows, width + 24), np.nan, np.float32)
        wide[:, 16 : 16 + width] = values.reshape(rows, width)
        whole = self.session.upload(wide, dtype)
        self._inputs.append((name, whole, self.bits(whole)))
        return self.session.view(whole[:, 16 : 16 + width], values.shape)

    def out(self, name: str, shape: Sequence[int], dtype: str, *, strided: bool = False) -> Array:
        """An output between guard rows, filled with `SENTINEL`; None where the session does not work in place.

        strided: each of its rows is a slice of a wider one, with guards on both sides.
        """
        if not self.session.in_place:
            return None
        rows, width = shape[0] + 2 * _GUARD_ROWS, int(np.prod(shape[1:]))
        margin = 8 if strided else 0
        fill = np.full((rows, width + 2 * margin), int(SENTINEL) if dtype.startswith("i") else SENTINEL)
        whole = self.session.upload(fill.astype(np.int64 if dtype == "i64" else np.float32), dtype)
        inside = slice(_GUARD_ROWS, rows - _GUARD_ROWS)
        guards = {"rows before": whole[:_GUARD_ROWS], "rows after": whole[rows - _GUARD_ROWS :]}
        if strided:
            guards |= {"left of": whole[inside, :margin], "right of": whole[inside, margin + width :]}
        for part, guard in guards.items():
            self._guards.append((f"{name}: {part}", guard, self.bits(guard)))
        return self.session.view(whole[inside, margin : margin + width], shape)

    def get(self, array: Array) -> Float64:
        """Values on the host, float64."""
        return self.session.download(array).astype(np.float64)

    def bits(self, array: Array) -> Host:
        """Contents that compare equal only where every bit does, NaN included (up to which NaN it is)."""
        host = self.session.download(array)
        if host.dtype.kind != "f":
            return host
        return host.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[host.itemsize])

    # ---- plans

    def plan(self, request: Request, batch: Any = None) -> Plan:
        """The session's plan; `Denied` where it consistently says no."""
        self._batches.append((request.op, batch, deepcopy(batch)))
        support = self.session.supports(request)
        if not support:
            self._check_denial(request, support)
            raise Denied(support.reasons)
        try:
            plan = self.session.plan(request, batch)
        except Unsupported as error:
            if self._refuses_batch(request, batch):
                raise Denied(error.reasons) from None
            self.fail(f"{request.op}: claimed by supports, and plan refuses: {error}")
            raise
        self._planned[id(plan)] = plan, support
        return plan

    def _refuses_batch(self, request: Request, batch: Any) -> bool:
        """Whether the request is planned, and only this batch's inexact lengths are refused, as a backend may."""
        if getattr(batch, "host_exact", True):
            return False
        self.session.plan(request)
        return True

    def _check_denial(self, request: Request, support: Support) -> None:
        if not support.reasons:
            self.fail(f"{request.op}: denied without a reason")
        try:
            self.session.plan(request)
        except Unsupported as error:
            if error.reasons != support.reasons:
                self.fail(f"{request.op}: supports denies with {support.reasons}, plan with {error.reasons}")
        else:
            self.fail(f"{request.op}: supports says no, plan says yes")

    def run(self, plan: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a plan; its kernel must report itself, from the provider that `supports` named."""
        request = plan.request
        before, self._receipts = self.session.observer, []
        self.session.observer = self._observe
        try:
            name = f"{plan.provider}'s {request.op}"
            with kernel_running(name, self.session), watching(self._anchor) as seen:
                result = plan.run(*args, **kwargs)
        finally:
            self.session.observer = before
        for what in dict.fromkeys(seen):
            self.fail(f"{request.op}: off the session's device: {what}")
        self._check_receipt(plan)
        check_returned(plan, result)
        return result

    @contextmanager
    def _observe(self, plan: Plan) -> Iterator[None]:
        self._receipts.append(plan)
        self._take("")
        yield
        self._take(f"{plan.request.op}/{plan.provider}")

    def _take(self, owner: str) -> None:
        if self.ladder is not None:
            self.launched.setdefault(owner, {}).update(dict.fromkeys(self.ladder.recorded()))

    def _check_receipt(self, plan: Plan) -> None:
        op, (_, support) = plan.request.op, self._planned[id(plan)]
        mine = [p for p in self._receipts if p.request.op == op]
        if not mine:
            self.fail(f"{op}: no kernel reported itself")
        for receipt in mine:
            if receipt.provider != support.provider:
                self.fail(f"{op}: supports names provider {support.provider!r}, {receipt.provider!r} ran")
            self.providers[op], self.tiers[op] = receipt.provider, support.tier

    def prepare(self, plan: Plan, tensors: Mapping[str, Host]) -> Any:
        """A packed weight for a plan's request; the tensors it is made from must not change."""
        before = {name: tensor.copy() for name, tensor in tensors.items()}
        packed = self.session.prepare_weight(plan.request, tensors)
        _, support = self._planned[id(plan)]
        self.providers[plan.request.op], self.tiers[plan.request.op] = plan.provider, support.tier
        for name, tensor in tensors.items():
            if not np.array_equal(tensor.view(np.uint8), before[name].view(np.uint8)):
                self.fail(f"prepare_weight: tensor {name} was written to")
        return packed

    def allocate(
        self, cache: CacheSpec, layout: int = 0, k_scale: Host | None = None, v_scale: Host | None = None
    ) -> Cache:
        """A cache in the session's layout number `layout`, every byte of it poisoned; `Denied` where it can't be."""
        scales = {"k_scale": k_scale, "v_scale": v_scale}
        layouts = self.session.cache_layouts(cache)
        if not layouts:
            self.fail(f"cache_layouts: none for a cache that operators claim to work on: {cache}")
            raise Denied(())
        if layout >= len(layouts):
            raise Denied((Reason("layout", "layout", layout, f"one of the session's {len(layouts)}"),))
        made = self.session.allocate_cache(cache, layouts[layout], **scales)
        if made.layout != layouts[layout] or made.spec != cache:
            want = f"{cache} in {layouts[layout].id!r}"
            self.fail(f"allocate_cache: wanted {want}, got {made.spec} in {made.layout.id!r}")
        return made.with_planes(self._poisoned(made.planes, made.layout))

    def check_no_cache(self, cache: CacheSpec, k_scale: Host | None = None, v_scale: Host | None = None) -> None:
        """After an operator denied a cache: where no layout holds it either, `allocate_cache` must say so too."""
        if self.session.cache_layouts(cache):
            return
        try:
            self.session.allocate_cache(cache, k_scale=k_scale, v_scale=v_scale)
        except Unsupported:
            return
        self.fail(f"allocate_cache: makes a cache for which cache_layouts offers no layout: {cache}")

    def _poisoned(self, planes: Mapping[str, Array], layout: CacheLayout) -> dict[str, Array]:
        """Planes of a named order, filled: NaN where the type has one, else a byte that no code of ours uses."""
        filled = dict(planes)
        for plane in layout.planes:
            if plane.order is None or "block" not in plane.order:
                continue
            if plane.dtype in ("i8", "u8"):
                fill = np.full(plane.shape, -128 if plane.dtype == "i8" else 255, np.int64)
            else:
                fill = np.full(plane.shape, np.nan, np.float32)
            filled[plane.name] = self.session.write(planes[plane.name], fill)
        return filled

    # ---- outputs

    def check_padding(self, name: str, given: Array | None, returned: Array, count: int) -> None:
        """The array returned is the one given, and its rows from `count` on are as they were."""
        if given is None:
            return
        info, want = self.session.describe(returned), self.session.describe(given)
        if (info.shape, info.dtype) != (want.shape, want.dtype):
            self.fail(f"{name}: {info.dtype}{list(info.shape)} came, wanted {want.dtype}{list(want.shape)}")
            return
        unwritten = SENTINEL if want.dtype == "i64" else round_to(SENTINEL, want.dtype)
        held = self.get(given)
        if held[:count].size and (held == unwritten).all():
            self.fail(f"{name} was given and not written: write to it and return it, or declare in_place = False")
            return
        self.same_bits(f"{name}: the array given, compared with the array returned", given, self.bits(returned))
        if not (held[count:] == unwritten).all():
            self.fail(f"{name}: padding rows, from {count} on, were written")

    def same_bits(self, what: str, got: Array, want: Host) -> None:
        """`got` on the device holds exactly the contents that `bits` gave before."""
        self.same(what, self.bits(got), want)

    def finish(self) -> None:
        """Nothing but the outputs has changed."""
        self.session.synchronize()
        self._take("")
        for name, array, before in self._inputs:
            if not np.array_equal(self.bits(array), before):
                self.fail(f"{name}: this input was written to")
        for op, batch, then in self._batches:
            for name in [] if batch is None else vars(batch):
                if not np.array_equal(getattr(batch, name), getattr(then, name)):
                    self.fail(f"{op}: the batch's {name} was written to")
        for name, array, before in self._guards:
            if not np.array_equal(self.bits(array), before):
                self.fail(f"{name} the output were written to")
