"""How far each plugin and each backend came, as immutable records that round-trip through JSON."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, get_args

from opsocket.operators import Backend, DeviceInfo, PluginError
from opsocket.operators.codec import decode, encode

Stage = Literal["discovered", "compatible", "imported", "validated", "available", "opened"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
"""In order. discovered: an entry point was found. compatible: it was written for this opsocket. imported: its module
loaded. validated: it is what the interface asks for. available: it has a device here. opened: a session works."""


@dataclass(frozen=True)
class Fault:
    """Why a stage was not reached, and what to do about it.

    broken: something must be repaired; False where nothing is wrong (no such device here, not allowed to load).
    """

    stage: Stage
    cause: str
    hint: str = ""
    traceback: str = ""
    broken: bool = True


@dataclass(frozen=True)
class BackendStatus:
    """One backend. reached: the last stage it passed. fault: why it got no further; None where it is available.
    notes: what the backend says of how it works here."""

    name: str
    version: str
    vendor: str
    api: str
    plugin: str
    distribution: str
    reached: Stage
    fault: Fault | None = None
    devices: tuple[DeviceInfo, ...] = ()
    notes: tuple[str, ...] = ()
    backend: Backend | None = field(default=None, compare=False, repr=False)

    @property
    def is_available(self) -> bool:
        return self.fault is None and bool(self.devices)

    def error(self) -> PluginError:
        """The fault as the exception that asking for this backend by name raises."""
        return error_of(f"backend {self.name!r} of {self.distribution}", self.fault)


@dataclass(frozen=True)
class PluginStatus:
    """One entry point of group `opsocket`. import_seconds: what its import took; None where it did not end."""

    name: str
    target: str
    distribution: str
    version: str
    reached: Stage
    fault: Fault | None = None
    import_seconds: float | None = None
    backends: tuple[BackendStatus, ...] = ()

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Its own and its backends'."""
        return tuple(fault for fault in (self.fault, *(b.fault for b in self.backends)) if fault is not None)

    def error(self) -> PluginError:
        """The fault as an exception."""
        return error_of(f"plugin {self.name!r} of {self.distribution}", self.fault)

    def to_json(self) -> dict[str, Any]:
        """Plain data; live backend objects are left out."""
        plain = replace(self, backends=tuple(replace(b, backend=None) for b in self.backends))
        data: dict[str, Any] = encode(plain)
        for backend in data["backends"]:
            del backend["backend"]
        return data

    @classmethod
    def from_json(cls, data: object) -> PluginStatus:
        """The inverse of `to_json`; `ContractError` names the path of whatever is wrong."""
        return decode(cls, data, "plugin")


def error_of(subject: str, fault: Fault | None) -> PluginError:
    """A fault as an exception about `subject`."""
    if fault is None:
        return PluginError("opened", subject, "it is available and was not asked to open")
    return PluginError(fault.stage, subject, fault.cause, traceback=fault.traceback or None, hint=fault.hint)
