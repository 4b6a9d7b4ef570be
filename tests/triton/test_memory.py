"""Interpreted GPUs keep their tensors on a simulated device, and the suite sees what a kernel does behind its back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from opsocket.operators import AddSpec, BackendError, DeviceInfo, Request, Session, SessionOptions
from opsocket_conformance.case import parse_case
from opsocket_conformance.checks import CHECKS
from opsocket_conformance.power.fault import Fault, FaultySession
from opsocket_conformance.runner import run_case
from opsocket_conformance.verdicts import Result, Verdict
from opsocket_cuda.backend import CudaBackend
from opsocket_simulated import memory
from opsocket_triton import mode

DEVICE = DeviceInfo("cuda", 0, "sm_90", "sm_90", 1 << 30, numerics="interpreted")
ADD = "add[t=7,dtype=bf16,width=536]#0"


@pytest.fixture(scope="module")
def session() -> Session:
    if why := mode.unprotected() or memory.absence():
        pytest.skip(why)
    return CudaBackend().open(DEVICE, SessionOptions())


def judge(session: Session, case: str, **hooks: Any) -> Result:
    under_test = FaultySession(session, Fault("*", **hooks)) if hooks else session
    return run_case(parse_case(case, CHECKS), under_test, 0, 60.0)


def test_arrays_are_on_the_device(session):
    x = session.upload(np.arange(6, dtype=np.float32))
    assert x.device.type == memory.TYPE
    used = session.memory().used
    y = session.empty((3, 5), "bf16")
    assert session.memory().used == used + 30
    del y
    assert session.memory().used == used
    np.testing.assert_array_equal(session.download(session.write(x, np.ones(2, np.float32))), [1, 1, 2, 3, 4, 5])


def test_plain_host_memory_when_asked_for(monkeypatch):
    monkeypatch.setenv(mode.MEMORY_VARIABLE, "host")
    session = CudaBackend().open(DEVICE, SessionOptions())
    assert session.empty((1,), "f32").device.type == "cpu"
    assert session.memory().used is None
    assert any("plain host memory" in note for note in mode.notes("cuda", [DEVICE]))


def test_a_tensor_of_the_host_is_refused(session):
    plan = session.plan(Request(AddSpec(8, "f32")))
    x = session.upload(np.ones((2, 8), np.float32))
    with pytest.raises(BackendError, match=r"MixedDevices: a launch with tensors on cpu, simulated:"):
        plan._call(plan._run, x, torch.ones(2, 8), x, outs={"out": x})


def before(action):
    """A fault's `run`: does something to the first array, then what is right."""

    def run(plan, args, kwargs):
        arrays = (value for value in (*args, *kwargs.values()) if isinstance(value, plan.session.array_type))
        action(plan, next(arrays))
        return plan.right(*args, **kwargs)

    return run


def below_dispatch(plan, x):
    with torch._C._DisableTorchDispatch():
        x.sum().item()


HIDDEN = {
    "item": (lambda plan, x: x.sum().item(), "_local_scalar_dense: the host reads from"),
    "bool": (lambda plan, x: bool((x > 0).any()), "the host reads from"),
    "cpu": (lambda plan, x: x.cpu(), "_to_copy on cpu"),
    "download": (lambda plan, x: plan.session.download(x), "_to_copy on cpu"),
    "upload": (lambda plan, x: plan.session.upload(np.ones(3, np.float32)), "_to_copy on cpu"),
    "write": (lambda plan, x: plan.session.write(torch.clone(x)[:1], np.ones((1, *x.shape[1:]))), "on cpu"),
    "nonzero": (lambda plan, x: x.nonzero(), "a shape that depends on content"),
    "mask": (lambda plan, x: x[x > 0], "a shape that depends on content"),
    "synchronize": (lambda plan, x: plan.session.synchronize(), "counted 1 waits by the host"),
    "work on the host": (lambda plan, x: torch.ones(3) + 1, "add on cpu"),
    "below torch's dispatch": (below_dispatch, "counted 1 reads by the host"),
}


@pytest.mark.parametrize("what", HIDDEN)
def test_what_run_does_behind_its_back_is_a_fault(session, what):
    action, message = HIDDEN[what]
    result = judge(session, ADD, run=before(action), hidden=True)
    assert result.verdict is Verdict.FAIL
    assert any(message in each for each in result.messages), result.messages


def test_how_a_fault_is_made_is_not_the_fault(session):
    assert judge(session, ADD).verdict is Verdict.PASS
    for action, _ in HIDDEN.values():
        assert judge(session, ADD, run=before(action)).verdict is Verdict.PASS


@pytest.mark.parametrize("case", ["allocation[call=add]#0", "allocation[call=sample]#0", "allocation[call=rms_norm]#0"])
def test_memory_taken_in_run(session, case):
    kept: list[Any] = []
    assert judge(session, case).verdict is Verdict.PASS
    keeps = judge(session, case, run=before(lambda plan, x: kept.append(torch.empty_like(x))))
    assert keeps.verdict is Verdict.FAIL
    assert "bytes of device memory" in keeps.messages[0]


def test_memory_taken_and_given_back_in_run(session):
    result = judge(session, "allocation[call=add]#0", run=before(lambda plan, x: torch.empty_like(x)))
    assert result.verdict is Verdict.FAIL
    assert "taken 1 times" in result.messages[0]
    composed = CudaBackend().open(DEVICE, SessionOptions(pins={"rms_norm": "composed"}))
    result = judge(composed, "allocation[call=rms_norm]#0")
    assert any("and given back" in note for note in result.notes)


def test_an_update_that_waits(session):
    def update(plan, batch):
        plan.inner.update(batch)
        plan.session.empty((1,), "f32").item()

    result = judge(session, "allocation[call=sample]#0", update=update)
    assert result.verdict is Verdict.FAIL
    assert "update made the host wait: 1 reads" in result.messages[0]
