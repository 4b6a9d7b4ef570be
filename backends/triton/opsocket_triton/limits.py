"""What a chip can do at most: how fast it reads its memory, by a kernel that does nothing else, and how fast it
multiplies, by the vendor's own products."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import torch
import triton
import triton.language as tl

from opsocket.operators import Limit, ResourceError, Session
from opsocket_triton.launch import launch

READ_BYTES: Final = 2 << 30
"""More than any chip's last cache holds by a factor of eight and more."""
_WIDE: Final = 4096
_STEPS: Final = 16
_SIDE: Final = 8192
_SAMPLES: Final = 5


@triton.jit
def add_up(x, sums, STEPS: tl.constexpr, WIDE: tl.constexpr):
    """For each program the sum, modulo 2^32, of STEPS * WIDE of x's int32 numbers; of what is read, nothing else is
    written but one number in 65536."""
    start = tl.program_id(0).to(tl.int64) * (STEPS * WIDE)
    lane = tl.arange(0, WIDE)
    total = tl.zeros((WIDE,), tl.int32)
    for step in range(STEPS):
        total += tl.load(x + start + step * WIDE + lane)
    tl.store(sums + tl.program_id(0), tl.sum(total, 0))


class Reader:
    """Reads device memory, again and again: `size` bytes rounded down to whole programs, one at the least.

    `ResourceError` where there is no room for them.
    """

    def __init__(self, session: Session, size: int = READ_BYTES) -> None:
        self.programs = max(1, size // (4 * _WIDE * _STEPS))
        self.nbytes = self.programs * 4 * _WIDE * _STEPS
        try:
            self.data: torch.Tensor = session.empty((self.nbytes // 4,), "i32")
        except torch.OutOfMemoryError:
            raise ResourceError("bytes of device memory to read", self.nbytes, session.memory().total) from None
        # Not zeros alone: memory that is compressed on its way would be read faster than it can be.
        torch.arange(self.nbytes // 4, dtype=torch.int32, out=self.data)
        self.sums: torch.Tensor = session.empty((self.programs,), "i32")

    def run(self) -> None:
        launch(add_up, (self.programs,), warps=8, stages=4, x=self.data, sums=self.sums, STEPS=_STEPS, WIDE=_WIDE)


def measure(session: Session) -> tuple[Limit, ...]:
    """Bytes read, and operations on f32, f16, bf16 and int8, per second. About two seconds, 2 GiB of memory."""
    reader = Reader(session)
    found = [Limit("read", "bytes", 0, reader.nbytes / _seconds(reader.run))]
    device = reader.data.device
    del reader
    for name, call in _products(device):
        found.append(Limit(name, "operations", 0, 2.0 * _SIDE**3 / _seconds(call)))
    return tuple(found)


def _products(device: torch.device) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Of f32 in f32, unless the process has turned TF32 on."""
    for name, dtype in (("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)):
        a, b, out = (torch.randn((_SIDE, _SIDE), dtype=dtype, device=device) for _ in range(3))
        yield name, partial(torch.mm, a, b.t(), out=out)
    a, b = (torch.randint(-127, 128, (_SIDE, _SIDE), dtype=torch.int8, device=device) for _ in range(2))
    yield "int8", partial(torch._int_mm, a, b.t())


def _seconds(call: Callable[[], Any]) -> float:
    """Of one call, the median of several after one that does not count, by the device's own clock."""
    call()
    found = []
    for _ in range(_SAMPLES):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1000)
    return statistics.median(found)
