"""What `opsocket tune` found fastest on this machine: for each piece of work the provider that is asked first.

One file for each device (`opsocket.runtime.kept`). It holds names of providers and nothing that runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import opsocket
from opsocket.operators import DeviceInfo, FormatError
from opsocket.runtime import kept


def path(device: DeviceInfo) -> Path:
    """Where a device's choices are kept: $XDG_CACHE_HOME/opsocket/tuned/."""
    return kept.path("tuned", device)


def load(device: DeviceInfo) -> dict[str, str]:
    """`Request.work` -> provider; empty where nothing was measured. `FormatError` for a file that is not ours."""
    file = path(device)
    choices = kept.load(file, "choices", "providers", opsocket.__version__)
    if wrong := [work for work, provider in choices.items() if not isinstance(provider, str)]:
        raise FormatError(file, f"choices[{wrong[0]!r}]", "wanted the name of a provider")
    return choices


def save(device: DeviceInfo, choices: Mapping[str, str]) -> Path:
    """Keep choices, beside those of other work that were kept before; returns the file."""
    file = path(device)
    content = {"version": opsocket.__version__, "device": str(device), "choices": {**load(device), **choices}}
    kept.save(file, content)
    return file
