"""The block manager: which slot of the paged KV cache holds which token of which sequence.

It keeps books and never touches device memory. A sequence's token t lives at slot
block_table[t // block_size] * block_size + t % block_size. Four counts describe a sequence:

- num_tokens: tokens known (the prompt, and what was sampled since);
- num_slots: tokens that it holds slots for (`grow`), which may run ahead of the known ones for drafted tokens;
- num_computed: tokens whose keys and values a finished step has written (`commit`); at most either of the others;
- the full blocks below num_computed are published: other sequences with the same prefix find and share them.

A step of an engine: `admit` or `resume` once, then each step `grow`, carry out the copies, write at `slots`, attend
with `block_table`, `commit`, `append` what was sampled. A table entry changes only where `grow` returns a copy for
it, so a table kept on a device needs nothing but appended entries and those.

Blocks change hands in the books at once, while a step may still be running. That is right as long as all steps and
copies run in the order in which they were decided, as on one stream. One thread at a time.

Method: paged KV cache and copy-on-write from "Efficient Memory Management for Large Language Model Serving with
PagedAttention" (SOSP 2023); sharing along a tree of prefixes with leaves evicted first from "SGLang: Efficient
Execution of Structured Language Model Programs" (NeurIPS 2024).
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from opsocket.cache.pool import BlockPool, expect
from opsocket.cache.prefix import ContentHash, PrefixIndex, PrefixNode, chained_hash
from opsocket.operators.errors import ContractError, ResourceError

MAX_BLOCKS = np.iinfo(np.int32).max  # block tables are i32


class BlockCopy(NamedTuple):
    """Copy all slots of block `src` to block `dst`."""

    src: int
    dst: int


@dataclass(frozen=True)
class CacheStats:
    """Counts since the manager was made.

    `hits` and `misses` are tokens: those that `admit` and `resume` found computed, and those they did not. `evictions`,
    `copies` and `peak_used` are blocks: cached prefixes given up, copy-on-write copies ordered, most in use at once.
    """

    hits: int
    misses: int
    evictions: int
    copies: int
    peak_used: int


@dataclass(slots=True)
class _Sequence:
    tokens: array[int]
    salt: str
    blocks: array[int] = field(default_factory=lambda: array("i"))  # as tables have them: copied, not converted
    nodes: list[PrefixNode] = field(default_factory=list)
    num_slots: int = 0
    num_computed: int = 0
    preempted: bool = False


class BlockManager:
    """Allocation, prefix sharing, copy-on-write, eviction and preemption over `num_blocks` blocks.

    After any error the books are as they were before the call.

    Args:
        num_blocks: physical blocks, numbered from 0; all of them are handed out.
        block_size: tokens per block.
        prefix_sharing: whether computed blocks are found by later sequences; `fork` shares either way.
        content_hash: finds candidates for sharing; equality of tokens decides, so any function is safe.

    Raises:
        ContractError: on sizes below 1, or more blocks than an i32 table can name.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        prefix_sharing: bool = True,
        content_hash: ContentHash = chained_hash,
    ) -> None:
        self.num_blocks = _count("num_blocks", num_blocks, 1, MAX_BLOCKS)
        self.block_size = _count("block_size", block_size, 1)
        self.prefix_sharing = prefix_sharing
        self._pool = BlockPool(self.num_blocks, PrefixIndex(content_hash))
        self._sequences: dict[Hashable, _Sequence] = {}
        self._hits = 0
        self._misses = 0
        self._copies = 0

    # A sequence comes, goes, and comes back.

    def admit(self, seq_id: Hashable, token_ids: Iterable[int], *, salt: str = "") -> int:
        """Register a sequence and share the longest known prefix of full, computed blocks with it.

        At most len(token_ids) - 1 tokens are shared, so that a step computes at least one and has logits to sample
        from. No block is allocated: `grow` does that, chunk by chunk.

        Args:
            seq_id: any hashable that is not in use.
            token_ids: the prompt, integers that fit i64.
            salt: sequences share only under equal salts (tenants, adapters: whatever else the keys depend on).

        Returns:
            The number of tokens that are computed already, a multiple of block_size.

        Raises:
            ContractError: on a seq_id in use, or tokens or a salt of another type.
        """
        self._require_new("seq_id", seq_id)
        if not isinstance(salt, str):
            raise ContractError("salt", "a str", type(salt).__name__)
        sequence = _Sequence(_token_array(token_ids), salt)
        self._sequences[seq_id] = sequence
        return self._share_prefix(sequence)

    def free(self, seq_id: Hashable) -> None:
        """Forget a sequence. Its published blocks stay cached until their room is needed."""
        sequence = self._get(seq_id)
        del self._sequences[seq_id]
        self._pool.release(sequence.blocks)

    def preempt(self, seq_id: Hashable) -> None:
        """Give a sequence's blocks back but remember its tokens, for `resume`.

        Meanwhile it takes `append`, `truncate` and `free` only.
        """
        sequence = self._get_resident(seq_id)
        self._pool.release(sequence.blocks)
        sequence.blocks, sequence.nodes = array("i"), []
        sequence.num_slots = sequence.num_computed = 0
        sequence.preempted = True

    def resume(self, seq_id: Hashable) -> int:
        """Take a preempted sequence up again, as `admit` would with all its tokens; returns the tokens computed."""
        sequence = self._get(seq_id)
        if not sequence.preempted:
            raise ContractError("seq_id", "a preempted sequence", f"{seq_id!r}, which is resident")
        sequence.preempted = False
        return self._share_prefix(sequence)

    def fork(self, parent: Hashable, child: Hashable) -> None:
        """Register `child` with the parent's tokens and computed blocks, all shared; whoever writes first copies.

        Slots that the parent holds but has not computed stay its own.
        """
        source = self._get_resident(parent)
        self._require_new("child", child)
        blocks = source.blocks[: self._blocks_for(source.num_computed)]
        for block in blocks:
            self._pool.share(block)
        computed = source.num_computed
        self._sequences[child] = _Sequence(
            source.tokens[:], source.salt, blocks, source.nodes[:], num_slots=computed, num_computed=computed
        )

    # A sequence gets longer, and sometimes shorter.

    def append(self, seq_id: Hashable, token_ids: Iterable[int]) -> None:
        """Tell tokens that follow the known ones: sampled, or drafted."""
        sequence = self._get(seq_id)
        sequence.tokens.extend(_token_array(token_ids))

    def grow(self, seq_id: Hashable, num_tokens: int) -> list[BlockCopy]:
        """Make room, so that the sequence holds slots for its first `num_tokens` tokens, known or not yet.

        Slots from the present num_slots on are then this sequence's alone to write. Costs O(blocks added).

        Returns:
            Copies to carry out before those slots are written, in the order in which calls of `grow` returned them.
            One at most: where the last, partly filled block is shared or published.

        Raises:
            ResourceError: when free and cached blocks together are too few.
            ContractError: on fewer tokens than it holds slots for (that is `truncate`), or a preempted sequence.
        """
        sequence = self._get_resident(seq_id)
        num_tokens = _count("num_tokens", num_tokens, sequence.num_slots)
        copies_last, num_new = self._growth(sequence, num_tokens)
        need, have = num_new + copies_last, self._pool.num_available
        if need > have:
            raise ResourceError("KV blocks", need, have)
        copies = []
        if copies_last:
            copy = BlockCopy(src=sequence.blocks[-1], dst=self._pool.allocate())
            sequence.blocks[-1] = copy.dst
            copies.append(copy)
        sequence.blocks.extend(self._pool.allocate() for _ in range(num_new))
        sequence.num_slots = num_tokens
        # Given back last, so that no block added here overwrites what has yet to be copied.
        self._pool.release([copy.src for copy in copies])
        self._copies += len(copies)
        return copies

    def can_grow(self, seq_id: Hashable, num_tokens: int) -> bool:
        """Whether `grow` would find enough blocks now; raises ContractError where it would."""
        sequence = self._get_resident(seq_id)
        copies_last, num_new = self._growth(sequence, _count("num_tokens", num_tokens, sequence.num_slots))
        return num_new + copies_last <= self._pool.num_available

    def commit(self, seq_id: Hashable, num_computed: int) -> None:
        """Tell that keys and values of the first `num_computed` tokens are written; full blocks become shareable.

        Raises:
            ContractError: on fewer than committed before, or more than the tokens known or the slots held.
        """
        sequence = self._get(seq_id)
        most = min(sequence.num_slots, len(sequence.tokens))
        sequence.num_computed = _count("num_computed", num_computed, sequence.num_computed, most)
        if not self.prefix_sharing:
            return
        for position in range(len(sequence.nodes), sequence.num_computed // self.block_size):
            block, tokens = sequence.blocks[position], self._block_tokens(sequence, position)
            sequence.nodes.append(self._pool.publish(block, _last_node(sequence), tokens))

    def truncate(self, seq_id: Hashable, num_tokens: int) -> None:
        """Keep the first `num_tokens` tokens and slots and drop the rest: rejected drafts, slots not needed."""
        sequence = self._get(seq_id)
        num_tokens = _count("num_tokens", num_tokens, 0, max(len(sequence.tokens), sequence.num_slots))
        del sequence.tokens[num_tokens:]
        sequence.num_slots = min(sequence.num_slots, num_tokens)
        sequence.num_computed = min(sequence.num_computed, num_tokens)
        del sequence.nodes[sequence.num_computed // self.block_size :]
        keep = self._blocks_for(sequence.num_slots)
        self._pool.release(sequence.blocks[keep:])
        del sequence.blocks[keep:]

    # What a step and a scheduler ask.

    def block_table(self, seq_id: Hashable) -> tuple[int, ...]:
        """The sequence's blocks in order of tokens; ceil(num_slots / block_size) of them."""
        return tuple(self._get(seq_id).blocks)

    def block_tables(self, seq_ids: Sequence[Hashable]) -> NDArray[np.int32]:
        """The tables of several sequences: i32[len(seq_ids), W], one row each, W the longest; 0 past a table's end."""
        blocks = [self._get(seq_id).blocks for seq_id in seq_ids]
        tables = np.zeros((len(blocks), max(map(len, blocks), default=0)), np.int32)
        for row, table in zip(tables, blocks, strict=True):
            row[: len(table)] = table
        return tables

    def slot(self, seq_id: Hashable, position: int) -> int:
        """The slot of one token. ContractError outside of the slots held."""
        sequence = self._get(seq_id)
        position = _count("position", position, 0, sequence.num_slots - 1)
        return sequence.blocks[position // self.block_size] * self.block_size + position % self.block_size

    def slots(self, seq_id: Hashable, start: int, stop: int) -> NDArray[np.int64]:
        """Slots of tokens start, ..., stop - 1: i64[stop - start]. ContractError outside of the slots held."""
        sequence = self._get(seq_id)
        stop = _count("stop", stop, 0, sequence.num_slots)
        start = _count("start", start, 0, stop)
        first = start // self.block_size
        blocks = np.array(sequence.blocks[first : self._blocks_for(stop)], dtype=np.int64)
        slots = blocks[:, None] * self.block_size + np.arange(self.block_size)
        return slots.reshape(-1)[start - first * self.block_size : stop - first * self.block_size]

    def num_tokens(self, seq_id: Hashable) -> int:
        """Tokens known."""
        return len(self._get(seq_id).tokens)

    def num_slots(self, seq_id: Hashable) -> int:
        """Tokens that the sequence holds slots for."""
        return self._get(seq_id).num_slots

    def num_computed(self, seq_id: Hashable) -> int:
        """Tokens whose keys and values are written."""
        return self._get(seq_id).num_computed

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing. `grow` can hand out num_free + num_cached."""
        return self._pool.num_free

    @property
    def num_cached(self) -> int:
        """Blocks that no sequence holds and that keep a prefix which may be found again."""
        return self._pool.num_cached

    @property
    def num_used(self) -> int:
        """Blocks that at least one sequence holds."""
        return self._pool.num_used

    def stats(self) -> CacheStats:
        pool = self._pool
        return CacheStats(self._hits, self._misses, pool.num_evictions, self._copies, pool.peak_used)

    def check(self) -> None:
        """Go through all books and raise InconsistentCacheError at the first contradiction. For tests: slow."""
        references = [0] * self.num_blocks
        writers = [0] * self.num_blocks
        for sequence in self._sequences.values():
            self._check_sequence(sequence)
            for block in sequence.blocks:
                references[block] += 1
            if sequence.num_slots > sequence.num_computed:
                for block in sequence.blocks[sequence.num_computed // self.block_size :]:
                    writers[block] += 1
        expect("blocks that two sequences may write", [], [b for b, count in enumerate(writers) if count > 1])
        self._pool.check(references)

    def _check_sequence(self, sequence: _Sequence) -> None:
        expect("blocks of a sequence", self._blocks_for(sequence.num_slots), len(sequence.blocks))
        expect("blocks held once", len(sequence.blocks), len(set(sequence.blocks)))
        most = min(sequence.num_slots, len(sequence.tokens))
        expect("num_computed of those known and held", True, 0 <= sequence.num_computed <= most)
        num_published = sequence.num_computed // self.block_size if self.prefix_sharing else 0
        expect("published blocks of a sequence", num_published, len(sequence.nodes))
        parent: PrefixNode | str = sequence.salt
        for position, node in enumerate(sequence.nodes):
            expect("node's parent", parent, node.parent)
            expect("node's tokens", self._block_tokens(sequence, position), node.tokens)
            expect("block under its node", True, sequence.blocks[position] in node.blocks)
            parent = node

    def _share_prefix(self, sequence: _Sequence) -> int:
        num_shareable = (len(sequence.tokens) - 1) // self.block_size if self.prefix_sharing else 0
        for position in range(num_shareable):
            node = self._pool.find(_last_node(sequence), self._block_tokens(sequence, position))
            if node is None:
                break
            block = next(iter(node.blocks))
            self._pool.share(block)
            sequence.nodes.append(node)
            sequence.blocks.append(block)
        cached = len(sequence.blocks) * self.block_size
        sequence.num_slots = sequence.num_computed = cached
        self._hits += cached
        self._misses += len(sequence.tokens) - cached
        return cached

    def _growth(self, sequence: _Sequence, num_tokens: int) -> tuple[bool, int]:
        """Whether the last block must be copied first, and how many blocks must be added."""
        writes_last = num_tokens > sequence.num_slots and sequence.num_slots % self.block_size > 0
        copies_last = writes_last and not self._pool.is_writable(sequence.blocks[-1])
        return copies_last, self._blocks_for(num_tokens) - len(sequence.blocks)

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _block_tokens(self, sequence: _Sequence, position: int) -> bytes:
        return sequence.tokens[position * self.block_size : (position + 1) * self.block_size].tobytes()

    def _get(self, seq_id: Hashable) -> _Sequence:
        try:
            return self._sequences[seq_id]
        except KeyError:
            raise ContractError("seq_id", "an admitted sequence", repr(seq_id)) from None

    def _get_resident(self, seq_id: Hashable) -> _Sequence:
        sequence = self._get(seq_id)
        if sequence.preempted:
            raise ContractError("seq_id", "a resident sequence", f"{seq_id!r}, which is preempted")
        return sequence

    def _require_new(self, argument: str, seq_id: Hashable) -> None:
        if seq_id in self._sequences:
            raise ContractError(argument, "an id that is not in use", repr(seq_id))


def _last_node(sequence: _Sequence) -> PrefixNode | str:
    return sequence.nodes[-1] if sequence.nodes else sequence.salt


def _token_array(token_ids: Iterable[int]) -> array[int]:
    try:
        return array("q", iter(token_ids))
    except (TypeError, OverflowError) as error:
        raise ContractError("token_ids", "integers that fit i64", str(error)) from error


def _count(argument: str, value: int, least: int, most: int | None = None) -> int:
    """`value` as an int, or ContractError unless it is an integer from `least` to `most`."""
    try:
        count = operator.index(value)
    except TypeError:
        raise ContractError(argument, _range_text(least, most), repr(value)) from None
    if count < least or (most is not None and count > most):
        raise ContractError(argument, _range_text(least, most), count)
    return count


def _range_text(least: int, most: int | None) -> str:
    return f"an integer of at least {least}" if most is None else f"an integer from {least} to {most}"
