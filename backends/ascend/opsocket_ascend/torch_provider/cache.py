"""Write, read, move and copy over pages: a slot is a row of every plane of codes."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import torch

from opsocket.operators import (
    BlockPairs,
    Cache,
    CacheCopyBlocksPlan,
    CacheMovePlan,
    CacheReadPlan,
    CacheReadSpec,
    CacheSpec,
    CacheWritePlan,
    KVFormat,
    MoveBatch,
    Session,
    SlotBatch,
)
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_ascend.device_array import DeviceArray
from opsocket_ascend.graph import Recordable
from opsocket_ascend.scales import check_same


class Rows:
    """Where some slots are: rows of a plane of codes, and elements of a plane of scales (block, head, token)."""

    def __init__(self, slots: torch.Tensor, places: torch.Tensor | None) -> None:
        self.count = len(slots)
        self._slots, self._places = slots, places

    @property
    def form(self) -> Hashable:
        """How many they are, and where they are written."""
        places = self._places
        return self.count, self._slots.data_ptr(), None if places is None else places.data_ptr()

    def part(self, start: int, stop: int) -> Rows:
        """Those of some of the slots."""
        return Rows(self._slots[start:stop], None if self._places is None else self._places[start:stop])

    def read(self, plane: torch.Tensor) -> torch.Tensor:
        """Rows [S, Hkv, D] of a plane of codes, or scales [S, Hkv]."""
        if plane.dim() == 3:
            assert self._places is not None
            return plane.view(-1).index_select(0, self._places.view(-1)).view(self._places.shape)
        return _by_slot(plane).index_select(0, self._slots)

    def write(self, plane: torch.Tensor, values: torch.Tensor) -> None:
        if plane.dim() == 3:
            assert self._places is not None
            plane.view(-1).index_copy_(0, self._places.view(-1), values.reshape(-1))
        else:
            _by_slot(plane).index_copy_(0, self._slots, values)

    def codes(self, cache: Cache, name: str) -> torch.Tensor:
        """Codes [S, Hkv, D] of K or V, the rotary channels of a latent cache joined to the others."""
        found = self.read(cache.planes[name])
        rope = cache.planes.get(f"{name}_rope")
        return found if rope is None else torch.cat([found, self.read(rope)], -1)

    def write_codes(self, cache: Cache, name: str, codes: torch.Tensor) -> None:
        plane, rope = cache.planes[name], cache.planes.get(f"{name}_rope")
        self.write(plane, codes[..., : plane.shape[-1]])
        if rope is not None:
            self.write(rope, codes[..., plane.shape[-1] :])


class SlotArrays:
    """The slots of a plan's batches, at addresses that stay."""

    def __init__(self, session: Session, cache: CacheSpec, room: int = 0) -> None:
        self._heads, self._size = cache.num_kv_heads, cache.block_size
        scaled = any(fmt is not None and fmt.granularity == "token_head" for fmt in (cache.k, cache.v))
        self._slots = DeviceArray(session, "i64", room)
        self._places = DeviceArray(session, "i64", room * self._heads) if scaled else None

    def write(self, slots: np.ndarray) -> Rows:
        slots = np.asarray(slots, np.int64)
        block, offset = slots // self._size, slots % self._size
        places = (block[:, None] * self._heads + np.arange(self._heads)) * self._size + offset[:, None]
        return Rows(self._slots.write(slots), None if self._places is None else self._places.write(places))


def _by_slot(plane: torch.Tensor) -> torch.Tensor:
    return plane.view(plane.shape[0] * plane.shape[1], *plane.shape[2:])


def static(scale: torch.Tensor | None, fmt: KVFormat) -> torch.Tensor | None:
    """A static scale in a shape that broadcasts over [S, Hkv, D]."""
    if scale is None:
        return None
    return scale.view({"tensor": (1, 1, 1), "head": (1, -1, 1), "channel": (1, *scale.shape)}[fmt.granularity])


def decode(codes: torch.Tensor, fmt: KVFormat, stored: torch.Tensor | None, scale: torch.Tensor | None) -> torch.Tensor:
    """Values [S, Hkv, D]: f32 of codes with a scale, else as they are. stored: scales [S, Hkv]. scale: by `static`."""
    if stored is not None:
        scale = stored.float().unsqueeze(-1)
    return codes if scale is None else codes.float() * scale


