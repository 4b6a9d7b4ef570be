"""Caches whose memory comes as it is written."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import opsocket
from opsocket.operators import CacheSpec, KVFormat, ResourceError
from opsocket_cpu import host
from opsocket_cpu.untouched import Untouched

MB = 1 << 20


def test_memory_is_zero_counts_as_pending_until_it_is_written_and_goes_with_its_last_array() -> None:
    untouched = Untouched()
    first, second = untouched.zeros(8 * MB), untouched.zeros(5 * MB + 3)
    assert first.ctypes.data % (2 * MB) == second.ctypes.data % (2 * MB) == 0
    assert untouched.size() == untouched.pending() == 13 * MB + 3
    assert not first[::4096].any()
    first[...] = 1
    assert untouched.pending() == 5 * MB + 3
    assert not second.any()
    part = first[MB : 2 * MB]
    del first, second
    gc.collect()
    assert untouched.size() == 8 * MB
    assert (part == 1).all()
    del part
    gc.collect()
    assert untouched.size() == 0


def test_what_one_cache_may_still_need_is_not_given_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    spec = CacheSpec(512, 16, 8, 64, 64, KVFormat("f32"), KVFormat("f32"))
    with opsocket.open("cpu") as session:
        monkeypatch.setattr(host, "available_bytes", lambda: 1 << 40)
        first = session.allocate_cache(spec)
        need = sum(plane.nbytes for plane in first.planes.values())
        monkeypatch.setattr(host, "available_bytes", lambda: need + need // 2)
        with pytest.raises(ResourceError, match="bytes of memory for the cache"):
            session.allocate_cache(spec)
        for plane in first.planes.values():
            plane.fill_(1)  # now the machine itself counts it
        second = session.allocate_cache(spec)
        assert not any(np.asarray(plane).any() for plane in second.planes.values())
