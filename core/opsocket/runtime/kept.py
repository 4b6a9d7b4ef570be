"""What was measured on a device and is kept for later: one JSON file of data for each, in the user's cache folder.

What another version wrote is passed over, since its kernels were others.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opsocket.operators import DeviceInfo, FormatError
from opsocket.runtime.files import cache_folder


def path(kind: str, device: DeviceInfo) -> Path:
    """$XDG_CACHE_HOME/opsocket/KIND/DEVICE.json."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{device.backend} {device.name} {device.arch}".lower()).strip("-")
    return cache_folder() / kind / f"{name}.json"


def load(file: Path, field: str, want: str, version: str) -> dict[str, Any]:
    """The object under `field`; empty where there is no such file, or another version wrote it.

    want: what the object is of, for the `FormatError` of a file that is not ours.
    """
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(file, "JSON", str(error)) from None
    if not isinstance(content, dict) or not isinstance(content.get(field), dict):
        raise FormatError(file, field, f"wanted an object of {want}")
    found: dict[str, Any] = content[field]
    return found if content.get("version") == version else {}


def save(file: Path, content: Mapping[str, Any]) -> None:
    """Put a file there whole, whoever reads it meanwhile."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    os.replace(partial, file)
