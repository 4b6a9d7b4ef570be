"""What calls leave behind: nothing, on the device or in the process, after 10^4 of them; and what they take."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np

from opsocket.operators import Array, AttentionBatch, Bounds, ContractError, Reason, Session, SlotBatch
from opsocket_conformance.bench import Bench, Denied
from opsocket_conformance.case import Check
from opsocket_conformance.contract.process import process_bytes
from opsocket_conformance.guard import kernel_running
from opsocket_conformance.operators.attention.knobs import Attention
from opsocket_conformance.operators.attention.scene import build, fill
from opsocket_conformance.preconditions.calls import CALLS, Call
from opsocket_conformance.watch import allocations, host_accesses

_BLOCKS: Final = 10
_WARM_UP: Final = 0.2
_PER_CALL: Final = 8.0
"""Bytes that a call may leave in the process: a pointer in a list. Where nothing leaks, most blocks of calls show 0;
the median is what counts, so that a table that grows once is no leak."""
_INTERPRETED_CALLS: Final = 200
"""No more where each call takes an interpreter's time. What so few leave is lost in the process's noise, which is not
watched then: device memory is, to the byte."""
_PLANS: Final = 300
_PER_PLAN: Final = 4096.0


@dataclass(frozen=True)
class Growth(Check):
    """call: "decode", one small step of attention, or a name in `CALLS`. calls: how many. of: "run" calls of `run` by
    one plan, after an `update` with arrays of its own each; "plans" plans that are made, run once and dropped."""

    name: ClassVar[str] = "growth"
    shown: ClassVar[tuple[str, ...]] = ("call", "dtype", "of")

    call: str = "decode"
    dtype: str = "bf16"
    of: str = "run"
    calls: int = 10000

    def __post_init__(self) -> None:
        if self.call != "decode" and self.call not in CALLS:
            raise ContractError("case.call", f"decode, or one of {sorted(CALLS)}", repr(self.call))
        if self.of not in ("run", "plans"):
            raise ContractError("case.of", "run or plans", repr(self.of))

    @property
    def operator(self) -> str:
        return _operator(self.call)

    def features(self) -> frozenset[str]:
        return _features(self.call, self.dtype)

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        call = _make(bench, rng, self.call, self.dtype)
        plan: Any = bench.plan(call.request, call.batch)
        bench.run(plan, **call.args)
        with _settled(), kernel_running(f"{plan.provider}'s {call.request.op}", bench.session):
            if self.of == "plans":
                _drop_plans(bench, call)
            else:
                _repeat(bench, call, plan, self.calls)


@dataclass(frozen=True)
class Allocation(Check):
    """`run` with its output given leaves the session's count of device memory as it was: nothing is taken and kept, but
    for what it returns without a parameter for it. Nor does `update` make the host wait.

    What is taken and given back within one call is seen where torch's module of the device counts allocations: one
    kernel (tier "native") takes none; of several general ones it is noted."""

    name: ClassVar[str] = "allocation"
    shown: ClassVar[tuple[str, ...]] = ("call", "dtype")

    call: str = "decode"
    dtype: str = "bf16"

    @property
    def operator(self) -> str:
        return _operator(self.call)

    def features(self) -> frozenset[str]:
        return _features(self.call, self.dtype) | {"counted_memory"}

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        call = _make(bench, rng, self.call, self.dtype)
        plan: Any = bench.plan(call.request, call.batch)
        if _used(bench.session) is None:
            raise Denied(
                (Reason("memory", "memory.used", None, "a count of the bytes that the session's arrays take"),)
            )
        if call.args.get("out") is None and not call.caches:
            raise Denied((Reason("in_place", "out", None, "an output that is given to run"),))
        bench.run(plan, **call.args)
        with _settled():
            anchor = bench.session.empty((1,), "f32")
            numbers = range(4 if _is_interpreted(bench.session) else 16)
            taken = [_one_call(bench, call, plan, anchor, number) for number in numbers]
        if None in taken:
            bench.note("memory that run takes and gives back within one call is not counted")
        elif most := max(filter(None, taken), default=0):
            what = f"memory was taken {most} times in a call of run, and given back"
            is_one_kernel = bench.tiers[call.request.op] == "native"
            bench.fail(f"{what}: a plan takes its workspace in advance") if is_one_kernel else bench.note(what)


def _one_call(bench: Bench, call: Call, plan: Any, anchor: Array, number: int) -> int | None:
    """`update` and `run` once, watched; how often memory was taken that the caller did not get, None: nobody counts.
    anchor: any array of the session."""
    if call.batch is not None:
        accesses = host_accesses(anchor)
        plan.update(_fresh(call, number))
        waited = host_accesses(anchor) - accesses
        del waited["writes"]
        for kind, times in sorted(waited.items()):
            bench.fail(f"call {number} of update made the host wait: {times} {kind}")
    before, first = _used(bench.session), allocations(anchor)
    result = plan.run(**call.args)
    last = allocations(anchor)
    results = list(result) if isinstance(result, tuple) else [result]
    kept = results.pop(0) if call.args.get("out") is not None else None
    new = sum(isinstance(array, bench.session.array_type) for array in results)
    del result, results
    after = _used(bench.session)
    if before != after:
        bench.fail(f"call {number} of run took {(after or 0) - (before or 0)} bytes of device memory")
    del kept
    return None if first is None or last is None else last - first - new


def _operator(call: str) -> str:
    return "attention" if call == "decode" or call.startswith("attention") else call


def _features(call: str, dtype: str) -> frozenset[str]:
    operator = _operator(call)
    needs = {f"op:{operator}", f"dtype:{dtype}"}
    if operator in ("matmul", "grouped_matmul", "embedding"):
        needs.add(f"weight:{dtype}")
    if operator == "attention" or operator.startswith("cache_"):
        needs.add("cache:same")
    return frozenset(needs | ({"tree", "window", "sinks", "alibi", "lse"} if call == "attention_tree" else set()))


def _make(bench: Bench, rng: np.random.Generator, name: str, dtype: str) -> Call:
    if name != "decode":
        call = CALLS[name](bench, rng, dtype)
        given = {key: value for key, value in call.args.items() if key != "out" or value is not None}
        return replace(call, args=given)
    scene = build(Attention(2, 1, q=dtype, batch="r1:33"), rng)
    bench.plan(scene.request, scene.batch)
    kv, _, _ = fill(bench, scene)
    args = {"q": bench.put("q", scene.q, dtype), "kv": kv}
    out = bench.out("out", scene.q.shape, dtype)
    return Call(scene.request, scene.batch, args if out is None else args | {"out": out}, ())


def _fresh(call: Call, number: int) -> Any:
    """The batch in arrays of its own, its lengths other than the call before's, where they may vary."""
    batch = call.batch
    if isinstance(batch, AttentionBatch) and batch.q_start is None and batch.mask_indptr is None:
        kv_lens = np.asarray(batch.kv_lens)
        return replace(batch, kv_lens=np.maximum(kv_lens - number % 17, np.minimum(kv_lens, 1)))
    if isinstance(batch, SlotBatch):
        return SlotBatch(np.roll(batch.slots, number))
    return replace(batch)


