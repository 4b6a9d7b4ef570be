"""The paged KV cache's books: which slot holds what, who shares it, what is evicted. Never device memory."""

from __future__ import annotations

from opsocket.cache.manager import BlockCopy, BlockManager, CacheStats
from opsocket.cache.pool import InconsistentCacheError
from opsocket.cache.prefix import ContentHash, chained_hash
from opsocket.cache.table import expand_block_table

__all__ = [
    "BlockCopy",
    "BlockManager",
    "CacheStats",
    "ContentHash",
    "InconsistentCacheError",
    "chained_hash",
    "expand_block_table",
]
