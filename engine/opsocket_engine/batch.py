"""One step as host arrays: what goes up to the device before it runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from opsocket.cache import BlockManager
from opsocket.operators import AttentionBatch, BlockPairs, SlotBatch
from opsocket_engine.scheduler import Step


@dataclass(frozen=True, eq=False)
class StepBatch:
    """token_ids, positions i64[T]. attention, cache_write: the batches of those operators. rows i64[R]: of the last
    hidden states, those whose logits are wanted, one for each token to choose. copies: None where nothing is copied.
    is_decode: whether every sequence computes one token and chooses the next one, so that rows is 0, 1, ..., T - 1.
    token_ids is empty of a step that runs on what the one before chooses."""

    token_ids: np.ndarray
    positions: np.ndarray
    attention: AttentionBatch
    cache_write: SlotBatch
    rows: np.ndarray
    copies: BlockPairs | None
    is_decode: bool

    def padded(self, sequences: int) -> StepBatch:
        """With more sequences, which have no queries and no keys."""
        attention = self.attention
        more = (0, sequences - len(attention.kv_lens))
        return replace(
            self,
            attention=AttentionBatch(
                np.pad(attention.q_indptr, more, "edge"),
                np.pad(attention.kv_lens, more),
                np.pad(attention.block_table, (more, (0, 0))),
            ),
        )


def assemble(step: Step, blocks: BlockManager) -> StepBatch:
    """The arrays of a scheduled step, in the order of its chunks."""
    if step.is_decode:
        return assemble_decode(step, blocks, 1)[0]
    chunks = step.chunks
    keys = [chunk.sequence.key for chunk in chunks]
    lengths = [chunk.stop - chunk.start for chunk in chunks]
    sampled = [chunk.num_sampled for chunk in chunks]
    q_indptr = np.array([0, *accumulate(lengths)], np.int32)
    kv_lens = np.array([chunk.stop for chunk in chunks], np.int32)
    copies = BlockPairs(np.array(step.copies, np.int64)) if step.copies else None
    attention = AttentionBatch(q_indptr, kv_lens, blocks.block_tables(keys))
    return StepBatch(
        token_ids=np.concatenate([np.array(c.sequence.tokens[c.start : c.stop], np.int64) for c in chunks]),
        positions=np.concatenate([np.arange(c.start, c.stop, dtype=np.int64) for c in chunks]),
        attention=attention,
        cache_write=SlotBatch(np.concatenate([blocks.slots(c.sequence.key, c.start, c.stop) for c in chunks])),
        rows=np.repeat(q_indptr[1:].astype(np.int64) - 1, sampled),
        copies=copies,
        is_decode=False,
    )


def assemble_decode(step: Step, blocks: BlockManager, count: int) -> list[StepBatch]:
    """The arrays of `count` steps, the first of which is `step`, whose `is_decode` holds: each of the others computes
    the token that the one before chooses. Slots for all of them are held."""
    chunks = step.chunks
    keys = [chunk.sequence.key for chunk in chunks]
    starts = [chunk.start for chunk in chunks]
    token_ids = np.array([chunk.sequence.tokens[chunk.start] for chunk in chunks], np.int64)
    q_indptr, rows = np.arange(len(chunks) + 1, dtype=np.int32), np.arange(len(chunks))
    tables, copies = blocks.block_tables(keys), BlockPairs(np.array(step.copies, np.int64)) if step.copies else None
    found = []
    for ahead in range(count):
        at = [start + ahead for start in starts]
        positions, kv_lens = np.array(at, np.int64), np.array([position + 1 for position in at], np.int32)
        slots = np.array([blocks.slot(key, position) for key, position in zip(keys, at, strict=True)], np.int64)
        attention = AttentionBatch(q_indptr, kv_lens, tables)
        found.append(StepBatch(token_ids, positions, attention, SlotBatch(slots), rows, copies, is_decode=True))
        token_ids, copies = _NONE, None
    return found


_NONE = np.empty(0, np.int64)
