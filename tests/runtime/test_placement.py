"""What runs where: as planned, and as it ran."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from opsocket import (
    AddSpec,
    BackendError,
    BackendInfo,
    DeviceInfo,
    MatmulSpec,
    PluginError,
    Request,
    SessionOptions,
)
from opsocket.runtime import Recorder, place

SAMPLE = Path(__file__).parent.parent / "plugins" / "samples" / "base.py"
ADD, WIDE, MATMUL = Request(AddSpec(4)), Request(AddSpec(8)), Request(MatmulSpec("f32", 4, 4))


@pytest.fixture(scope="module")
def sample():
    """The sample plugins' backend in NumPy."""
    spec = importlib.util.spec_from_file_location("sample_base", SAMPLE)
    module = sys.modules["sample_base"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["sample_base"]


@pytest.fixture
def backend(sample):
    class Plain(sample.NumpyBackend):
        info = BackendInfo("plain", "1.0", ">=1.0,<2", "Samples Inc")

    return Plain()


@pytest.fixture
def session(backend):
    with backend.open(backend.devices()[0], SessionOptions()) as session:
        yield session


def test_each_request_is_placed_once_with_its_kernel_or_the_reasons(backend):
    absent = DeviceInfo("plain", 9, "absent", "any", 0)
    add, matmul = place(backend, absent, [ADD, MATMUL, ADD])
    assert (add.request, add.support.provider, add.kernel) == (ADD, "numpy", "sample_base.Add")
    assert not matmul.support
    assert matmul.kernel == ""
    data = json.loads(json.dumps([add.to_json(), matmul.to_json()]))
    assert Request.from_json(data[0]["request"]) == ADD
    assert data[1]["reasons"][0]["code"] == "op"
    assert data[1]["passed_over"][0]["provider"] == "numpy"


def test_a_pin_to_an_absent_provider_is_a_reason(backend):
    (placed,) = place(backend, backend.devices()[0], [ADD], {"add": "torch"})
    assert not placed.support
    assert placed.support.reasons[0].code == "provider"


def test_the_recorder_counts_and_times_every_kernel(session):
    four, eight = np.ones((3, 4), np.float32), np.ones((3, 8), np.float32)
    narrow, wide, other = session.plan(ADD), session.plan(WIDE), session.plan(ADD)
    with Recorder(session) as recorder:
        narrow.run(four, four)
        wide.run(eight, eight)
        other.run(four, four)
        narrow.run(four, four)
    narrow.run(four, four)
    ran = recorder.ran()
    assert [(r.request, r.op, r.provider, r.calls) for r in ran] == [
        (ADD, "add", "numpy", 3),
        (WIDE, "add", "numpy", 1),
    ]
    assert all(r.seconds > 0 for r in ran)
    assert ran[0].to_json()["kernel"] == "sample_base.Add"
    assert session.observer is None


def test_an_observer_that_is_already_there_still_sees_every_kernel(session):
    seen = []

    @contextlib.contextmanager
    def watch(plan):
        seen.append(plan.request)
        yield

    session.observer = watch
    four = np.ones((1, 4), np.float32)
    with Recorder(session) as outer, Recorder(session) as inner:
        session.plan(ADD).run(four, four)
    assert seen == [ADD]
    assert outer.ran()[0].calls == inner.ran()[0].calls == 1
    assert session.observer is watch


def test_a_kernel_that_fails_is_counted_and_its_error_passes(sample, session):
    class Fails(sample.Add):
        def _run(self, a, b, out):
            raise RuntimeError("broken")

    plan, four = Fails(session, ADD, "numpy"), np.ones((1, 4), np.float32)
    with Recorder(session) as recorder, pytest.raises(BackendError, match="broken"):
        plan.run(four, four)
    assert recorder.ran()[0].calls == 1


@pytest.mark.parametrize("answer", ["wrong operator", "not a plan", "abstract", "nothing", "no reasons"])
def test_a_provider_that_names_no_kernel_of_the_operator_is_found_when_asked(sample, backend, answer):
    from opsocket import AddPlan, MatmulPlan, Pick

    answers = {
        "wrong operator": Pick(type("Multiply", (MatmulPlan,), {"__module__": "sample_base"})),
        "not a plan": Pick(int),
        "abstract": Pick(AddPlan),
        "nothing": None,
        "no reasons": (),
    }

    class Claims(sample.NumpyProvider):
        def pick(self, device, request):
            return answers[answer]

    class Claiming(type(backend)):
        def providers(self):
            return [Claims()]

    with pytest.raises(PluginError, match=r"pick\(add\)") as caught:
        Claiming().supports(backend.devices()[0], ADD)
    assert caught.value.stage == "validated"
