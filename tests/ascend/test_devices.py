"""NPUs are found right, and what is missing is said: by stand-ins of the vendor's own answers."""

import importlib.metadata
import importlib.util
import os
import re
import sys

import pytest

from opsocket.operators import ContractError
from opsocket_ascend import installation, mode, npu_smi
from opsocket_ascend.backend import AscendBackend
from opsocket_ascend.emulator import build
from opsocket_ascend.npu_smi import Npu, NpuSmiError, parse_mapping, visible
from opsocket_ascend.socs import SOCS, find_soc
from opsocket_conformance.ladder.climb import ground

MAPPING = """
\tNPU ID                         Chip ID                        Chip Logic ID                  Chip Name
\t0                              0                              0                              Ascend 910B3
\t0                              1                              -                              Mcu
\t1                              0                              1                              Ascend 910B3
"""
MEMORY = "\tNPU ID                         : 0\n\tHBM Capacity(MB)               : 65536\n"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in (mode.VARIABLE, "ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH", "ASCEND_RT_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(installation, "_USUAL", ("/nowhere/Ascend",))


@pytest.fixture
def driver(monkeypatch):
    monkeypatch.setattr(npu_smi, "driver_nodes", lambda: [0, 1])


@pytest.fixture
def packages(monkeypatch):
    versions = {"torch": "2.13.0+cpu", "torch_npu": "2.13.0"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if versions.get(name) else None)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions[name])
    return versions


@pytest.fixture
def cann(tmp_path, monkeypatch):
    home = tmp_path / "latest"
    (home / "lib64").mkdir(parents=True)
    (home / "lib64" / "libascendcl.so").touch()
    (home / "x86_64-linux").mkdir()
    (home / "x86_64-linux" / "ascend_toolkit_install.info").write_text("package_name=Ascend-cann\nversion=8.5.0\n")
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(home))
    return home


def answered(monkeypatch, **answers):
    def ask(*arguments):
        answer = answers["mapping"] if "-m" in arguments else MEMORY
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(npu_smi, "_ask", ask)


def test_devices_are_those_of_npu_smi(driver, packages, cann, monkeypatch):
    answered(monkeypatch, mapping=MAPPING)
    devices = AscendBackend().devices()
    assert [(str(d), d.arch, d.memory_bytes >> 30, d.numerics) for d in devices] == [
        ("ascend:0", "Ascend910B3", 64, "device"),
        ("ascend:1", "Ascend910B3", 64, "device"),
    ]


def test_a_row_without_a_logical_number_is_no_npu():
    assert parse_mapping(MAPPING) == [(0, 0, 0, "Ascend 910B3"), (1, 0, 1, "Ascend 910B3")]


@pytest.mark.parametrize(("variable", "seen"), [(None, [0, 1]), ("1", [1]), ("1,0", [1, 0]), ("1,7,0", [1]), ("", [])])
def test_only_visible_npus_count(variable, seen):
    found = {n: Npu(n, "Ascend 910B3", None) for n in (0, 1)}
    assert [npu.logical for npu in visible(found, variable)] == seen


@pytest.mark.parametrize(
    ("break_it", "reason", "hint"),
    [
        (lambda p, c, m: m.setattr(npu_smi, "driver_nodes", list), "no Ascend driver", "OPSOCKET_EMULATE"),
        (lambda p, c, m: p.pop("torch"), "torch is not installed", r"opsocket\[ascend\]"),
        (lambda p, c, m: p.pop("torch_npu"), "torch_npu is not installed", "torch-npu==2.13.0"),
        (lambda p, c, m: p.update(torch_npu="2.9.0.post2"), "torch_npu 2.9.0 is for torch 2.9.0, and torch 2.13.0", ""),
        (lambda p, c, m: m.delenv("ASCEND_TOOLKIT_HOME"), "CANN is not installed", "8.5.0 or newer"),
        (lambda p, c, m: _install(c, "8.3.RC1"), "CANN 8.3.0 at .* is too old", "install 8.5.0"),
        (lambda p, c, m: answered(m, mapping=NpuSmiError("dcmi -8005")), "does not answer: dcmi -8005", "npu-smi info"),
        (lambda p, c, m: answered(m, mapping=""), "no NPU is visible", "ASCEND_RT_VISIBLE_DEVICES"),
        (lambda p, c, m: answered(m, mapping="0 0 0 Ascend 910A\n"), "no NPU of a chip that is known: Ascend 910A", ""),
    ],
)
def test_absence_says_what_is_missing_and_what_to_install(driver, packages, cann, monkeypatch, break_it, reason, hint):
    answered(monkeypatch, mapping=MAPPING)
    break_it(packages, cann, monkeypatch)
    found = AscendBackend()
    assert found.devices() == []
    assert re.search(reason, found.absence().reason)
    assert re.search(hint, found.absence().hint)


