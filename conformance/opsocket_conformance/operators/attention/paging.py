"""Where the tokens of a batch lie in a cache: pages in random order, tables with junk past their end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opsocket_conformance.operators.attention.batches import Row

Int64 = npt.NDArray[np.int64]

_SPARE_BLOCKS = 3
_JUNK = (-1, 2**31 - 1, -(2**31), 2**30)


@dataclass(frozen=True, eq=False)
class Paging:
    """num_blocks of the cache; table i32[B, W]; slots: per request i64[kv_len], where each of its tokens lies, -1 for
    those that nobody may see and that were never written."""

    num_blocks: int
    table: npt.NDArray[np.int32]
    slots: list[Int64]


def lay_out(
    rng: np.random.Generator, rows: Sequence[Row], block_size: int, live: Sequence[npt.NDArray[np.bool_]]
) -> Paging:
    """Pages for a batch. live[r] bool[kv_len]: whether any query of request r sees the token.

    Entries wholly left of what is seen name a block that holds poison; entries past the end hold junk.
    """
    used = [-(-row.kv_len // block_size) for row in rows]
    num_blocks = sum(used) + _SPARE_BLOCKS
    free = list(rng.permutation(num_blocks))
    poison = free.pop()
    width = max(used, default=0) + 2
    table = np.array(rng.choice(_JUNK, (len(rows), width)), np.int64)
    slots: list[Int64] = []
    prefix = np.empty(0, np.int64)
    for number, row in enumerate(rows):
        blocks = np.array([free.pop() for _ in range(used[number])], np.int64)
        common = row.shared // block_size
        blocks[:common] = prefix[:common]
        if number == 0:
            prefix = blocks.copy()
        seen = np.flatnonzero(live[number])
        first = seen[0] // block_size if len(seen) else used[number]
        blocks[:first] = poison
        table[number, : used[number]] = blocks
        token = np.arange(row.kv_len)
        where = blocks[token // block_size] * block_size + token % block_size
        slots.append(np.where(token // block_size >= first, where, -1))
    return Paging(num_blocks, table.astype(np.int32), slots)
