"""opsocket: one operator interface for LLM inference, any chip behind it, and proof that each one is right.

    import opsocket
    session = opsocket.open("cpu")           # or "cuda:1", "auto", config="opsocket.yaml"
    plan = session.plan(opsocket.Request(opsocket.AttentionSpec(...), cache=..., bounds=...))

Importing this package is cheap: names are resolved on first use, and no framework is imported before a device is
opened.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from opsocket.operators import *  # noqa: F403
    from opsocket.runtime import open as open


def __getattr__(name: str) -> Any:
    if name == "open":
        return importlib.import_module("opsocket.runtime").open
    if not name.startswith("_"):
        operators = importlib.import_module("opsocket.operators")
        if hasattr(operators, name):
            return getattr(operators, name)
    raise AttributeError(f"module 'opsocket' has no attribute {name!r}")
