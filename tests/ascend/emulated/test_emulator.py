"""The emulated device keeps what it promises: memory that the host can't touch, errors that say what is missing."""

import ctypes
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from opsocket_ascend.emulator.handles import DTYPES, Tensor, to_bf16


def test_a_host_read_of_device_memory_faults(session):
    array = session.upload(np.ones(4, np.float32))
    child = os.fork()
    if child == 0:
        ctypes.cast(array.data_ptr(), ctypes.POINTER(ctypes.c_float))[0]
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGSEGV


def test_fresh_memory_is_nan(session):
    torch.npu.empty_cache()  # what is given back to torch alone is not fresh
    assert np.isnan(session.download(torch.empty(1 << 24, device="npu"))).all()


def test_an_operator_without_an_answer_is_an_error_that_names_it(session, capfd):
    with pytest.raises(RuntimeError, match="aclnnErfinv"):
        torch.special.erfinv(session.upload(np.zeros(3, np.float32)))
    assert "no answer to this operator; it was given (f32[3], f32[3])" in capfd.readouterr().err


def test_an_index_out_of_range_is_an_error(session):
    with pytest.raises(RuntimeError, match="aclnnIndexSelect"):
        session.upload(np.zeros((3, 2), np.float32)).index_select(0, session.upload(np.array([3])))


def test_f64_is_refused_rather_than_made_f32(session):
    from opsocket.operators import ContractError

    with pytest.raises(ContractError, match="f64"):
        session.upload(np.zeros(3))


def test_bf16_is_rounded_once():
    # 1 + 2^-8 + 2^-40 is above the middle between two bf16 numbers, and f32 does not see by what.
    values = np.array([1 + 2.0**-8, 1 + 2.0**-8 + 2.0**-40, 1 + 3 * 2.0**-8, -(1 + 2.0**-8 + 2.0**-40), np.inf, np.nan])
    assert to_bf16(values).tolist() == [0x3F80, 0x3F81, 0x3F82, 0xBF81, 0x7F80, 0x7FC0]
    some = torch.randn(10000)
    assert np.array_equal(to_bf16(some.double().numpy()), some.bfloat16().view(torch.int16).numpy().view(np.uint16))


def test_a_tensor_outside_of_its_allocation_is_refused():
    lost = Tensor(DTYPES[0], 2, (4,), (1,), (4,), 0, 4096, lambda address, count: None)
    with pytest.raises(RuntimeError, match="outside of its device allocation"):
        lost.raw()
    tiled = Tensor(DTYPES[0], 29, (4, 4), (4, 1), (1, 1, 16, 8), 0, 4096, lambda address, count: None)
    with pytest.raises(RuntimeError, match="outside of its device allocation"):
        tiled.elements()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"OPSOCKET_EMULATE_FAULT": "busy"},
            "the NPU does not open.*507033.*held by another process.*npu-smi info shows which process holds it",
        ),
        ({"OPSOCKET_EMULATE": "Ascend310P3"}, "Ascend310P3"),
    ],
)
def test_another_device_in_a_process_of_its_own(variables, words):
    program = "import opsocket\nwith opsocket.open('ascend:0') as s: print(s.device.arch, len(s.empty((3,), 'f32')))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env=os.environ | variables, capture_output=True, text=True
    )
    assert re.search(words, done.stdout + done.stderr, re.DOTALL)


def test_doctor_says_that_a_device_is_busy_and_how_to_see_by_whom(session, monkeypatch):
    from opsocket.plugins.discovery import discover
    from opsocket.plugins.probe import probe

    monkeypatch.setenv("OPSOCKET_EMULATE_FAULT", "busy")
    (plugin,) = (found for found in discover(None) if found.entry_point.name == "ascend")
    (backend,) = probe(plugin, 240.0).status.backends
    assert backend.reached == "available"
    assert "held by another process" in backend.fault.cause
    assert backend.fault.hint == "npu-smi info shows which process holds it"
    assert "nothing here has run on an NPU" in backend.notes[0]


def test_doctor_of_another_plugin_is_not_disturbed(session):
    """Each is looked at in a process of its own, where nobody has kept torch from loading torch_npu."""
    from opsocket.plugins.discovery import discover
    from opsocket.plugins.probe import probe

    (plugin,) = (found for found in discover(None) if found.entry_point.name == "cpu")
    (backend,) = probe(plugin, 240.0).status.backends
    assert backend.reached == "opened"


def test_plain_torch_is_not_disturbed():
    """In this environment too, once opsocket's backend has been constructed."""
    program = "from opsocket.plugins.load import plugins; plugins(); import torch; print(torch.ones(2).sum().item())"
    environment = {
        k: v for k, v in os.environ.items() if k not in ("OPSOCKET_EMULATE", "TORCH_DEVICE_BACKEND_AUTOLOAD")
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "2.0", done.stderr


@pytest.mark.parametrize(("chip", "rounds"), [("Ascend910B3", False), ("Ascend310P3", True)])
def test_a_product_of_f32_is_what_torch_npu_asks_of_the_chip(session, chip, rounds):
    """1 + 2^-12 is no f16: its square of 64 columns is 64 times 1, or 64 times that."""
    program = """
import numpy as np, opsocket
with opsocket.open("ascend:0") as s:
    x = s.upload(np.full((1, 64), 1 + 2.0**-12, np.float32))
    print(float(s.download(x @ x.t())[0, 0]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env=os.environ | {"OPSOCKET_EMULATE": chip},
        capture_output=True,
        text=True,
    )
    assert float(done.stdout.splitlines()[-1]) == (64.0 if rounds else float(np.float32(64 * (1 + 2.0**-12) ** 2)))
