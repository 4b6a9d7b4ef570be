"""Kernels with one slip in their source, each put to a case of the suite: seen, and for what it does."""

from __future__ import annotations

import pytest

from opsocket.operators import DeviceInfo, Session, SessionOptions
from opsocket_conformance.cases import cases_of
from opsocket_conformance.ladder.controls import fault_of
from opsocket_conformance.power.fault import FaultySession
from opsocket_conformance.runner import run_case
from opsocket_conformance.verdicts import Verdict
from opsocket_cuda.backend import CudaBackend
from opsocket_rocm.backend import RocmBackend
from opsocket_triton.slips import SLIPS


@pytest.fixture(scope="module", params=[(CudaBackend(), "sm_90"), (RocmBackend(), "gfx942")], ids=["sm_90", "gfx942"])
def session(request) -> Session:
    backend, arch = request.param
    device = DeviceInfo(backend.info.name, 0, arch, arch, 1 << 30, numerics="interpreted")
    return backend.open(device, SessionOptions())


@pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: slip.control.name)
def test_it_is_seen_and_the_right_kernel_passes(session, slip):
    control = slip.control
    wanted = {f"op:{control.operator}", f"dtype:{control.dtype}"}
    case = next(
        case
        for case in cases_of("smoke")
        if case.check.name == control.operator and wanted <= case.check.features() and control.case in case.id
    )
    result = run_case(case, FaultySession(session, fault_of(session, control.name)), 0, 120.0)
    assert result.verdict in (Verdict.FAIL, Verdict.CRASH)
    assert control.finding in "\n".join(result.messages)
    assert run_case(case, session, 0, 120.0).verdict is Verdict.PASS
