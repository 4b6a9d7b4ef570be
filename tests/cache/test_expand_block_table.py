"""A table for smaller pages names the same slots."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsocket.cache import expand_block_table
from opsocket.operators.errors import ContractError


@settings(derandomize=True, deadline=None)
@given(
    table=st.lists(st.lists(st.integers(0, 2**20), min_size=3, max_size=3), max_size=4),
    page=st.integers(1, 5),
    ratio=st.integers(1, 8),
)
def test_every_token_keeps_its_slot(table, page, ratio):
    size, tokens = page * ratio, np.arange(3 * page * ratio)
    table = np.array(table, np.int32).reshape(-1, 3)
    expanded = expand_block_table(table, size, page)
    assert expanded.shape == (len(table), 3 * ratio)
    slots = table[:, tokens // size].astype(np.int64) * size + tokens % size
    assert np.array_equal(expanded[:, tokens // page].astype(np.int64) * page + tokens % page, slots)


@pytest.mark.parametrize(
    ("table", "expanded"),
    [
        ((2, 0), [8, 9, 10, 11, 0, 1, 2, 3]),
        ([[1], [3]], [[4, 5, 6, 7], [12, 13, 14, 15]]),
        ((), []),
        ([[], []], [[], []]),
    ],
)
def test_one_sequence_or_a_batch(table, expanded):
    result = expand_block_table(table, 64, 16)
    assert result.dtype == np.int32
    assert result.tolist() == expanded


def test_padding_stays_negative_and_equal_sizes_change_nothing():
    assert (expand_block_table([5, -1], 32, 8)[4:] < 0).all()
    assert expand_block_table([5, -1], 32, 32).tolist() == [5, -1]


def test_the_result_is_the_callers_own():
    table = np.array([1, 2], np.int32)
    expand_block_table(table, 4, 4)[0] = 9
    assert table.tolist() == [1, 2]


def test_i32_is_filled_to_its_last_value():
    last = 2**29 - 1
    assert expand_block_table([last], 4, 1).tolist() == [2**31 - 4, 2**31 - 3, 2**31 - 2, 2**31 - 1]
    with pytest.raises(ContractError, match="fit i32"):
        expand_block_table([last + 1], 4, 1)
    with pytest.raises(ContractError, match="fit i32"):
        expand_block_table(np.array([2**63], np.uint64), 1, 1)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (([1], 16, 0), "kernel_block_size"),
        (([1], 16, 5), "block_size"),
        (([1], 0, 4), "block_size"),
        (([1.0], 16, 4), "table"),
        ((np.zeros((1, 1, 1), np.int32), 16, 4), "table"),
        ((3, 16, 4), "table"),
        (([[1, 2], [3]], 16, 4), "table"),
    ],
)
def test_misuse_names_the_argument(arguments, named):
    with pytest.raises(ContractError) as caught:
        expand_block_table(*arguments)
    assert caught.value.argument == named
