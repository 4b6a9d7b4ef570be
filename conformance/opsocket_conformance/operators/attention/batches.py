"""The batches that attention cases run: lengths that are pairwise different, and every edge at least once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Row:
    """One request: q_len new tokens, kv_len keys in all. ahead: keys after the last query, which it may not see.
    shared: leading tokens in common with request 0, stored once. start: position of key 0."""

    q_len: int
    kv_len: int
    ahead: int = 0
    shared: int = 0
    start: int = 0


BATCHES: Final[Mapping[str, tuple[Row, ...]]] = {
    "decode": (Row(1, 37, 3), Row(1, 1), Row(1, 131, 1), Row(0, 11), Row(1, 20, 19)),
    "tail": (Row(1, 37), Row(1, 131), Row(1, 2), Row(1, 16)),
    "edges": tuple(Row(1, n, n % 3) for n in (15, 16, 17, 31, 32, 33, 127, 128, 129, 130)),
    "prefill": (Row(17, 17), Row(5, 5), Row(0, 0), Row(1, 1), Row(29, 29)),
    "chunk": (Row(17, 50), Row(5, 37), Row(0, 21), Row(1, 33), Row(7, 19, 4)),
    "mixed": (Row(17, 17), Row(1, 40, 2), Row(5, 67), Row(1, 1), Row(0, 7), Row(1, 0)),
    "short": (Row(5, 3), Row(17, 1), Row(1, 0), Row(3, 3)),
    "verify": (Row(5, 41), Row(3, 17), Row(4, 4), Row(0, 6)),
    "shared": (Row(1, 139), Row(1, 150, 1, 128), Row(3, 133, 0, 128), Row(1, 47, 2, 32)),
    "shifted": (Row(1, 37, 3, 0, 1000), Row(5, 21, 0, 0, 7), Row(1, 70)),
    "wide": (Row(67, 131), Row(71, 71)),
    "long": (Row(1, 1031, 2), Row(3, 1500), Row(1, 129)),
    "needle": (Row(1, 4099, 1), Row(1, 2051)),
    "longest": (Row(1, 16411, 1), Row(2, 9001)),
    "none": (),
}
"""By name. decode and edges have masked keys by `ahead`; tail is the plain step of an engine; short has more queries
than keys; needle and longest reach beyond every split."""