@contextmanager
def _settled() -> Iterator[None]:
    """What lives now is left out of every later collection, which so costs nothing."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _is_interpreted(session: Session) -> bool:
    return session.device.numerics == "interpreted"


def _used(session: Session) -> int | None:
    """Bytes of the session's arrays once all work is done and all garbage is gone."""
    session.synchronize()
    gc.collect()
    return session.memory().used


def _repeat(bench: Bench, call: Call, plan: Any, calls: int) -> None:
    """The same small step over and over, in blocks; what one block leaves behind, every block does."""
    interpreted = _is_interpreted(bench.session)
    calls = min(calls, _INTERPRETED_CALLS) if interpreted else calls
    count = max(calls // _BLOCKS, 1)

    def block(size: int) -> None:
        for number in range(size):
            if call.batch is not None:
                plan.update(_fresh(call, number))
            plan.run(**call.args)

    block(max(int(calls * _WARM_UP), 1))
    used, process = _measure(bench, lambda: block(count), _BLOCKS, dict if interpreted else process_bytes)
    _judge(bench, f"{count * _BLOCKS} calls of run", used, process, count, _PER_CALL)


def _drop_plans(bench: Bench, call: Call) -> None:
    """Plans of different requests, made, run once and dropped: they go, and so does what they took."""
    session, alive, made = bench.session, list[weakref.ref[Any]](), 0

    def block(size: int) -> None:
        nonlocal made
        for _ in range(size):
            made += 1
            request = replace(call.request, bounds=Bounds(max_tokens=100 + made, max_batch=64))
            plan: Any = session.plan(request, call.batch)
            plan.run(**call.args)
            alive.append(weakref.ref(plan))

    def living() -> int:
        session.synchronize()
        gc.collect()
        return sum(ref() is not None for ref in alive)

    block(_PLANS // 2)
    first = living()
    used, process = _measure(bench, lambda: block(_PLANS // 10), 5)
    later = living() - first
    if later > _PLANS // 4:
        bench.fail(f"of {_PLANS // 2} plans that were made and dropped, {later} are still alive")
    _judge(bench, f"{_PLANS // 2} plans made and dropped", used, process, _PLANS // 10, _PER_PLAN)


def _measure(
    bench: Bench, block: Callable[[], None], blocks: int, in_process: Callable[[], dict[str, int]] = process_bytes
) -> tuple[list[int | None], list[dict[str, int]]]:
    """Bytes on the device, and in the process, before and after each of some blocks of calls."""
    used, process = [_used(bench.session)], [in_process()]
    for _ in range(blocks):
        block()
        used.append(_used(bench.session))
        process.append(in_process())
    return used, process


def _judge(
    bench: Bench, what: str, used: list[int | None], process: list[dict[str, int]], count: int, limit: float
) -> None:
    first, last = used[0], used[-1]
    if first is None or last is None:
        bench.note(f"{what}: the session does not count device memory; only the process was watched")
        if not process[0]:
            raise Denied((Reason("memory", "memory.used", None, "a count of bytes, by the session or the system"),))
    elif last > first:
        bench.fail(f"{what} left {last - first} bytes of device memory behind")
    if set(process[0]) != {"resident", "heap", "objects"}:
        watched = ", ".join(process[0]) or "nothing"
        bench.note(f"{what}: of the process, {watched} could be watched")
    for name in process[0]:
        counts = [counted[name] for counted in process]
        each = float(np.median(np.diff(counts))) / count
        if each > limit:
            grown = counts[-1] - counts[0]
            bench.fail(f"{what} left {grown} bytes in the process ({name}), {each:.0f} each, wanted at most {limit:g}")
