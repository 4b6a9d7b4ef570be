"""Which blocks hold which prefix: a tree of token blocks, found by chained hash and believed only after comparison.

A node stands for one full block of tokens after one certain prefix. The hash of a node covers its own tokens and,
through its parent's hash, everything before them, so one dictionary look-up per block walks the tree. The hash only
finds candidates: a node is taken when its parent is the node matched just before and its tokens are equal, so two
prefixes whose hashes collide are still two prefixes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

ContentHash: TypeAlias = Callable[[bytes, bytes], bytes]
"""(hash of everything before, bytes of this block's token ids) -> hash of everything up to and with this block."""


def chained_hash(parent: bytes, tokens: bytes) -> bytes:
    """BLAKE2b, 128 bits: nobody can craft prompts that pile up in one bucket and slow every look-up down."""
    return hashlib.blake2b(parent + tokens, digest_size=16).digest()


@dataclass(slots=True, eq=False)
class PrefixNode:
    """One full block of tokens after one prefix.

    `parent` is the node of the block before; of a first block it is the salt that keeps this tree from others.
    `tokens` are block_size token ids, i64, native byte order. `blocks` are the physical blocks that hold their keys
    and values: one, or several where sequences computed the same prefix side by side.
    """

    digest: bytes
    parent: PrefixNode | str
    tokens: bytes
    blocks: set[int] = field(default_factory=set)


class PrefixIndex:
    """All nodes, by their chained hash."""

    def __init__(self, content_hash: ContentHash = chained_hash) -> None:
        self._content_hash = content_hash
        self._buckets: dict[bytes, list[PrefixNode]] = {}

    def __iter__(self) -> Iterator[PrefixNode]:
        for bucket in self._buckets.values():
            yield from bucket

    def find(self, parent: PrefixNode | str, tokens: bytes) -> PrefixNode | None:
        return self._in_bucket(self._digest(parent, tokens), parent, tokens)

    def find_or_add(self, parent: PrefixNode | str, tokens: bytes) -> PrefixNode:
        digest = self._digest(parent, tokens)
        node = self._in_bucket(digest, parent, tokens)
        if node is None:
            node = PrefixNode(digest, parent, tokens)
            self._buckets.setdefault(digest, []).append(node)
        return node

    def remove(self, node: PrefixNode) -> None:
        bucket = self._buckets[node.digest]
        bucket.remove(node)
        if not bucket:
            del self._buckets[node.digest]

    def _digest(self, parent: PrefixNode | str, tokens: bytes) -> bytes:
        if isinstance(parent, PrefixNode):
            return self._content_hash(parent.digest, tokens)
        # A salt may come from a request's JSON, which can hold a lone surrogate.
        return self._content_hash(self._content_hash(b"", parent.encode("utf-8", "surrogatepass")), tokens)

    def _in_bucket(self, digest: bytes, parent: PrefixNode | str, tokens: bytes) -> PrefixNode | None:
        for node in self._buckets.get(digest, ()):
            # Nodes compare by identity, salts by value.
            if node.parent == parent and node.tokens == tokens:
                return node
        return None
