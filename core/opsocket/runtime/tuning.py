"""What `opsocket tune` found fastest on this machine: for each piece of work the provider that is asked first.

One JSON file for each device in the user's cache folder. It holds names of providers and nothing that runs; a file that
another version wrote is passed over, since its kernels were others.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import opsocket
from opsocket.operators import DeviceInfo, FormatError
from opsocket.runtime.files import cache_folder


def path(device: DeviceInfo) -> Path:
    """Where a device's choices are kept: $XDG_CACHE_HOME/opsocket/tuned/."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{device.backend} {device.name} {device.arch}".lower()).strip("-")
    return cache_folder() / "tuned" / f"{name}.json"


def load(device: DeviceInfo) -> dict[str, str]:
    """`Request.work` -> provider; empty where nothing was measured. `FormatError` for a file that is not ours."""
    file = path(device)
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(file, "JSON", str(error)) from None
    if not isinstance(content, dict) or not isinstance(content.get("choices"), dict):
        raise FormatError(file, "choices", "wanted an object of providers")
    if content.get("version") != opsocket.__version__:
        return {}
    choices = content["choices"]
    if wrong := [work for work, provider in choices.items() if not isinstance(provider, str)]:
        raise FormatError(file, f"choices[{wrong[0]!r}]", "wanted the name of a provider")
    return dict(choices)


def save(device: DeviceInfo, choices: Mapping[str, str]) -> Path:
    """Keep choices, beside those of other work that were kept before; returns the file."""
    file = path(device)
    content = {"version": opsocket.__version__, "device": str(device), "choices": {**load(device), **choices}}
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    os.replace(partial, file)
    return file
