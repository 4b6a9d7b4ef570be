"""Which backend and device a configuration means, and why.

`auto` takes, among the devices that are present and not emulated: accelerators before the host's own processor (the
backend named "cpu"), then the device with the most memory, then by backend name, then the backend's own order. It looks
only at what is there, never at what would work: a device that then fails to open is an error, not a reason to take the
next one.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from opsocket.operators import (
    Backend,
    ContractError,
    DeviceInfo,
    OpsocketError,
    PluginError,
    Session,
    SessionOptions,
)
from opsocket.plugins.known import KNOWN_CHIPS, known_chip
from opsocket.plugins.load import find_backend, proven, survey
from opsocket.plugins.stages import describe
from opsocket.plugins.status import BackendStatus, PluginStatus
from opsocket.runtime import tuning
from opsocket.runtime.config import RuntimeConfig
from opsocket.runtime.kinds import nearest

HOST: Final = "cpu"
_log = logging.getLogger("opsocket")


@dataclass(frozen=True)
class PassedOver:
    """What `auto` did not take: a device, a backend or a plugin, and why."""

    subject: str
    reason: str


@dataclass(frozen=True)
class Selection:
    """A device to open. reason: why this one. passed_over: only where the choice was `auto`'s."""

    backend: Backend
    device: DeviceInfo
    reason: str
    passed_over: tuple[PassedOver, ...] = ()


def select(config: RuntimeConfig) -> Selection:
    """The device that `config.backend` names, found without opening anything.

    A name that nothing answers to is a `ContractError` with the names there are; one that can't be had is a
    `PluginError` with the stage it did not reach, the cause, and what to do.
    """
    selection = _automatic(config) if config.backend == "auto" else _named(config)
    _check_pins(config, selection.backend)
    return selection


def open_session(config: RuntimeConfig, selection: Selection | None = None) -> Session:
    """A session on the selected device. `PluginError` at stage "opened" where its backend fails to open it,
    `ResourceError` where it has too little of something."""
    selection = selection or select(config)
    backend, device = selection.backend, selection.device
    tuned = tuning.load(device) if config.tuned else {}
    options = SessionOptions(config.pins_for(backend.info.name), config.threads, config.checked, tuned)
    try:
        session: object = backend.open(device, options)
    except OpsocketError:
        raise
    except (Exception, SystemExit) as error:
        trace = traceback.format_exc()
        raise PluginError("opened", str(device), f"open() raised {describe(error)}", traceback=trace) from error
    if not isinstance(session, Session):
        raise PluginError("opened", str(device), f"open() returned {type(session).__name__}, not a Session")
    return session


def validated_backend(config: RuntimeConfig) -> Backend:
    """The backend that `config.backend` names, whether or not it has a device here; `auto` names none."""
    name = config.backend.partition(":")[0]
    if name == "auto":
        raise ContractError(f"backend ({config.origin('backend')})", "a backend's name", "'auto'")
    status = find_backend(name, config.plugins.allow)
    if status is None:
        raise _absent(name, config)
    if status.backend is None:
        raise status.error()
    return status.backend


def _named(config: RuntimeConfig) -> Selection:
    name, _, index = config.backend.partition(":")
    status = find_backend(name, config.plugins.allow)
    if status is None:
        raise _absent(name, config)
    if status.backend is None or not status.devices:
        raise status.error()
    devices = [device for device in status.devices if not index or device.index == int(index)]
    if not devices:
        there = ", ".join(map(str, status.devices))
        raise PluginError("available", config.backend, f"there is no such device; there is {there}")
    return Selection(status.backend, devices[0], f"named by {config.origin('backend')}")


def _absent(name: str, config: RuntimeConfig) -> OpsocketError:
    """Why no backend has this name: a plugin that fell out, a chip that nobody serves here, or a slip of the pen."""
    statuses = survey(config.plugins.allow)
    for status in statuses:
        if status.name == name and status.fault is not None:
            return status.error()
    names = sorted({"auto", *(b.name for status in statuses for b in status.backends)})
    chip = known_chip(name)
    if chip is not None:
        cause = f"no installed plugin provides it, and {chip.evidence()}"
        hint = f"Install a plugin that provides {name!r} for {chip.vendor}, or use one of: {', '.join(names)}"
        return PluginError("discovered", f"backend {name!r}", cause, hint=hint)
    meant = nearest(name, [*names, *(chip.name for chip in KNOWN_CHIPS)])
    notes = [f"did you mean {meant!r}?"] if meant else []
    notes += [f"plugin {s.name!r} did not load: {s.fault.cause}" for s in statuses if s.fault is not None]
    got = "; ".join([repr(name), *notes])
    return ContractError(f"backend ({config.origin('backend')})", f"one of {', '.join(names)}", got)


def _automatic(config: RuntimeConfig) -> Selection:
    statuses = survey(config.plugins.allow)
    backends = [b for status in statuses for b in status.backends]
    candidates = [(b, d) for b in backends for d in b.devices]
    emulated = [PassedOver(str(d), d.numerics) for _, d in candidates if d.emulated]
    passed_over = [*emulated, *_faults(statuses), *_unserved({b.name for b in backends})]
    chosen: tuple[Backend, DeviceInfo] | None = None
    for status, device in sorted((pair for pair in candidates if not pair[1].emulated), key=_rank):
        if chosen is not None:
            passed_over.append(PassedOver(str(device), "ranked below"))
            continue
        status = proven(status)
        if status.backend is not None:
            chosen = status.backend, device
        elif status.fault is not None:
            passed_over.append(PassedOver(str(device), f"not {status.fault.stage}: {status.fault.cause}"))
    told = "; ".join(f"{p.subject}: {p.reason}" for p in passed_over)
    if chosen is None:
        hint = "`opsocket backends` lists what is installed, `opsocket doctor` looks closer"
        raise PluginError("available", "backend 'auto'", f"no device to run on{told and f' ({told})'}", hint=hint)
    backend, device = chosen
    _log.info("auto took %s (%s)%s", device, device.name, f"; passed over {told}" if told else "")
    return Selection(backend, device, "the first by auto's order", tuple(passed_over))


def _rank(candidate: tuple[BackendStatus, DeviceInfo]) -> tuple[bool, int, str]:
    _, device = candidate
    return device.backend == HOST, -device.memory_bytes, device.backend


def _faults(statuses: Sequence[PluginStatus]) -> Iterator[PassedOver]:
    for status in statuses:
        if status.fault is not None:
            yield PassedOver(f"plugin {status.name!r}", f"not {status.fault.stage}: {status.fault.cause}")
        for backend in status.backends:
            if backend.fault is not None:
                yield PassedOver(f"backend {backend.name!r}", f"not {backend.fault.stage}: {backend.fault.cause}")


def _unserved(provided: Container[str]) -> Iterator[PassedOver]:
    """Chips whose driver is here and that no plugin serves."""
    for chip in KNOWN_CHIPS:
        if chip.name not in provided and chip.is_present():
            yield PassedOver(f"backend {chip.name!r}", f"{chip.evidence()}, but no installed plugin provides it")


def _check_pins(config: RuntimeConfig, backend: Backend) -> None:
    names = [provider.name for provider in backend.providers()]
    for op, provider in config.pins_for(backend.info.name).items():
        if provider not in names:
            argument = f"operators.{op} ({config.origin(f'operators.{op}')})"
            raise ContractError(argument, f"a provider of {backend.info.name}: {', '.join(names)}", repr(provider))
