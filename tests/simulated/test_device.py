"""The host can't touch the device's memory, nor mix it with its own, nor learn from it unseen; torch works on it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from opsocket_simulated import memory

TOUCHES = """
import ctypes, json, os, signal, torch
from opsocket_simulated import memory
device = memory.device("tests", 1 << 30)
def end_of(touch):
    child = os.fork()
    if child == 0:
        tensor = torch.zeros(64, device=device)  # 256 bytes, which end where the page does
        touch(tensor, tensor.data_ptr())
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "read"
def read(address):
    return ctypes.string_at(address, 1)
def launched(at):
    def touch(tensor, start):
        with memory.launched([tensor]):
            read(start + at)
    return touch
def freed(tensor, start):
    tensor.set_(torch.empty(0, device=device))
    read(start)
def beside(tensor, start):
    with memory.launched([torch.zeros(1, device=device)]):
        read(start)
def after(tensor, start):
    launched(0)(tensor, start)
    read(start)
print(json.dumps({name: end_of(touch) for name, touch in {
    "at any time": lambda tensor, start: read(start),
    "freed": freed,
    "in a launch of it": launched(0),
    "in a launch of another": beside,
    "after a launch of it": after,
    "behind it in a launch": launched(256),
    "before its pages in a launch": launched(256 - os.sysconf("SC_PAGE_SIZE") - 1),
}.items()}))
"""


def test_a_host_that_touches_device_memory_is_ended(device):
    """In processes of their own: each of these is a fault of the processor."""
    run = subprocess.run([sys.executable, "-c", TOUCHES], capture_output=True, text=True, check=True)
    ends = json.loads(run.stdout)
    assert ends.pop("in a launch of it") == "read"
    assert set(ends.values()) == {"SIGSEGV"}, ends


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_new_memory_is_poisoned(device, dtype):
    assert torch.empty(1000, dtype=dtype, device=device).isnan().all().cpu()
    assert (torch.empty(1000, dtype=torch.int32, device=device).cpu() < -1).all()


def test_freed_memory_is_not_to_be_launched_on(device):
    tensor = torch.zeros(8, device=device)
    start = tensor.data_ptr()
    with memory.opened([start], device):
        pass
    del tensor
    with pytest.raises(memory.UseAfterFree, match="freed"), memory.opened([start], device):
        pass


MIXED = {
    "an operand": lambda x, host: x + host,
    "an output": lambda x, host: torch.add(x, x, out=host),
    "rows": lambda x, host: torch.index_select(x, 0, torch.tensor([1])),
    "an index": lambda x, host: x[torch.tensor([1])],
    "a matrix": lambda x, host: x @ host.T,
    "another device": lambda x, host: x + host.to(memory.device("tests: another", 1 << 20)),
    "an array of the host": lambda x, host: x.numpy(),
}


@pytest.mark.parametrize("how", MIXED)
def test_mixed_devices_are_refused(device, how):
    host = torch.ones(4, 8)
    with pytest.raises((RuntimeError, TypeError), match="device"):
        MIXED[how](host.to(device), host)


def test_a_launch_takes_tensors_of_one_device(device):
    x = torch.ones(4, device=device)
    with pytest.raises(memory.MixedDevices, match=r"cpu, simulated"), memory.launched([x, torch.ones(4)]):
        pass
    with memory.launched([torch.ones(4)]):  # plain host memory is in nobody's way
        pass


SEEN = {
    "item": ("reads", lambda x: x.sum().item()),
    "bool": ("reads", lambda x: bool((x > 0).any())),
    "float": ("reads", lambda x: float(x[0, 0])),
    "tolist": ("reads", lambda x: x.tolist()),
    "cpu": ("reads", lambda x: x.cpu()),
    "copy_ to the host": ("reads", lambda x: torch.empty(4, 8).copy_(x)),
    "equal": ("reads", lambda x: torch.equal(x, x)),
    "nonzero": ("waits", lambda x: x.nonzero()),
    "mask": ("waits", lambda x: x[x > 0]),
    "mask of what is written": ("waits", lambda x: x.clone().index_put_((x > 0,), x.sum())),
    "unique": ("waits", lambda x: x.unique()),
    "synchronize": ("waits", lambda x: torch.get_device_module(x.device).synchronize(x.device)),
    "tensor": ("writes", lambda x: torch.tensor([1.0], device=x.device)),
    "copy_ from the host": ("writes", lambda x: x.clone().copy_(torch.ones(4, 8))),
}
UNSEEN = {
    "arithmetic": lambda x: (x * 2 + x.square()).mul_(0.5).clamp(-1, 1),
    "sort": lambda x: x.sort(dim=-1, descending=True, stable=True),
    "softmax": lambda x: torch.softmax(x, -1)[:, :3].contiguous(),
    "cumsum": lambda x: x.double().cumsum(-1),
    "argmax": lambda x: x.argmax(-1),
    "where": lambda x: torch.where(x > 0, x, -x),
    "index_select": lambda x: x.index_select(0, x[:, 0].argsort()),
    "index": lambda x: x[x[:, 0].argsort()],
    "scatter": lambda x: torch.zeros_like(x).scatter_(0, x.argsort(0), x),
    "assignment": lambda x: x.clone().__setitem__((slice(1, 3), slice(2, None)), 7.0),
    "views": lambda x: x.t()[::2].unfold(1, 2, 2).reshape(-1).view(torch.int32),
    "negative views": lambda x: torch._neg_view(x).clone() + torch._neg_view(x)[:1],
    "parts": lambda x: torch.cat(x.split([3, 5], -1), -1),
    "products": lambda x: torch.einsum("ij,kj->ik", x, x),
    "f8": lambda x: x.to(torch.float8_e4m3fn).view(torch.uint8),
    "made there": lambda x: torch.arange(5, device=x.device) + torch.full((5,), 3, device=x.device),
    "a number of the host": lambda x: x * torch.tensor(2.0),
    "resized output": lambda x: torch.sum(x, -1, out=torch.empty(0, device=x.device)),
}


@pytest.mark.parametrize("what", SEEN)
def test_what_the_host_learns_is_counted(device, what):
    x = torch.randn(4, 8).to(device)
    module = torch.get_device_module(device)
    before, (kind, access) = module.host_accesses(device), SEEN[what]
    access(x)
    after = module.host_accesses(device)
    assert [name for name in after if after[name] > before[name]] == [kind]


@pytest.mark.parametrize("what", UNSEEN)
def test_operations_are_the_cpus_and_no_accesses(device, what):
    host = torch.randn(4, 8)
    x, module = host.to(device), torch.get_device_module(device)
    before = module.host_accesses(device)
    there, here = UNSEEN[what](x), UNSEEN[what](host)
    assert module.host_accesses(device) == before
    there, here = ((value,) if isinstance(value, torch.Tensor) else value or () for value in (there, here))
    for a, b in zip(there, here, strict=True):
        assert a.device == device
        assert a.dtype == b.dtype
        assert torch.equal(a.cpu(), b)


def test_views_share_memory(device):
    x = torch.zeros(4, 8, device=device)
    x.view(-1)[3:5].fill_(1)
    x.t()[0].mul_(0).add_(2)
    assert x.cpu()[0].tolist() == [2, 0, 0, 1, 1, 0, 0, 0]


def test_bytes_are_counted_exactly_and_have_an_end(device):
    before = memory.counts(device)
    x = torch.empty(1000, dtype=torch.int8, device=device)
    y = x[10:]
    assert memory.counts(device).live - before.live == 1000
    assert memory.counts(device).allocations - before.allocations == 1
    del x, y
    assert memory.counts(device).live == before.live
    with pytest.raises(torch.OutOfMemoryError, match="wanted"):
        torch.empty(1 << 31, device=device)
