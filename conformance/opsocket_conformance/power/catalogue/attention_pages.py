"""What attention kernels get wrong about where keys lie and how many there are: pages, lengths, splits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np

from opsocket.operators import Request
from opsocket_conformance.power.broken import Floats, batch, both, fault, given, on_host, stages
from opsocket_conformance.power.plain_attention import Bools, Ints, Operands, Row, Stages


def _paged(request: Request) -> bool:
    return request.cache is not None


def _odd_pages(request: Request) -> bool:
    return request.cache is not None and request.cache.block_size != 16


def _first_table(self: Stages, number: int, count: int) -> Ints:
    first = Stages.pages(self, 0, -(-int(self.batch.kv_lens[0]) // _block(self)))
    return np.resize(first, count) if len(first) else Stages.pages(self, number, count)


def _last_two_swapped(self: Stages, number: int, count: int) -> Ints:
    pages = Stages.pages(self, number, count)
    return np.concatenate([pages[:-2], pages[-2:][::-1]])


def _pages_of_sixteen(self: Stages, number: int, kv_len: int) -> Ints:
    cache = self.request.cache
    assert cache is not None
    token = np.arange(-(-kv_len // cache.block_size) * cache.block_size)
    pages = self.pages(number, -(-kv_len // cache.block_size))
    page = pages[np.minimum(token // 16, len(pages) - 1)] if len(pages) else token
    return (page * 16 + token % 16) % cache.num_slots


def _dropped(count: Callable[[int, Stages], int]) -> Any:
    """The kernel believes in another length; positions stay."""

    def visible(self: Stages, row: Row) -> Bools:
        return both(Stages.visible(self, row), np.arange(len(row.key)) < count(row.kv_len, self))

    return stages(visible=visible)


def _block(self: Stages) -> int:
    return self.request.cache.block_size if self.request.cache is not None else 16


def _gap_after(length: int) -> Any:
    """The key at this index is lost between two splits."""

    def visible(self: Stages, row: Row) -> Bools:
        return both(Stages.visible(self, row), np.arange(len(row.key)) != length)

    return stages(visible=visible)


def _without_the_last_beyond(limit: int) -> Any:
    return _dropped(lambda n, s: n - 1 if n > limit else n)


def _twice_beyond(limit: int) -> Any:
    def parts(self: Stages, length: int) -> list[Ints]:
        keys = np.arange(length)
        return [keys, keys[limit:]] if length > limit else [keys]

    return stages(parts=parts)


def _overlapping(self: Stages, length: int) -> list[Ints]:
    """Splits that share the key on their border."""
    return [np.arange(max(first - 1, 0), min(first + 512, length)) for first in range(0, length, 512)]


def _end_of_the_page(self: Stages, row: Row) -> Bools:
    """Lengths rounded up to whole pages."""
    return Stages.visible(self, replace(row, kv_len=len(row.key)))


def _packed(self: Stages, number: int, kv_len: int) -> Ints:
    first = int(np.asarray(self.batch.kv_lens)[:number].sum())
    return first + np.arange(kv_len)


def _values_as_wide_as_keys(self: Stages, operands: Operands, number: int, kv_len: int) -> tuple[Floats, Floats]:
    """The value of a slot is looked for at slot * D."""
    k, v = Stages.gather(self, operands, number, kv_len)
    slots, heads, width = v.shape
    at = (
        np.arange(slots)[:, None, None] * heads * k.shape[2] + np.arange(heads)[:, None] * k.shape[2] + np.arange(width)
    )
    return k, v.ravel()[at % max(v.size, 1)] if v.size else v


def _swapped(self: Stages, operands: Operands, number: int, kv_len: int) -> tuple[Floats, Floats]:
    k, v = Stages.gather(self, operands, number, kv_len)
    return v, k


def _one_width(request: Request) -> bool:
    spec: Any = request.spec
    return bool(spec.head_dim_qk == spec.head_dim_vo)


FAULTS: Final = (
    fault(
        "block table off by one",
        "paging",
        "Blocks are numbered from 1.",
        batch=batch("block_table", lambda t: np.where(t > 0, t - 1, t)),
    ),
    fault(
        "table of the first request for all",
        "paging",
        "The table's row stride is 0.",
        where=_paged,
        kernel=stages(pages=_first_table),
    ),
    fault(
        "pages in ascending order",
        "paging",
        "The table is sorted before use.",
        "x=needle",
        where=_paged,
        kernel=stages(pages=lambda s, number, count: np.sort(Stages.pages(s, number, count))),
    ),
    fault(
        "last two pages swapped",
        "paging",
        "Prefetching takes the wrong turn.",
        where=_paged,
        kernel=stages(pages=_last_two_swapped),
    ),
    fault(
        "pages of 16 assumed",
        "paging",
        "The block size is a constant.",
        "bs=",
        where=_odd_pages,
        kernel=stages(slots=_pages_of_sixteen),
    ),
    fault(
        "last partial page dropped",
        "paging",
        "kv_len / block_size rounds down.",
        where=_paged,
        kernel=_dropped(lambda n, s: n // _block(s) * _block(s)),
    ),
    fault(
        "last full page dropped",
        "paging",
        "A length that fills its pages loses one.",
        "batch=edges",
        where=_paged,
        kernel=_dropped(lambda n, s: n - _block(s) if n % _block(s) == 0 else n),
    ),
    fault(
        "lengths rounded up to pages",
        "paging",
        "The rest of the last page is attended to.",
        where=_paged,
        kernel=stages(visible=_end_of_the_page),
    ),
    fault(
        "first key dropped",
        "paging",
        "The loop starts at 1.",
        kernel=stages(visible=lambda s, row: both(Stages.visible(s, row), np.arange(len(row.key)) > 0)),
    ),
    fault("last key dropped", "paging", "The loop ends one early.", kernel=_dropped(lambda n, s: n - 1)),
    fault(
        "last key of long requests dropped",
        "paging",
        "Beyond 1024 keys another kernel runs, one short.",
        "batch=long",
        kernel=_without_the_last_beyond(1024),
    ),
    fault(
        "last key beyond 4096 dropped",
        "paging",
        "Beyond 4096 keys another kernel runs, one short.",
        "batch=longest",
        "batch=needle",
        kernel=_without_the_last_beyond(4096),
    ),
    fault(
        "key between two splits lost",
        "paging",
        "Splits of 1024 keys end before their last one.",
        "batch=needle",
        "batch=long",
        kernel=_gap_after(1023),
    ),
    fault(
        "keys beyond 4096 twice",
        "paging",
        "Two splits take the tail.",
        "batch=longest",
        "batch=needle",
        kernel=_twice_beyond(4096),
    ),
    fault(
        "splits overlap by a key",
        "paging",
        "Splits of 512 keys start at the last key of the one before.",
        "batch=long",
        "batch=needle",
        kernel=stages(parts=_overlapping),
    ),
    fault(
        "keys beyond 8192 ignored",
        "paging",
        "A table of 8192 keys in shared memory.",
        "batch=longest",
        kernel=_dropped(lambda n, s: min(n, 8192)),
    ),
    fault(
        "contiguous keys without gaps",
        "paging",
        "kv_indptr is ignored.",
        "bs=0",
        where=lambda r: not _paged(r),
        kernel=stages(slots=_packed),
    ),
    fault(
        "value heads as wide as key heads",
        "paging",
        "The values' stride is taken for the keys'.",
        "dv=",
        where=lambda request: not _one_width(request),
        kernel=stages(gather=_values_as_wide_as_keys),
    ),
    fault(
        "keys and values swapped",
        "paging",
        "The two planes are taken for each other.",
        where=_one_width,
        kernel=stages(gather=_swapped),
    ),
    fault(
        "second request reads the first one's query",
        "paging",
        "q_indptr is read one off.",
        "batch=chunk",
        run=given(q=on_host(lambda q: np.concatenate([q[:1], q[:-1]]))),
    ),
)
