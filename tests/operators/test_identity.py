"""What is known of objects is known of these very ones, and is gone with the first of them."""

from __future__ import annotations

import gc
from weakref import ref

from opsocket.operators.identity import ByIdentity


class Thing:
    """Equal to every other one, so that only identity tells them apart."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Thing)

    __hash__ = None  # type: ignore[assignment]


def test_the_same_objects_in_the_same_order_have_the_value():
    a, b, known = Thing(), Thing(), ByIdentity[str]()
    known.put([a, b], "ab")
    assert known.get((a, b)) == "ab"
    assert [known.get(others) for others in ([b, a], [a], [a, Thing()])] == [None] * 3
    known.put([b, a], "ba")
    assert (known.get([a, b]), known.get([b, a])) == ("ab", "ba")


def test_an_object_may_stand_twice():
    a, known = Thing(), ByIdentity[int]()
    known.put([a, a], 2)
    assert (known.get([a, a]), known.get([a])) == (2, None)


def test_a_value_goes_with_the_first_of_its_objects():
    a, b, value, known = Thing(), Thing(), Thing(), ByIdentity[Thing]()
    known.put([a, b], value)
    seen = ref(value)
    del value, b
    gc.collect()
    assert seen() is None
    assert known.get([a, Thing()]) is None
