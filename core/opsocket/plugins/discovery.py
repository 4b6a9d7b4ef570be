"""What is installed, by metadata alone: entry points, the distributions that bring them, and what these require.

Nothing of a plugin is imported here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

import opsocket
from opsocket.plugins.entries import installed
from opsocket.plugins.hooks import GROUP
from opsocket.plugins.status import Fault

PLUGINS_VARIABLE = "OPSOCKET_PLUGINS"
_REINSTALL = "reinstall the distribution"


@dataclass(frozen=True)
class Discovered:
    """An entry point and where it comes from. fault: why it must not be imported."""

    entry_point: EntryPoint
    distribution: str
    version: str
    fault: Fault | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.distribution, self.entry_point.name, self.entry_point.value


def parse_allow(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list; "none" names nothing."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return () if names == ("none",) else names


def allowed_by_environment() -> tuple[str, ...] | None:
    """What `OPSOCKET_PLUGINS` allows; None where it is not set or empty, and everything installed is allowed."""
    text = os.environ.get(PLUGINS_VARIABLE)
    return parse_allow(text) if text else None


def discover(allow: Sequence[str] | None) -> tuple[Discovered, ...]:
    """Every installed plugin, ordered by distribution and name. allow: names of entry points or distributions that may
    be imported, None = all; the others are listed with a fault that says so."""
    entries = installed(GROUP)
    found = [_read(entry_point, allow) for entry_point in entries.found]
    for name, problem in entries.unreadable:
        found.append(Discovered(EntryPoint(name, "", GROUP), name, "unknown", Fault("compatible", problem, _REINSTALL)))
    return tuple(sorted(found, key=lambda d: d.key))


def _read(entry_point: EntryPoint, allow: Sequence[str] | None) -> Discovered:
    try:
        distribution = entry_point.dist
        if distribution is None:
            raise ValueError("the entry point belongs to no distribution")
        name, version = distribution.name, distribution.version
        fault = _disallowed(entry_point.name, name, allow) or _mismatch(distribution)
    except (
        Exception
    ) as error:  # metadata on disk is a stranger's file: whatever is wrong with it is this plugin's fault
        cause = f"its metadata can't be read: {type(error).__name__}: {error}"
        return Discovered(entry_point, "unknown", "unknown", Fault("compatible", cause, "reinstall the distribution"))
    return Discovered(entry_point, name, version, fault)


def _disallowed(plugin: str, distribution: str, allow: Sequence[str] | None) -> Fault | None:
    if allow is None:
        return None
    if {canonicalize_name(plugin), canonicalize_name(distribution)} & {canonicalize_name(name) for name in allow}:
        return None
    allowed = ", ".join(allow) or "none"
    return Fault(
        "imported",
        f"not loaded, because plugins.allow is: {allowed}",
        f"add {plugin!r} to plugins.allow in the configuration, or to {PLUGINS_VARIABLE}",
        broken=False,
    )


def _mismatch(distribution: Distribution) -> Fault | None:
    for requirement in _requirements_on_us(distribution.requires or ()):
        if not requirement.specifier.contains(opsocket.__version__, prereleases=True):
            return Fault(
                "compatible",
                f"{distribution.name} {distribution.version} requires opsocket{requirement.specifier}, "
                f"and this is opsocket {opsocket.__version__}",
                f"install an opsocket that meets {requirement.specifier}, or another version of {distribution.name}",
            )
    return None


def _requirements_on_us(requires: Iterable[str]) -> list[Requirement]:
    ours = [text for text in requires if re.match(r"\s*opsocket\b(?![-_.])", text, re.IGNORECASE)]
    try:
        requirements = [Requirement(text) for text in ours]
    except InvalidRequirement as error:
        raise ValueError(f"Requires-Dist: {error}") from None
    return [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
