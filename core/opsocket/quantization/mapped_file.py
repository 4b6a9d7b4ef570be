"""Read-only memory maps of files that come from strangers."""

from __future__ import annotations

import mmap
import os
import stat

from opsocket.operators.errors import FormatError


def map_file(path: str | os.PathLike[str]) -> mmap.mmap:
    """The whole file, mapped for reading. FormatError unless it is a regular file that can be read and holds a byte.

    The map outlives the descriptor; it goes when the last array over it goes.
    """
    try:
        # Asked before opening: opening a named pipe would wait for a writer.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(path, "file", "not a regular file")
        if status.st_size == 0:
            raise FormatError(path, "file", "empty")
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise FormatError(path, "file", f"cannot be read: {error}") from error