def _install(home, version):
    (home / "x86_64-linux" / "ascend_toolkit_install.info").write_text(f"version={version}\n")


def test_cann_that_this_shell_does_not_know_is_to_be_sourced(driver, packages, cann, monkeypatch):
    monkeypatch.delenv("ASCEND_TOOLKIT_HOME")
    monkeypatch.setattr(installation, "_USUAL", (str(cann),))
    answered(monkeypatch, mapping=MAPPING)
    assert "not set up in this shell" in AscendBackend().absence().reason
    assert AscendBackend().absence().hint == f"source {cann.parent}/set_env.sh"


@pytest.fixture
def built(monkeypatch):
    monkeypatch.setattr(build, "is_built", lambda: True)


def test_an_emulated_npu_is_listed_when_it_is_asked_for_alone(packages, built, monkeypatch):
    assert AscendBackend().devices() == []
    monkeypatch.setenv(mode.VARIABLE, "Ascend910B3")
    (device,) = AscendBackend().devices()
    assert (str(device), device.arch, device.numerics, device.emulated) == ("ascend:0", "Ascend910B3", "emulated", True)


def test_an_emulated_npu_without_its_libraries_says_how_to_build_them(packages, monkeypatch):
    monkeypatch.setattr(build, "is_built", lambda: False)
    monkeypatch.setenv(mode.VARIABLE, "Ascend910B3")
    assert AscendBackend().devices() == []
    assert "not built" in AscendBackend().absence().reason
    assert "make ascend-emulator" in AscendBackend().absence().hint


def test_verify_without_the_vendors_wheel_says_what_to_install(packages, monkeypatch):
    packages.pop("torch_npu")
    with pytest.raises(ContractError, match=r"torch_npu is not installed \(pip install --no-deps torch-npu==2\.13\.0"):
        ground(AscendBackend(), AscendBackend().ladder(), ["Ascend910B3"])


def test_doctor_notes_what_torch_npu_stands_on(packages, cann, built, monkeypatch):
    assert AscendBackend().notes() == (f"torch_npu 2.13.0 over CANN 8.5.0 at {cann}",)
    monkeypatch.setenv(mode.VARIABLE, "Ascend910B3")
    assert "nothing here has run on an NPU" in AscendBackend().notes()[0]


def test_an_unknown_chip_is_refused_with_those_there_are(packages, built, monkeypatch):
    monkeypatch.setenv(mode.VARIABLE, "Ascend910Z")
    with pytest.raises(ContractError, match=r"Ascend910B3.*Ascend910Z"):
        AscendBackend().devices()


@pytest.mark.parametrize("spelled", ["Ascend910B3", "Ascend 910B3", "910b3"])
def test_a_chip_is_known_however_it_is_spelled(spelled):
    assert find_soc(spelled).name == "Ascend910B3"
    assert len({soc.name for soc in SOCS}) == len(SOCS)


def test_torch_npu_that_can_not_work_does_not_break_torch(packages, monkeypatch):
    monkeypatch.delenv("TORCH_DEVICE_BACKEND_AUTOLOAD", raising=False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    AscendBackend()
    assert os.environ.pop("TORCH_DEVICE_BACKEND_AUTOLOAD") == "0"