def encode(values: torch.Tensor, fmt: KVFormat, scale: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Codes of values [S, Hkv, D], and the scales [S, Hkv] that are stored with them."""
    if not fmt.is_quantized:
        return values.to(TORCH_DTYPES[fmt.code]), None
    values, stored = values.float(), None
    if fmt.granularity == "token_head":
        stored = (values.abs().amax(-1) / fmt.max_code).to(TORCH_DTYPES[fmt.scale_dtype])
        scale = stored.float().unsqueeze(-1)
    assert scale is not None
    codes = torch.where(scale == 0, torch.zeros_like(values), values / scale)
    codes = codes.round().clamp(-fmt.max_code, fmt.max_code)
    return codes.to(torch.int8), stored


class TorchCacheWrite(Recordable, CacheWritePlan):
    """Quantizes the kept rows in f32 and scatters them by slot."""

    def _setup(self) -> None:
        room = self.request.bounds.max_tokens or 0
        self._kept, self._slots = (
            DeviceArray(self.session, "i64", room),
            SlotArrays(self.session, self.cache_spec, room),
        )

    def _update(self, batch: SlotBatch) -> None:
        slots = np.asarray(batch.slots)
        kept = np.flatnonzero(slots >= 0)
        self._rows = self._slots.write(slots[kept])
        self._given = len(slots)
        self._taken = None if len(kept) == len(slots) else self._kept.write(kept)

    def graph_form(self) -> Hashable:
        return self._given, self._taken is None, self._kept.address, self._rows.form

    def _run(self, cache: Cache, k: torch.Tensor, v: torch.Tensor | None) -> Cache:
        if self._rows.count:
            self._write(cache, "k", cache.spec.k, cache.k_scale, k)
            if v is not None and cache.spec.v is not None:
                self._write(cache, "v", cache.spec.v, cache.v_scale, v)
        return cache

    def _write(self, cache: Cache, name: str, fmt: KVFormat, scale: torch.Tensor | None, values: torch.Tensor) -> None:
        values = values[: self._given] if self._taken is None else values.index_select(0, self._taken)
        codes, stored = encode(values, fmt, static(scale, fmt))
        self._rows.write_codes(cache, name, codes)
        if stored is not None:
            self._rows.write(cache.planes[f"{name}_scale"], stored)


class TorchCacheRead(CacheReadPlan):
    """Gathers rows by slot and dequantizes them."""

    def _setup(self) -> None:
        self._slots = SlotArrays(self.session, self.cache_spec, self.request.bounds.max_tokens or 0)

    def _update(self, batch: SlotBatch) -> None:
        self._rows = self._slots.write(batch.slots)

    def _run(self, cache: Cache) -> tuple[torch.Tensor, torch.Tensor | None]:
        k = self._read(cache, "k", cache.spec.k, cache.k_scale)
        return k, None if cache.spec.v is None else self._read(cache, "v", cache.spec.v, cache.v_scale)

    def _read(self, cache: Cache, name: str, fmt: KVFormat, scale: torch.Tensor | None) -> torch.Tensor:
        spec = self.request.spec
        assert isinstance(spec, CacheReadSpec)
        stored = cache.planes.get(f"{name}_scale")
        codes = self._rows.codes(cache, name)
        values = decode(codes, fmt, None if stored is None else self._rows.read(stored), static(scale, fmt))
        return values.to(TORCH_DTYPES[spec.dtype])


class TorchCacheMove(CacheMovePlan):
    """Copies codes and scales, gathered before anything is scattered."""

    def _setup(self) -> None:
        room = self.request.bounds.max_tokens or 0
        self._from, self._to = (SlotArrays(self.session, self.cache_spec, room) for _ in range(2))

    def _update(self, batch: MoveBatch) -> None:
        self._src = self._from.write(batch.src_slots)
        self._dst = self._to.write(batch.dst_slots)

    def _run(self, src: Cache, dst: Cache) -> Cache:
        check_same(src, dst)
        if self._src.count:
            for name, plane in src.planes.items():
                self._dst.write(dst.planes[name], self._src.read(plane))
        return dst


class TorchCacheCopyBlocks(CacheCopyBlocksPlan):
    """Copies whole blocks of every plane, gathered before anything is scattered."""

    def _setup(self) -> None:
        self._pairs = DeviceArray(self.session, "i64")

    def _update(self, batch: BlockPairs) -> None:
        self._src, self._dst = self._pairs.write(np.asarray(batch.pairs, np.int64).T)

    def _run(self, src: Cache, dst: Cache) -> Cache:
        check_same(src, dst)
        if len(self._src):
            for name, plane in src.planes.items():
                dst.planes[name].index_copy_(0, self._dst, plane.index_select(0, self._src))
        return dst
