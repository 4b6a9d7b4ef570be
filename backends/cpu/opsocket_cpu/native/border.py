"""Which sources a native library is of: a number that it has been compiled with. Also run by the build, outside of the
package; needs the standard library only."""

from __future__ import annotations

import hashlib
from pathlib import Path


def border_of(sources: Path) -> int:
    """Of all C++ sources in a folder, by name and content: 0 to 2^31 - 1."""
    digest = hashlib.sha256()
    for path in sorted(sources.iterdir()):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return int(digest.hexdigest()[:8], 16) & 0x7FFFFFFF
