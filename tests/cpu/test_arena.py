"""Memory that weights share."""

import gc
import weakref

import numpy as np

from opsocket_cpu.arena import ALIGNMENT, CHUNK_BYTES, Arena


def test_arrays_are_aligned_and_no_two_share_a_byte() -> None:
    arena = Arena()
    sizes = [
        1,
        63,
        64,
        65,
        1 << 20,
        3 << 20,
        CHUNK_BYTES // 2,
        CHUNK_BYTES // 2 - 1,
        CHUNK_BYTES // 2 + 1,
        CHUNK_BYTES * 2,
        7,
    ]
    taken = [arena.take(size) for size in sizes]
    for number, array in enumerate(taken):
        array[...] = number
    for number, (array, size) in enumerate(zip(taken, sizes, strict=True)):
        assert array.shape == (size,)
        assert array.dtype == np.uint8
        assert array.ctypes.data % ALIGNMENT == 0
        assert (array == number).all()


def test_a_chunk_lives_as_long_as_an_array_of_it() -> None:
    arena = Arena()
    first, second = arena.take(100), arena.take(100)
    memory = first.base
    assert memory is not None
    assert second.base is memory
    alive = weakref.ref(memory)
    del memory, first
    gc.collect()
    assert alive() is not None
    del second
    gc.collect()
    assert alive() is None
    assert arena.take(100).size == 100
