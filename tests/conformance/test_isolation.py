"""A backend that kills or hangs its process: every planned case is reported exactly once, and the others still run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

MAIN = "from opsocket.cli.main import main; main()"

BACKEND = """
import ctypes, os, signal, sys
from dataclasses import replace

from opsocket.operators import AddPlan, AddSpec, ArgmaxPlan, ArgmaxSpec, BackendInfo, Pick, Provider, Reason
from opsocket.operators import SiluMulPlan, SiluMulSpec, TakeRowsPlan, TakeRowsSpec
from opsocket.plugins import hookimpl
from opsocket_cpu.backend import CpuBackend


class Segfaults(SiluMulPlan):
    def _run(self, gate, up, out):
        os.kill(os.getpid(), signal.SIGSEGV)


class NeverReturns(TakeRowsPlan):
    def _run(self, x, rows, out):
        mutex, lock = ctypes.create_string_buffer(64), ctypes.PyDLL(None).pthread_mutex_lock
        lock(mutex)
        lock(mutex)  # with the interpreter's lock, and deaf to signals


class Exits(AddPlan):
    def _run(self, a, b, out):
        print("so long")
        sys.stdout.flush()
        os._exit(0)


class Raises(ArgmaxPlan):
    def _run(self, logits, out):
        raise SystemExit("a kernel that wants to leave")


KERNELS = {SiluMulSpec: Segfaults, TakeRowsSpec: NeverReturns, AddSpec: Exits, ArgmaxSpec: Raises}


class DeadlyProvider(Provider):
    name = "deadly"

    def pick(self, device, request):
        kernel = KERNELS.get(type(request.spec))
        return (Reason("op", "op", request.op, "one of four"),) if kernel is None else Pick(kernel)


class DeadlyBackend(CpuBackend):
    info = BackendInfo("deadly", "1.0", ">=1.0,<2", "the tests")

    def devices(self):
        return [replace(device, backend="deadly") for device in super().devices()]

    def providers(self):
        return [DeadlyProvider(), *super().providers()]

    def open(self, device, options):
        if os.environ.get("DEADLY") == "open":
            os.kill(os.getpid(), signal.SIGSEGV)
        if os.environ.get("DEADLY") == "second open":
            mark = os.environ["DEADLY_MARK"]
            if os.path.exists(mark):
                raise RuntimeError("the device fell off the bus")
            os.mkdir(mark)
        return super().open(device, options)


@hookimpl
def opsocket_backends():
    return [DeadlyBackend()]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the plugin installed in it."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "deadly.py").write_text(BACKEND)
    info = folder / "deadly-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: deadly\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[opsocket]\ndeadly = deadly\n")
    return folder


@pytest.fixture
def conformance(site, tmp_path):
    """conformance(*arguments, **environment) -> (exit code, report, what was printed)."""

    def conformance(*arguments, **environment):
        path = tmp_path / "report.json"
        done = subprocess.run(
            [sys.executable, "-c", MAIN, "conformance", "-b", "deadly", "--json", str(path), *arguments],
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", **environment},
        )
        assert path.exists(), done.stdout + done.stderr
        return done.returncode, json.loads(path.read_text()), done.stdout + done.stderr

    return conformance


RIGHT = "rms_norm[t=7,dtype=bf16,width=576,heads=0]#0"
SEGFAULTS = "silu_mul[t=7,dtype=bf16,width=536]#0"
HANGS = "take_rows[t=7,dtype=bf16,width=576]#0"
EXITS = "add[t=7,dtype=bf16,width=536]#0"
RAISES = "argmax[b=5,v=1009,dtype=bf16,x=normal]#0"


def asked(*ids):
    return [part for id in ids for part in ("--case", id)]


def test_one_that_dies_leaves_the_others(conformance):
    ids = [RIGHT, SEGFAULTS, HANGS, RIGHT.replace("#0", "#1"), EXITS, RAISES, RIGHT.replace("#0", "#2")]
    code, report, printed = conformance(*asked(*ids), "--limit", "1", "--jobs", "2")
    cases = {case["id"]: case for case in report["cases"]}
    assert code == 1
    assert [case["id"] for case in report["cases"]] == ids
    assert {id: case["verdict"] for id, case in cases.items()} == {
        id: "PASS" if id.startswith("rms_norm") else "CRASH" for id in ids
    }
    assert "SIGSEGV" in cases[SEGFAULTS]["messages"][-1]
    assert "_run" in cases[SEGFAULTS]["messages"][-1], "the stack of the crash"
    assert "Timeout" in cases[HANGS]["messages"][-1]
    assert "in _run" in cases[HANGS]["messages"][-1], "the stack of the hang"
    assert "exit code 0" in cases[EXITS]["messages"][-1]
    assert "so long" in cases[EXITS]["messages"][-1]
    assert "wants to leave" in cases[RAISES]["messages"][-1]
    assert "red: 4 CRASH" in printed


def test_a_backend_that_dies_at_open(conformance):
    code, report, printed = conformance("--tier", "smoke", DEADLY="open")
    assert code == 1
    assert {case["verdict"] for case in report["cases"]} == {"NOT_RUN"}
    assert len(report["cases"]) == sum(report["counts"].values()) > 200
    assert "SIGSEGV" in report["cases"][0]["messages"][-1]
    assert "NOT_RUN" in printed


def test_a_device_that_is_lost(conformance, tmp_path):
    ids = [RIGHT, SEGFAULTS, RIGHT.replace("#0", "#1")]
    mark = tmp_path / "opened"
    code, report, _ = conformance(*asked(*ids), DEADLY="second open", DEADLY_MARK=str(mark))
    assert code == 1
    assert [case["verdict"] for case in report["cases"]] == ["PASS", "CRASH", "NOT_RUN"]
    assert "fell off the bus" in report["cases"][2]["messages"][-1]
