"""Block tables for kernels whose page is smaller than the manager's block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from opsocket.operators.errors import ContractError


def expand_block_table(
    table: Sequence[int] | Sequence[Sequence[int]] | NDArray[np.integer], block_size: int, kernel_block_size: int
) -> NDArray[np.int32]:
    """Name the same slots in blocks of `kernel_block_size`: block b becomes b * r, ..., b * r + r - 1.

    `r` is block_size / kernel_block_size. Slots (block * size + offset) are the same numbers under both sizes, so
    slot arrays need no such step. Negative entries, which no kernel may dereference, stay negative.

    Args:
        table: integers, [W] or [B, W].
        block_size: slots per entry of `table`.
        kernel_block_size: slots per entry of the result; divides `block_size`.

    Returns:
        i32, [W * r] or [B, W * r].

    Raises:
        ContractError: on sizes that don't divide, on another rank or dtype, on entries that leave i32.
    """
    if kernel_block_size < 1:
        raise ContractError("kernel_block_size", "at least 1", kernel_block_size)
    if block_size < 1 or block_size % kernel_block_size:
        raise ContractError("block_size", f"a positive multiple of kernel_block_size={kernel_block_size}", block_size)
    try:
        entries = np.asarray(table)
    except ValueError as error:
        raise ContractError("table", "integers, [W] or [B, W]", f"rows of unequal length ({error})") from error
    if entries.ndim not in (1, 2):
        raise ContractError("table", "rank 1 or 2", f"rank {entries.ndim}")
    if entries.size == 0:
        entries = entries.astype(np.int32)
    if entries.dtype.kind not in "iu":
        raise ContractError("table", "integers", entries.dtype)
    ratio = block_size // kernel_block_size
    limit = 2**31 // ratio
    if entries.size and not (-limit <= int(entries.min()) and int(entries.max()) < limit):
        want = f"entries from {-limit} to {limit - 1}, so that they fit i32 when expanded by {ratio}"
        raise ContractError("table", want, f"{int(entries.min())} to {int(entries.max())}")
    pages = np.empty((*entries.shape, ratio), dtype=np.int32)
    np.add(entries.astype(np.int32)[..., None] * ratio, np.arange(ratio, dtype=np.int32), out=pages)
    return pages.reshape(*entries.shape[:-1], entries.shape[-1] * ratio)
