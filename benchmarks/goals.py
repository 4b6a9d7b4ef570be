"""What the CPU backend is to reach of the limit: a raw read where memory decides, else the instructions' rate."""

from __future__ import annotations

from typing import Any

LARGE_BYTES = 1 << 20
CACHES = {"bf16": 0.85, "f8e4m3fn": 0.80, "i8": 0.75, "i4": 0.65}


def goal(facts: dict[str, Any]) -> float | None:
    """facts: an operator's case, as operators.py describes it. None where no share was set."""
    if facts["op"] == "matmul":
        return _matmul(facts)
    if facts["op"] != "attention" or (facts["q_heads"], facts["head_dim"]) != (32, 128):
        return None
    if facts["q_len"] == 1:
        return CACHES.get(facts["cache"])
    return {512: 0.65, 2048: 0.78}.get(facts["q_len"]) if facts["dtype"] == "bf16" else None


def _matmul(facts: dict[str, Any]) -> float | None:
    if facts["bits"] != 4 or not facts["format"].endswith("_a8"):
        return None
    large = facts["n"] * facts["k"] // 2 > LARGE_BYTES
    if facts["m"] == 1:
        return 0.95 if large else 0.90
    if facts["m"] < 128:
        return None
    if not large:
        return 0.70
    return 0.72 if facts["minimums"] else 0.85 if facts["group"] == 128 else 0.80
