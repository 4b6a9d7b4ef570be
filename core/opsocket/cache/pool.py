"""The physical blocks: who refers to each, which are free, and which unreferenced ones still hold a known prefix.

A block is in exactly one of three states:

- used: at least one sequence refers to it;
- cached: nobody refers to it, but it is published in the prefix index and may be found again;
- free: it holds nothing that anybody could ask for.

Three laws make eviction O(1) without a tree walk:

- A published block is never written again.
- Whoever refers to a block refers to a block of each of its ancestors, and gives blocks back last one first. So an
  ancestor is never given back before its descendants, and the plain order of being given back already puts each
  child before its parent: evicting the oldest never cuts a prefix off from its root.
- A prefix that a used block holds keeps no unused duplicate: either all blocks of a node are used, or the node has
  one block and that is cached. So every cached block can be evicted, and num_free + num_cached can be handed out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from opsocket.cache.prefix import PrefixIndex, PrefixNode
from opsocket.operators.errors import ContractError


class InconsistentCacheError(ContractError, AssertionError):
    """The block manager contradicts itself: a fault in it, not in its caller. Raised by `check` only."""


def expect(what: str, want: object, got: object) -> None:
    """Raise InconsistentCacheError unless `want` equals `got`."""
    if want != got:
        raise InconsistentCacheError(what, want, got)


class BlockPool:
    """Reference counts, free blocks and cached blocks of `num_blocks` physical blocks."""

    def __init__(self, num_blocks: int, index: PrefixIndex) -> None:
        self._index = index
        self._references = [0] * num_blocks
        self._nodes: list[PrefixNode | None] = [None] * num_blocks
        # A stack: blocks given back last one first come out again in ascending order.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, PrefixNode] = OrderedDict()  # least recently used first
        self.num_evictions = 0
        self.peak_used = 0

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_used(self) -> int:
        return len(self._references) - self.num_free - self.num_cached

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can hand out: free ones and cached ones."""
        return self.num_free + self.num_cached

    def allocate(self) -> int:
        """A block with unknown contents and one reference: a free one, else the least recently used cached one.

        The caller has seen to it that `num_available` is not 0.
        """
        block = self._free.pop() if self._free else self._evict()
        self._references[block] = 1
        self.peak_used = max(self.peak_used, self.num_used)
        return block

    def share(self, block: int) -> None:
        """One more reference to a block that is used or cached."""
        if self._references[block] == 0:
            del self._cached[block]
        self._references[block] += 1
        self.peak_used = max(self.peak_used, self.num_used)

    def release(self, blocks: Sequence[int]) -> None:
        """One reference less to each of a sequence's last blocks, last one first."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] > 0:
                continue
            node = self._nodes[block]
            if node is not None and len(node.blocks) == 1:
                self._cached[block] = node
                continue
            if node is not None:
                self._forget_duplicate(block, node)
            self._free.append(block)

    def is_writable(self, block: int) -> bool:
        """Whether the one sequence that refers to this block may write to it: nobody else refers to it or finds it."""
        return self._references[block] == 1 and self._nodes[block] is None

    def find(self, parent: PrefixNode | str, tokens: bytes) -> PrefixNode | None:
        return self._index.find(parent, tokens)

    def publish(self, block: int, parent: PrefixNode | str, tokens: bytes) -> PrefixNode:
        """From now on `block`, used and full, is found under these tokens after `parent`."""
        node = self._index.find_or_add(parent, tokens)
        duplicate = next(iter(node.blocks), None)
        if duplicate is not None and duplicate in self._cached:
            del self._cached[duplicate]
            self._forget_duplicate(duplicate, node)
            self._free.append(duplicate)
        node.blocks.add(block)
        self._nodes[block] = node
        return node

    def _forget_duplicate(self, block: int, node: PrefixNode) -> None:
        self._nodes[block] = None
        node.blocks.remove(block)

    def _evict(self) -> int:
        block, node = self._cached.popitem(last=False)
        self._index.remove(node)
        self._nodes[block] = None
        self.num_evictions += 1
        return block

    def check(self, references: list[int]) -> None:
        """Compare with the references that the sequences really hold, one count per block. O(num_blocks)."""
        expect("references", references, self._references)
        used = {block for block, count in enumerate(references) if count}
        parts = sorted([*used, *self._free, *self._cached])
        expect("used, free and cached blocks, each once", list(range(len(references))), parts)
        published = {block: node for block, node in enumerate(self._nodes) if node is not None}
        listed = {block: node for node in self._index for block in node.blocks}
        expect("published blocks", published, listed)
        expect("free blocks that are published", set(), published.keys() & set(self._free))
        for node in self._index:
            if not node.blocks <= used:
                expect("blocks of a prefix that nobody uses", 1, len(node.blocks))
                expect("that block is cached", True, node.blocks <= self._cached.keys())
        nodes = set(self._index)
        age = {node: turn for turn, node in enumerate(self._cached.values())}
        for node in nodes:
            if isinstance(node.parent, PrefixNode):
                expect("a node's parent is in the index", True, node.parent in nodes)
                in_order = age.get(node, -1) < age.get(node.parent, len(age))
                expect("a child is given back before its parent", True, in_order)
