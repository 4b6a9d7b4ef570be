"""A device, and what is said of it: what it is, has and can do at most, why there is none, and its arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Array = Any
"""A session's own array: a torch tensor on torch sessions, whatever else on others."""


@dataclass(frozen=True)
class DeviceInfo:
    """One device, found without creating a context on it. memory_bytes: what it has in all.

    numerics: what a result on it says of the chip. device: it is the chip. interpreted: the kernels' own source, under
    an interpreter. emulated: the vendor's host code, over code of ours in the chip's place. `auto` takes only "device".
    """

    backend: str
    index: int
    name: str
    arch: str
    memory_bytes: int
    features: tuple[str, ...] = ()
    numerics: Literal["device", "interpreted", "emulated"] = "device"

    @property
    def emulated(self) -> bool:
        """Whether something stands in for the chip."""
        return self.numerics != "device"

    def __str__(self) -> str:
        return f"{self.backend}:{self.index}"


@dataclass(frozen=True)
class Absence:
    """Why a backend has no device here, and what a person can do about it."""

    reason: str
    hint: str


class ArrayInfo(NamedTuple):
    """strides are in elements; None: dense, rows first."""

    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...] | None
    device: str


@dataclass(frozen=True)
class Memory:
    """Bytes on the session's device: what this session's arrays take (None: not counted) and what there is in all."""

    used: int | None
    total: int


@dataclass(frozen=True)
class Limit:
    """What a device can do at most, measured: `per_second` of bytes read from memory ("read"), or of operations on
    numbers of a type ("f32", "int8", "bf16"; a product and its sum are two), on some host threads (0: not a host)."""

    name: str
    unit: Literal["bytes", "operations"]
    threads: int
    per_second: float
