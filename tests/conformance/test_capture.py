"""Ways to replay a captured step wrongly, each of which the capture cases have to find; and what may differ."""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest

from opsocket.operators import RopePlan
from opsocket_conformance.cases import all_cases
from opsocket_conformance.operators.capture.fast import CaptureFast
from opsocket_conformance.operators.capture.steps import CaptureStep
from opsocket_conformance.runner import run_case
from opsocket_conformance.verdicts import Verdict
from opsocket_cpu.backend import CpuBackend
from opsocket_cpu.graph import CpuGraph

CASES = [case for case in all_cases() if case.id.startswith("capture") and "bf16" in case.id]


class Wrong(CpuGraph):
    """Replays each call by `again`."""

    def _again(self, call):
        return call.plan.launch(call.kernel, call.args)

    def _replay(self):
        for call in self.calls:
            result = self._again(call)
            if result is not call.result:
                self._keep(call.result, result)

    def _with_batch(self, call, batch):
        now = call.plan.batch
        call.plan._update(batch)
        try:
            return call.plan.launch(call.kernel, call.args)
        finally:
            call.plan._update(now)

    @staticmethod
    def _copied(call, *names):
        operator = next(c for c in type(call.plan).__mro__ if c.__module__.startswith("opsocket.operators."))
        parameters = list(inspect.signature(operator._run).parameters)[1:]
        return tuple(a.clone() if n in names else a for n, a in zip(parameters, call.args, strict=True))


class StaleBatch(Wrong):
    def _again(self, call):
        return super()._again(call) if call.batch is None else self._with_batch(call, call.batch)


class StaleSlots(Wrong):
    def _again(self, call):
        stale = call.plan.request.op == "cache_write"
        return self._with_batch(call, call.batch) if stale else super()._again(call)


class LaunchesOfTheCapturedLengths(Wrong):
    """Keys beyond the longest that there were when captured are left out."""

    def _again(self, call):
        if call.plan.request.op != "attention":
            return super()._again(call)
        batch = call.plan.batch
        kv_lens = np.minimum(batch.kv_lens, np.max(call.batch.kv_lens))
        positions = np.asarray(batch.kv_lens) - np.diff(batch.q_indptr)
        return self._with_batch(call, replace(batch, kv_lens=kv_lens, q_start=positions))


class WritesElsewhere(Wrong):
    def _again(self, call):
        call.plan.launch(call.kernel, self._copied(call, "out"))
        return call.result


class PositionsReadWhenCaptured(Wrong):
    def _end(self):
        self.calls = [replace(call, args=self._copied(call, "positions")) for call in self.calls]


class LosesTheResidualSum(Wrong):
    def _copy(self, target, source):
        pass


class Skips(Wrong):
    def _replay(self):
        self.calls, kept = self.calls[:-1], self.calls
        super()._replay()
        self.calls = kept


class Reversed(Wrong):
    def _replay(self):
        self.calls.reverse()
        super()._replay()
        self.calls.reverse()


FAULTS = [
    StaleBatch, StaleSlots, LaunchesOfTheCapturedLengths, WritesElsewhere, PositionsReadWhenCaptured,
    LosesTheResidualSum, Skips, Reversed,
]  # fmt: skip


@pytest.fixture
def verdicts(session, monkeypatch):
    def run(graph_type, cases):
        monkeypatch.setattr(CpuBackend, "graph_type", graph_type)
        return {case.id: run_case(case, session, 0, 60.0).verdict for case in cases}

    return run


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_replay_is_found_by_at_least_three_cases(verdicts, fault):
    steps = [case for case in CASES if isinstance(case.check, CaptureStep)]
    found = list(verdicts(fault, steps).values())
    assert found.count(Verdict.FAIL) >= 3
    assert set(found) <= {Verdict.FAIL, Verdict.PASS}


@pytest.mark.parametrize("fault", [StaleBatch, LaunchesOfTheCapturedLengths, WritesElsewhere, Skips])
def test_operators_that_promise_no_bits_are_held_to_the_batches_of_replays(verdicts, fault):
    fast = [case for case in CASES if isinstance(case.check, CaptureFast)]
    assert set(verdicts(fault, fast).values()) == {Verdict.FAIL}


def test_the_right_replay_passes_everywhere(verdicts):
    assert set(verdicts(CpuGraph, CASES).values()) == {Verdict.PASS}


def test_less_than_everything_is_consistently_unsupported(verdicts):
    class Uniform(CpuGraph):
        @classmethod
        def level(cls, kernel):
            return "uniform" if not issubclass(kernel, RopePlan) else "never"

    found = verdicts(Uniform, CASES)
    assert set(found.values()) == {Verdict.PASS, Verdict.UNSUPPORTED}
    assert found["capture_step[chain=attention,batch=uniform,q=bf16]#0"] is Verdict.PASS
    assert found["capture_step[chain=attention,batch=mixed,q=bf16]#0"] is Verdict.UNSUPPORTED
    assert found["capture_step[chain=layer,batch=decode,q=bf16]#0"] is Verdict.UNSUPPORTED


def test_a_backend_without_graphs_is_unsupported_not_wrong(verdicts):
    assert set(verdicts(None, CASES).values()) == {Verdict.UNSUPPORTED}


def test_a_claim_that_a_run_does_not_keep_is_a_failure(verdicts):
    class OverClaims(CpuGraph):
        """Claims what its kernels, asked under capture, refuse."""

        asked = False

        @classmethod
        def level(cls, kernel):
            return "never" if cls.asked else "any"

        def _begin(self):
            type(self).asked = True

        def _end(self):
            type(self).asked = False

    assert set(verdicts(OverClaims, CASES[:3]).values()) <= {Verdict.FAIL, Verdict.CRASH}
