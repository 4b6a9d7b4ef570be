"""What a report may say that it saw: where the numbers came from, and what became of the artifact."""

from __future__ import annotations

import hashlib
import importlib.util
import pkgutil
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Final, Literal

from opsocket.operators import DeviceInfo
from opsocket_conformance.ladder.section import artifact_of


@dataclass(frozen=True)
class Evidence:
    """numerics: device (ran on the chip), interpreted, emulated, none. artifact: device, compiled, schema, none."""

    numerics: Literal["device", "interpreted", "emulated", "none"]
    artifact: Literal["device", "compiled", "schema", "none"]


def evidence_of(device: DeviceInfo, ladder: Mapping[str, Any] | None = None) -> Evidence:
    """A real device proves both. Where something stands in for the chip, a ladder's section says what is known of
    artifacts: the lowest of all operators. Without one: emulated, the vendor's host code took the calls, by its schema
    and its checks; interpreted, nothing of the vendor's ran."""
    if device.numerics == "device":
        return Evidence("device", "device")
    if ladder is not None:
        return Evidence(device.numerics, _KINDS.get(artifact_of(ladder), "none"))
    return Evidence(device.numerics, "schema" if device.numerics == "emulated" else "none")


_KINDS: Final[Mapping[str, Literal["compiled", "schema", "none"]]] = {"compiled": "compiled", "schema": "schema"}


def suite_digest() -> str:
    """SHA-256 over every file of this package, so that a report says which suite gave it."""
    return _digest([resources.files("opsocket_conformance")], (".py", ".json", ".css", ".js"))


def sources_digest(*classes: type) -> str:
    """SHA-256 over the files of the packages or modules that these classes and their bases are from, and of opsocket's
    own, built libraries with them: what computes the results."""
    names = {base.__module__.partition(".")[0] for given in classes for base in given.__mro__}
    names |= {module.name for module in pkgutil.iter_modules() if module.name.startswith("opsocket")}
    places = [place for name in sorted(names - sys.stdlib_module_names) for place in _places(name)]
    return _digest(places, (".py", ".json", ".h", ".c", ".cpp", ".so"))


def _places(name: str) -> list[Path]:
    """A package's folders, or a module's file; nothing for what has neither, such as a program's own classes."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:
        return []
    if spec is None:
        return []
    return [Path(place) for place in spec.submodule_search_locations or [spec.origin or ""] if Path(place).exists()]


def _digest(places: Iterable[Any], endings: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for place in places:
        for path, content in sorted(_files(place, "", endings)):
            digest.update(f"{path}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def _files(folder: Any, prefix: str, endings: tuple[str, ...]) -> list[tuple[str, bytes]]:
    if folder.is_file():
        return [(folder.name, folder.read_bytes())]
    found: list[tuple[str, bytes]] = []
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name != "__pycache__":
            found += _files(entry, f"{prefix}{entry.name}/", endings)
        elif entry.name.endswith(endings):
            found.append((f"{prefix}{entry.name}", entry.read_bytes()))
    return found


def host() -> dict[str, str]:
    """The machine and the versions that could change a number."""
    versions = {name: _version(name) for name in ("numpy", "torch", "triton")}
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "python": sys.version.split()[0],
        **{name: version for name, version in versions.items() if version},
    }


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
