"""The contract's checks: each passes on the CPU, and each sees the fault that it is there for."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from opsocket.operators import Memory
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_conformance.case import Case, parse_case
from opsocket_conformance.checks import CHECKS
from opsocket_conformance.contract import probes
from opsocket_conformance.contract.laws import LAWS
from opsocket_conformance.power.fault import Fault, FaultySession
from opsocket_conformance.runner import run_case
from opsocket_conformance.verdicts import Verdict


def run(case, session, seed=0):
    return run_case(parse_case(case, CHECKS), session, seed, 60.0)


@pytest.mark.parametrize("case", [f"contract[law={law},dtype=bf16]#0" for law in LAWS])
def test_the_cpu_keeps_every_law(case, session):
    result = run(case, session)
    assert result.verdict is Verdict.PASS, result.messages
    assert result.provider


@pytest.mark.parametrize("op", ["attention", "matmul", "rms_norm"])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_rows_do_not_depend_on_their_batch_on_the_cpu(op, dtype, session):
    for seed in range(3):
        result = run(f"batch_invariant[op={op},dtype={dtype}]#0", session, seed)
        assert result.verdict is Verdict.PASS, result.messages


def test_every_case_of_the_contract_can_be_asked_for_by_its_id():
    for case in probes.cases():
        assert parse_case(case.id, CHECKS) == Case(case.check, case.draw)


# ---- growth


@pytest.mark.parametrize("case", ["growth[call=matmul,calls=3000]#0", "growth[call=cache_write,of=plans]#0"])
def test_growth_passes_and_says_what_it_could_not_see(case, session):
    result = run(case, session)
    assert result.verdict is Verdict.PASS, result.messages
    assert any("does not count device memory" in message for message in result.notes)


def _leaks(plan, args, kwargs):
    plan.state.setdefault("kept", []).append(bytearray(64))
    return plan.inner.run(*args, **kwargs)


def _keeps_batches(plan, batch):
    plan.inner.update(batch)
    plan.batch = batch
    plan.state.setdefault("batches", []).append(batch)


@pytest.mark.parametrize(
    ("case", "fault"),
    [
        ("growth[call=matmul,calls=3000]#0", Fault("matmul", run=_leaks)),
        ("growth[call=cache_write,calls=2000]#0", Fault("cache_write", update=_keeps_batches)),
    ],
)
def test_what_calls_leave_in_the_process_is_seen(case, fault, session):
    result = run(case, FaultySession(session, fault))
    assert result.verdict is Verdict.FAIL
    assert "left" in result.messages[0]
    assert "bytes in the process" in result.messages[0]


def test_plans_that_a_session_keeps_are_seen(session):
    kept = []

    def plan(faulty, request, batch):
        kept.append(faulty.right.plan(request, batch))
        return kept[-1]

    result = run("growth[call=matmul,of=plans]#0", FaultySession(session, Fault("matmul", session={"plan": plan})))
    assert result.verdict is Verdict.FAIL
    assert "still alive" in result.messages[0]


class _Counting(FaultySession):
    """A session that counts: `calls` times 4096 bytes are taken, and as many of them as `kept` says are kept."""

    def memory(self):
        return Memory(1000 + 4096 * self.counter["kept"], 1 << 40)


def _counting(session, every):
    counter = {"kept": 0, "calls": 0}

    def taking(plan, args, kwargs):
        counter["calls"] += 1
        counter["kept"] += counter["calls"] % every == 0
        return plan.inner.run(*args, **kwargs)

    return _Counting(session, Fault("matmul", run=taking), counter=counter)


def test_device_memory_is_watched_where_it_is_counted(session):
    never, sometimes = 1 << 60, 400
    assert run("growth[call=matmul,calls=1000]#0", _counting(session, never)).verdict is Verdict.PASS
    assert run("allocation[call=matmul]#0", _counting(session, never)).verdict is Verdict.PASS
    leaking = run("growth[call=matmul,calls=1000]#0", _counting(session, sometimes))
    assert leaking.verdict is Verdict.FAIL
    assert "device memory behind" in leaking.messages[0]
    taking = run("allocation[call=matmul]#0", _counting(session, 5))
    assert taking.verdict is Verdict.FAIL
    assert "took 4096 bytes" in taking.messages[0]


def test_allocation_is_not_passed_where_nobody_counts(session):
    result = run("allocation[]#0", session)
    assert result.verdict is Verdict.UNSUPPORTED
    assert result.reasons[0].field == "memory.used"


# ---- plans


def _one_for_all(faulty, request, batch):
    """Who asks for the same gets the same plan, with somebody else's batch in it."""
    plan = faulty.state.setdefault(request, faulty.right.plan(request))
    if batch is not None:
        plan.update(batch)
    return plan


def _stale(plan, batch):
    """The first batch stays for ever."""
    if plan.batch is None:
        plan.inner.update(batch)
    plan.batch = batch


def _half_updated(plan, batch):
    """Takes the lengths before it looks at the table."""
    try:
        plan.inner.update(batch)
    except Exception:
        kept = plan.inner.batch
        plan.inner.update(replace(kept, kv_lens=np.maximum(np.asarray(kept.kv_lens) - 1, 0)))
        raise
    plan.batch = batch


