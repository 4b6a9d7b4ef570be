"""The kernel that a chip's memory is measured with reads all of it, and is a kernel that every architecture takes."""

from __future__ import annotations

import numpy as np
import pytest

from opsocket.operators import SessionOptions
from opsocket_cuda.backend import CudaBackend
from opsocket_triton.arches import ARCHES
from opsocket_triton.compile import compile_all


@pytest.fixture
def session(monkeypatch):
    monkeypatch.setenv("OPSOCKET_INTERPRET", "sm_90")
    backend = CudaBackend()
    (device,) = [device for device in backend.devices() if device.numerics == "interpreted"]
    with backend.open(device, SessionOptions()) as session:
        yield session


def test_every_byte_is_read(session):
    from opsocket_triton.limits import Reader

    reader = Reader(session, 2**20)
    assert reader.nbytes == 2**20
    reader.run()
    data = session.download(reader.data).reshape(reader.programs, -1)
    assert len(np.unique(data)) == data.size
    np.testing.assert_array_equal(session.download(reader.sums), data.sum(1, dtype=np.int32))


def test_it_compiles_everywhere_without_a_spill(session, monkeypatch):
    from opsocket_triton import launch
    from opsocket_triton.limits import Reader

    monkeypatch.setattr(launch, "_taken", None)
    launch.take_down()
    Reader(session, 2**20).run()
    (made,) = launch.taken()
    artifacts = compile_all([(made, arch) for arch in ARCHES.values()])
    assert [artifact.problems for artifact in artifacts] == [()] * 9


def test_an_interpreter_has_no_limits_to_tell(session):
    assert session.limits() == ()
