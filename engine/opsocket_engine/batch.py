"""One step as host arrays: what goes up to the device before it runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opsocket.cache import BlockManager
from opsocket.operators import AttentionBatch, BlockPairs, SlotBatch
from opsocket_engine.scheduler import Step


@dataclass(frozen=True, eq=False)
class StepBatch:
    """token_ids, positions i64[T]. attention, cache_write: the batches of those operators. rows i64[R]: of the last
    hidden states, those whose logits are wanted, one for each token to choose. copies: None where nothing is copied.
    is_decode: whether every sequence computes one token and chooses the next one, so that rows is 0, 1, ..., T - 1."""

    token_ids: np.ndarray
    positions: np.ndarray
    attention: AttentionBatch
    cache_write: SlotBatch
    rows: np.ndarray
    copies: BlockPairs | None
    is_decode: bool


def assemble(step: Step, blocks: BlockManager) -> StepBatch:
    """The arrays of a scheduled step, in the order of its chunks."""
    chunks = step.chunks
    q_indptr = np.cumsum([0, *(chunk.stop - chunk.start for chunk in chunks)], dtype=np.int32)
    tables = [blocks.block_table(chunk.sequence.key) for chunk in chunks]
    block_table = np.zeros((len(chunks), max(map(len, tables))), np.int32)
    for row, table in zip(block_table, tables, strict=True):
        row[: len(table)] = table
    return StepBatch(
        token_ids=np.concatenate([np.array(c.sequence.tokens[c.start : c.stop], np.int64) for c in chunks]),
        positions=np.concatenate([np.arange(c.start, c.stop, dtype=np.int64) for c in chunks]),
        attention=AttentionBatch(q_indptr, np.array([c.stop for c in chunks], np.int32), block_table),
        cache_write=SlotBatch(np.concatenate([blocks.slots(c.sequence.key, c.start, c.stop) for c in chunks])),
        rows=np.repeat(q_indptr[1:].astype(np.int64) - 1, [c.num_sampled for c in chunks]),
        copies=BlockPairs(np.array(step.copies, np.int64)) if step.copies else None,
        is_decode=all(c.stop - c.start == 1 and c.num_sampled == 1 for c in chunks),
    )
