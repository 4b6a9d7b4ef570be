"""The batches that attention cases run: lengths that are pairwise different, and every edge at least once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Final

from opsocket.operators import ContractError

MAX_ROWS, MAX_Q_LEN, MAX_KV_LEN, MAX_START, MAX_TOKENS = 32, 128, 20000, 100000, 40000
"""What a literal may name: within the bounds of every scene, and in memory."""


@dataclass(frozen=True)
class Row:
    """One request: q_len new tokens, kv_len keys in all. ahead: keys after the last query, which it may not see.
    shared: leading tokens in common with request 0, stored once. start: position of key 0."""

    q_len: int
    kv_len: int
    ahead: int = 0
    shared: int = 0
    start: int = 0

    @property
    def text(self) -> str:
        """As a literal names it: q_len:kv_len:ahead:shared:start, zeros at the end left out."""
        values = [self.q_len, self.kv_len, self.ahead, self.shared, self.start]
        while len(values) > 2 and not values[-1]:
            values.pop()
        return ":".join(map(str, values))


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


def rows_of(batch: str) -> tuple[Row, ...]:
    """The rows of a batch: by its name in `BATCHES`, or of a literal such as r1:37:3+5:20, whose rows are
    q_len:kv_len:ahead:shared:start. ContractError where it is neither, or beyond the bounds above."""
    named = BATCHES.get(batch)
    if named is not None:
        return named
    if re.fullmatch(r"r\d{1,6}(:\d{1,6}){1,4}(\+\d{1,6}(:\d{1,6}){1,4})*", batch) is None:
        raise ContractError("case.batch", f"one of {sorted(BATCHES)}, or rows such as r1:37:3+5:20", repr(batch))
    rows = tuple(Row(*map(int, part.split(":"))) for part in batch[1:].split("+"))
    for number, row in enumerate(rows):
        most = (MAX_Q_LEN, MAX_KV_LEN, row.kv_len, min(row.kv_len, rows[0].kv_len) if number else 0, MAX_START)
        for value, limit, name in zip(astuple(row), most, ("q_len", "kv_len", "ahead", "shared", "start"), strict=True):
            if value > limit:
                raise ContractError("case.batch", f"{name} of row {number} at most {limit}", value)
    if len(rows) > MAX_ROWS or sum(row.kv_len for row in rows) > MAX_TOKENS:
        raise ContractError("case.batch", f"at most {MAX_ROWS} rows and {MAX_TOKENS} keys", repr(batch))
    return rows


def literal(rows: Iterable[Row]) -> str:
    """The name of a batch of these rows, one or more."""
    return "r" + "+".join(row.text for row in rows)