PLANS = {
    "plans share their state": (Fault("attention", session={"plan": _one_for_all}), "interleaved_plans"),
    "a stale plan": (Fault("attention", update=_stale), "shared_plan"),
    "a refused batch is half taken": (Fault("attention", update=_half_updated), "after_errors"),
}


@pytest.mark.parametrize("name", PLANS)
def test_faults_of_plans_are_seen(name, session):
    fault, law = PLANS[name]
    result = run(f"contract[law={law},dtype=f32]#0", FaultySession(session, fault))
    assert result.verdict is Verdict.FAIL, result


def test_memory_that_is_not_there_must_be_a_resource_error(session):
    def allocate(faulty, cache, *scales, **named):
        if cache.num_blocks == 1 << 40:
            return None
        return faulty.right.allocate_cache(cache, *scales, **named)

    result = run(
        "contract[law=after_errors,dtype=f32]#0",
        FaultySession(session, Fault("", session={"allocate_cache": allocate})),
    )
    assert result.verdict is Verdict.FAIL
    assert "2^40" in result.messages[0]


# ---- order


def test_work_that_is_done_out_of_order_is_seen(session):
    """Moves wait until somebody waits for them."""

    def late(plan, args, kwargs):
        plan.owner.state.setdefault("late", []).append((plan, args, kwargs))
        return args[1]

    def catch_up(faulty):
        for plan, args, kwargs in faulty.state.pop("late", []):
            observer, faulty.right.observer = faulty.right.observer, None
            plan.inner.run(*args, **kwargs)
            faulty.right.observer = observer

    def synchronize(faulty):
        catch_up(faulty)
        faulty.right.synchronize()

    def download(faulty, array):
        catch_up(faulty)
        return faulty.right.download(array)

    fault = Fault("cache_move", run=late, session={"synchronize": synchronize, "download": download})
    result = run("contract[law=order,dtype=f32]#0", FaultySession(session, fault))
    assert result.verdict is Verdict.FAIL


# ---- sessions and threads


def test_a_session_whose_closing_breaks_another_is_seen(session):
    closed = []

    def wrong(plan, result, args):
        return result * 2 if closed else result

    class Closing(FaultySession):
        def __exit__(self, *_):
            closed.append(True)

    def reopen(*args):
        return Closing(session.backend.open(*args), Fault(""))

    under_test = FaultySession(session, Fault("matmul", result=wrong))
    under_test.__dict__["backend"] = SimpleNamespace(open=reopen, info=session.backend.info)
    result = run("contract[law=two_sessions,dtype=f32]#0", under_test)
    assert result.verdict is Verdict.FAIL
    assert any("out of bounds" in message for message in result.messages)


def test_state_that_threads_share_is_seen(session):
    scratch = {}

    def through_scratch(plan, args, kwargs):
        """Both sessions keep the batch in one place, and take a moment."""
        scratch["x"] = args[0]
        time.sleep(0.0005)
        return plan.inner.run(scratch["x"], *args[1:], **kwargs)

    fault = Fault("rms_norm", run=through_scratch)
    result = run("contract[law=threads,dtype=f32]#0", FaultySession(session, fault))
    assert result.verdict in (Verdict.FAIL, Verdict.CRASH)


def test_a_plan_that_belongs_to_a_thread_is_seen(session):
    home = threading.get_ident()

    def at_home(plan, result, args):
        return result if threading.get_ident() == home else result + 1

    result = run("contract[law=other_thread,dtype=f32]#0", FaultySession(session, Fault("rms_norm", result=at_home)))
    assert result.verdict is Verdict.FAIL


# ---- batches


def _before_rounding(change):
    """A fault that scales what an operator has in f32, before it rounds to the type asked for."""

    def result(plan, result, args):
        out, lse = result if isinstance(result, tuple) else (result, None)
        rounded = (out * change(plan, args)).to(TORCH_DTYPES[plan.request.spec.out_dtype])
        return (rounded, lse) if isinstance(result, tuple) else rounded

    in_f32 = {"request": lambda request: replace(request, spec=replace(request.spec, out_dtype="f32"))}
    return {**in_f32, "result": result}


def _several(plan, args):
    return len(args[0] if plan.batch is None else plan.batch.kv_lens) > 1


BY_BATCH = _before_rounding(lambda plan, args: 1.001 if _several(plan, args) else 1.0)
"""One part in a thousand: far within E of a bf16 output."""
BY_TIME = _before_rounding(lambda plan, args: 1 + 1e-3 * (time.perf_counter_ns() // 1000 % 3 - 1))


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("hooks", [BY_BATCH, BY_TIME], ids=["batch-dependent", "noise from run to run"])
def test_results_that_depend_on_the_batch_or_the_time_are_seen(dtype, hooks, session):
    seen = run(f"batch_invariant[dtype={dtype}]#0", FaultySession(session, Fault("attention", **hooks)))
    assert seen.verdict is Verdict.FAIL
    assert any(word in message for word in ("differ", "further apart", "gain") for message in seen.messages)


def test_a_product_that_depends_on_the_batch_is_seen(session):
    seen = run("batch_invariant[op=matmul,dtype=bf16]#0", FaultySession(session, Fault("matmul", **BY_BATCH)))
    assert seen.verdict is Verdict.FAIL
    assert "gain" in " ".join(seen.messages)
