"""Host memory that a chip reads by itself, so that a write to the device is enqueued and nobody waits for it.

A copy from plain host memory makes the host wait until the device has done all that came before. From page-locked
memory it does not, but then that memory must keep its content until the copy has run: a ring of it, each piece of which
is taken again once an event behind its copy has happened. It grows where pieces are still to be read, up to a limit at
which the host waits for the oldest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import torch

_FIRST: Final = 1 << 20
_MOST: Final = 1 << 24
_ALIGNED: Final = 64


class Transfers(ABC):
    """How a device reads host memory; copies happen in the order in which they were enqueued."""

    @abstractmethod
    def allocate(self, nbytes: int) -> torch.Tensor:
        """u8 [nbytes] of host memory that the device reads by itself."""

    @abstractmethod
    def enqueue(self, target: torch.Tensor, source: torch.Tensor) -> Any:
        """Copy memory of `allocate` to the device behind all that was enqueued before; what says that it has run."""

    @abstractmethod
    def has_run(self, event: Any) -> bool:
        """Whether a copy has run; returns at once."""

    @abstractmethod
    def wait(self, event: Any) -> None:
        """Until a copy has run."""

    @abstractmethod
    def is_recording(self) -> bool:
        """Whether what is enqueued now becomes part of a graph, to be repeated by each of its replays."""


class StreamTransfers(Transfers):
    """On torch's current stream of a GPU, which need not be the current one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def allocate(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def enqueue(self, target: torch.Tensor, source: torch.Tensor) -> torch.cuda.Event:
        target.copy_(source, non_blocking=True)
        return torch.cuda.current_stream(self._device).record_event()

    def has_run(self, event: torch.cuda.Event) -> bool:
        return event.query()

    def wait(self, event: torch.cuda.Event) -> None:
        event.synchronize()

    def is_recording(self) -> bool:
        with torch.cuda.device(self._device):
            return torch.cuda.is_current_stream_capturing()


@dataclass(frozen=True)
class _Piece:
    """Bytes start to stop of the ring, which a copy reads until `event`."""

    start: int
    stop: int
    event: Any


class StagingRing:
    """Writes to a device by way of memory that it reads by itself. first, most: bytes of it."""

    def __init__(self, transfers: Transfers, first: int = _FIRST, most: int = _MOST) -> None:
        self._transfers = transfers
        self._most = most
        self._memory = transfers.allocate(min(first, most))
        self._pieces: deque[_Piece] = deque()
        self._outgrown: deque[tuple[torch.Tensor, Any]] = deque()
        self._recorded: list[torch.Tensor] = []

    @property
    def nbytes(self) -> int:
        """Of the memory that pieces are taken from now."""
        return self._memory.numel()

    def write(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Enqueue a copy of `source`, on the host, to `target` of its shape and dtype, on the device. `source` is read
        before this returns. More than the ring may hold is copied from where it is, and waited for."""
        size = source.numel() * source.element_size()
        if not size:
            return
        if self._transfers.is_recording():
            # Each replay reads it again, so it is nobody else's for as long as graphs may live.
            memory = self._transfers.allocate(size)
            self._recorded.append(memory)
            self._enqueue(memory, target, source)
            return
        aligned = size + -size % _ALIGNED
        if aligned > self._most:
            target.copy_(source)
            return
        start = self._take(aligned)
        event = self._enqueue(self._memory[start : start + size], target, source)
        self._pieces.append(_Piece(start, start + aligned, event))

    def _enqueue(self, memory: torch.Tensor, target: torch.Tensor, source: torch.Tensor) -> Any:
        staged = memory.view(source.dtype).view(source.shape)
        staged.copy_(source)
        return self._transfers.enqueue(target, staged)

    def _take(self, size: int) -> int:
        """Where `size` bytes begin that no copy reads any more."""
        while True:
            self._release()
            start = self._gap(size)
            if start is not None:
                return start
            if self.nbytes < self._most:
                self._grow(size)
            else:
                self._transfers.wait(self._pieces[0].event)

    def _release(self) -> None:
        while self._pieces and self._transfers.has_run(self._pieces[0].event):
            self._pieces.popleft()
        while self._outgrown and self._transfers.has_run(self._outgrown[0][1]):
            self._outgrown.popleft()

    def _gap(self, size: int) -> int | None:
        if not self._pieces:
            return 0 if size <= self.nbytes else None
        oldest, newest = self._pieces[0].start, self._pieces[-1].stop
        if newest <= oldest:  # the pieces go on at the beginning
            return newest if size <= oldest - newest else None
        if size <= self.nbytes - newest:
            return newest
        return 0 if size <= oldest else None

    def _grow(self, size: int) -> None:
        if self._pieces:
            self._outgrown.append((self._memory, self._pieces[-1].event))
        self._memory = self._transfers.allocate(min(self._most, max(2 * self.nbytes, size)))
        self._pieces.clear()
