"""What a plugin's hook returned, checked against the interface: types, names, versions, and what it claims to serve."""

from __future__ import annotations

import re
from collections.abc import Sequence

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from opsocket.operators import INTERFACE_VERSION, Backend, BackendInfo, DeviceInfo, Provider, Support
from opsocket.operators.codec import decode, encode
from opsocket.plugins.canonical import canonical_requests
from opsocket.plugins.stages import Fell, stage
from opsocket.plugins.status import Fault, Stage

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = ("auto", "none")


def check_backends(result: object) -> Sequence[Backend]:
    """The hook's return value as backends."""
    if not isinstance(result, list | tuple):
        raise _fell("validated", f"opsocket_backends() returned {_kind(result)} where a list of backends was wanted")
    for item in result:
        if not isinstance(item, Backend):
            raise _fell("validated", f"opsocket_backends() returned {_kind(item)} where a Backend instance was wanted")
    if not result:
        raise _fell("validated", "opsocket_backends() returned no backend")
    return result


def check_info(backend: Backend) -> BackendInfo:
    """A backend's own description, and whether it was written for this interface."""
    info: object = getattr(backend, "info", None)
    subject = type(backend).__qualname__
    if not isinstance(info, BackendInfo):
        raise _fell("validated", f"{subject}.info is {_kind(info)} where a BackendInfo was wanted")
    for name in ("name", "version", "api", "vendor"):
        value: object = getattr(info, name)
        if not isinstance(value, str):
            raise _fell("validated", f"{subject}.info.{name} is {_kind(value)} where text was wanted")
    if not _NAME.fullmatch(info.name) or info.name in _RESERVED:
        wanted = "lower-case letters, digits and underscores, and not 'auto' or 'none'"
        raise _fell("validated", f"{subject}.info.name is {info.name!r}; wanted {wanted}")
    return info


def check_interface(info: BackendInfo) -> None:
    """Fall out at "compatible" unless `info.api` takes this interface's version."""
    try:
        written_for = SpecifierSet(info.api)
    except InvalidSpecifier:
        raise _fell("validated", f"info.api is {info.api!r} where a specifier such as '>=1.0,<2' was wanted") from None
    if not written_for.contains(INTERFACE_VERSION, prereleases=True):
        cause = f"backend {info.name!r} is written for interface {info.api}, and this is interface {INTERFACE_VERSION}"
        raise _fell("compatible", cause, f"install a version of the plugin that takes interface {INTERFACE_VERSION}")


def check_providers(backend: Backend) -> None:
    """Providers are instances with distinct names, and there is at least one."""
    with stage("validated", "providers() raised"):
        providers: object = backend.providers()
    if not isinstance(providers, list | tuple) or not providers:
        raise _fell("validated", f"providers() returned {_kind(providers)} where at least one Provider was wanted")
    names: list[str] = []
    for provider in providers:
        if not isinstance(provider, Provider):
            raise _fell("validated", f"providers() returned {_kind(provider)} where a Provider instance was wanted")
        name: object = getattr(provider, "name", None)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            wanted = "lower-case letters, digits and underscores"
            raise _fell("validated", f"{type(provider).__qualname__}.name is {name!r}; wanted {wanted}")
        if name in names:
            raise _fell("validated", f"two providers are named {name!r}")
        names.append(name)


def check_devices(backend: Backend) -> tuple[DeviceInfo, ...]:
    """The backend's devices; falls out at "available" where it has none, with the reason that it gives."""
    with stage("available", "devices() raised"):
        devices: object = backend.devices()
    if not isinstance(devices, list | tuple) or not all(isinstance(d, DeviceInfo) for d in devices):
        raise _fell("available", f"devices() returned {_kind(devices)} where DeviceInfo items were wanted")
    if not devices:
        with stage("available", "absence() raised"):
            absence = backend.absence()
            fault = Fault("available", str(absence.reason), str(absence.hint), broken=False)
        raise Fell(fault)
    with stage("available", "devices() returned what is no plain DeviceInfo"):
        plain = tuple(decode(DeviceInfo, encode(device), "device") for device in devices)
    for device in plain:
        if device.backend != backend.info.name:
            raise _fell("available", f"devices() names backend {device.backend!r}, not {backend.info.name!r}")
    if len({device.index for device in plain}) < len(plain):
        raise _fell("available", f"devices() gives two devices one index: {[d.index for d in plain]}")
    return tuple(devices)


def check_claims(backend: Backend, device: DeviceInfo) -> None:
    """`supports` answers each canonical request, and each yes names a finished kernel of that operator."""
    for request in canonical_requests():
        with stage("validated", f"supports({request.op}) raised"):
            answer: object = backend.supports(device, request)
        if not isinstance(answer, Support):
            raise _fell("validated", f"supports({request.op}) returned {_kind(answer)} where a Support was wanted")


def _fell(at: Stage, cause: str, hint: str = "") -> Fell:
    return Fell(Fault(at, cause, hint))


def _kind(value: object) -> str:
    if value is None:
        return "None"
    if isinstance(value, list | tuple):
        return f"{'an empty' if not value else 'a'} {type(value).__name__}"
    return f"the class {value.__qualname__}" if isinstance(value, type) else f"an object of {type(value).__qualname__}"
