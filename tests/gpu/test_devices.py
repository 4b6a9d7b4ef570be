"""Which GPUs a machine has, found without a framework and without a context: by NVIDIA's library, by AMD's driver.

Neither is on the machines that test this. A library of the same C functions, and a folder of the same files, stand in;
they prove that the answers are read right, and nothing about a driver.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

from opsocket.operators import ContractError, DeviceInfo
from opsocket_cuda.backend import CudaBackend
from opsocket_cuda.nvml import Gpu, visible
from opsocket_rocm import kfd
from opsocket_triton.mode import interpreted_devices

NVML = r"""
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory;
static const char *names[] = {"NVIDIA H100 80GB HBM3", "Tesla V100"};
static const char *uuids[] = {"GPU-aaaa-1", "GPU-bbbb-2"};
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = (char *)0 + index + 1; return 0; }
static int at(void *handle) { return (int)((char *)handle - (char *)0) - 1; }
int nvmlDeviceGetName(void *handle, char *text, unsigned size) { strncpy(text, names[at(handle)], size); return 0; }
int nvmlDeviceGetUUID(void *handle, char *text, unsigned size) { strncpy(text, uuids[at(handle)], size); return 0; }
int nvmlDeviceGetMemoryInfo(void *handle, memory *m) { m->total = 1ull << (36 + at(handle)); return 0; }
int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
  *major = at(handle) ? 7 : 9; *minor = 0; return FAIL;
}
const char *nvmlErrorString(int status) { return status == 3 ? "Not Supported" : "?"; }
"""
ASK = """
import json
from opsocket_cuda import nvml
try:
    print(json.dumps([[g.name, g.uuid, g.capability, g.memory_bytes] for g in nvml.gpus()]))
except nvml.NvmlError as error:
    print(json.dumps(str(error)))
"""


def _ask(folder, **env):
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), **env}
    done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _library(folder, status=0):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    (folder / "nvml.c").write_text(NVML)
    target = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", f"-DFAIL={status}", "-o", target, folder / "nvml.c"], check=True)
    return folder


def test_nvidia_gpus_by_their_library(tmp_path):
    both = [["NVIDIA H100 80GB HBM3", "GPU-aaaa-1", [9, 0], 1 << 36], ["Tesla V100", "GPU-bbbb-2", [7, 0], 1 << 37]]
    folder = _library(tmp_path)
    assert _ask(folder) == both
    assert _ask(folder, CUDA_VISIBLE_DEVICES="1") == both[1:]
    assert _ask(folder, CUDA_VISIBLE_DEVICES="") == []


def test_a_library_that_refuses_says_what_and_why(tmp_path):
    assert _ask(_library(tmp_path, status=3)) == "nvmlDeviceGetCudaComputeCapability: Not Supported"


def test_no_library_is_no_gpu_and_an_error_that_names_it(tmp_path):
    assert "libnvidia-ml.so.1" in _ask(tmp_path)


@pytest.mark.parametrize(
    ("variable", "names"),
    [
        (None, "abc"),
        ("2,0", "ca"),
        ("GPU-b", "b"),
        ("0,7,1", "a"),
        ("0,-1,1", "a"),
        ("", ""),
        ("nonsense", ""),
    ],
)
def test_what_a_process_may_see_of_nvidia(variable, names):
    found = [Gpu(name, f"GPU-{name}", (9, 0), 1) for name in "abc"]
    assert "".join(gpu.name for gpu in visible(found, variable)) == names


def _node(topology, number, properties, memory=()):
    node = topology / str(number)
    node.mkdir(parents=True)
    (node / "properties").write_text("".join(f"{name} {value}\n" for name, value in properties.items()))
    (node / "name").write_text("aqua_vanjaram\n" if properties["simd_count"] else "\n")
    for bank, size in enumerate(memory):
        (node / "mem_banks" / str(bank)).mkdir(parents=True)
        (node / "mem_banks" / str(bank) / "properties").write_text(f"heap_type 1\nsize_in_bytes {size}\n")


def test_amd_gpus_by_the_drivers_list(tmp_path, monkeypatch):
    monkeypatch.delenv("HIP_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    _node(tmp_path, 0, {"cpu_cores_count": 64, "simd_count": 0, "gfx_target_version": 0}, [1 << 40])
    _node(tmp_path, 10, {"cpu_cores_count": 0, "simd_count": 384, "gfx_target_version": 110000}, [1 << 34])
    _node(tmp_path, 2, {"cpu_cores_count": 0, "simd_count": 1216, "gfx_target_version": 90402}, [1 << 36, 1 << 37])
    found = kfd.gpus(tmp_path)
    assert [(gpu.node, gpu.arch, gpu.memory_bytes) for gpu in found] == [
        (2, "gfx942", 3 << 36),
        (10, "gfx1100", 1 << 34),
    ]
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1")
    assert [gpu.node for gpu in kfd.gpus(tmp_path)] == [10]
    assert kfd.gpus(tmp_path / "absent") == []


def test_files_of_the_driver_that_say_nothing_sensible_are_no_gpus(tmp_path):
    node = tmp_path / "1"
    node.mkdir()
    (node / "properties").write_text("simd_count many\ngfx_target_version\n\x00\xff 3 4\n")
    assert kfd.gpus(tmp_path) == []


@pytest.mark.parametrize(
    ("version", "arch"),
    [(90010, "gfx90a"), (90402, "gfx942"), (90500, "gfx950"), (110000, "gfx1100"), (120001, "gfx1201")],
)
def test_the_drivers_number_of_an_architecture(version, arch):
    assert kfd.arch_of(version) == arch


def test_interpreted_devices_are_those_asked_for(monkeypatch):
    monkeypatch.setenv("OPSOCKET_INTERPRET", "gfx950, sm_90,gfx1100")
    assert [d.arch for d in interpreted_devices("rocm", "hip")] == ["gfx950", "gfx1100"]
    (device,) = interpreted_devices("cuda", "cuda")
    assert (str(device), device.arch, device.numerics, device.emulated) == ("cuda:0", "sm_90", "interpreted", True)
    monkeypatch.setenv("OPSOCKET_INTERPRET", "sm_70")
    with pytest.raises(ContractError, match=r"arch: wanted one of sm_80, .*, got 'sm_70'"):
        interpreted_devices("cuda", "cuda")


def test_interpreted_devices_come_behind_those_that_are_here(monkeypatch):
    real = DeviceInfo("cuda", 0, "NVIDIA H100", "sm_90", 1 << 36)
    monkeypatch.setattr(CudaBackend, "_present", staticmethod(lambda: [real]))
    monkeypatch.setenv("OPSOCKET_INTERPRET", "sm_80")
    backend = CudaBackend()
    assert [(str(d), d.arch, d.numerics) for d in backend.devices()] == [
        ("cuda:0", "sm_90", "device"),
        ("cuda:1", "sm_80", "interpreted"),
    ]
    assert any("interpreted" in note for note in backend.notes())
    monkeypatch.delenv("OPSOCKET_INTERPRET")
    assert [str(d) for d in backend.devices()] == ["cuda:0"]
    (note,) = backend.notes()
    assert "sm_80, sm_90, sm_100, sm_120" in note
