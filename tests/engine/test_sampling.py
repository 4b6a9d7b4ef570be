"""What a request may ask for, the random numbers behind it, and the batch that the sample operator gets."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsocket.operators import ContractError
from opsocket_engine.history import History
from opsocket_engine.sampling import SamplingParams, sample_batch, uniform
from opsocket_engine.sequence import Sequence


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 1.01),
        ("top_p", -0.5),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("presence_penalty", float("inf")),
        ("frequency_penalty", float("nan")),
        ("seed", -1),
        ("seed", 1 << 64),
        ("n", 0),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("stop", "a string alone"),
        ("stop", ("",)),
    ],
)
def test_settings_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ContractError) as caught:
        SamplingParams(**{field: value})
    assert caught.value.argument == field


def test_greedy_means_no_temperature_and_no_penalty():
    assert SamplingParams().is_greedy
    assert SamplingParams(top_k=5, top_p=0.5).is_greedy
    assert not SamplingParams(temperature=0.5).is_greedy
    assert not SamplingParams(repetition_penalty=1.1).is_greedy
    assert not SamplingParams(presence_penalty=0.1).is_greedy
    assert not SamplingParams(frequency_penalty=-0.1).is_greedy


def test_numbers_are_uniform_below_one_and_exact_in_f32():
    numbers = np.array([uniform(7, 0, position) for position in range(4000)])
    assert np.array_equal(numbers, numbers.astype(np.float32))
    assert ((numbers >= 0) & (numbers < 1)).all()
    counts, _ = np.histogram(numbers, 20, (0, 1))
    chi_squared = ((counts - 200) ** 2 / 200).sum()
    assert chi_squared < 43.8, "0.1 % quantile of chi squared with 19 degrees of freedom"


def test_numbers_depend_on_seed_sample_and_position_only():
    keys = [(seed, sample, position) for seed in (0, 1, 2**64 - 1) for sample in range(3) for position in range(50)]
    numbers = [uniform(*key) for key in keys]
    assert len(set(numbers)) == len(numbers)
    assert [uniform(*key) for key in reversed(keys)] == numbers[::-1]


def make_sequence(tokens: list[int], **params: float) -> Sequence:
    return Sequence(0, SamplingParams(**params), 5, tokens, len(tokens))


@given(st.lists(st.lists(st.integers(0, 99) | st.integers(0, 1 << 40)), min_size=1))
def test_a_history_that_grows_has_what_counting_anew_has(parts: list[list[int]]):
    history, tokens = History(), []
    for part in parts:
        tokens += part
        ids, counts = history.of(tokens)
        assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == Counter(tokens)
    ids, counts = history.of([*tokens, *range(200)])  # beyond what there was room for
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == Counter([*tokens, *range(200)])


def test_samples_of_a_prompt_have_histories_of_their_own():
    first = Sequence(0, SamplingParams(n=2, repetition_penalty=1.5), 5, [4, 4], 2, unparted=2)
    first.history.of(first.tokens)
    _, second = first.part()
    second.tokens.append(7)
    assert second.history.of(second.tokens)[0].tolist() == [4, 7]
    assert first.history.of(first.tokens)[0].tolist() == [4]


def test_batch_has_each_token_of_a_history_once_where_there_are_penalties():
    batch = sample_batch(
        [
            make_sequence([3, 1, 3, 3], repetition_penalty=1.5),
            make_sequence([9, 9], temperature=0.5, top_k=4, top_p=0.75, min_p=0.25),
            make_sequence([8, 2, 8], frequency_penalty=0.5, presence_penalty=0.25),
        ]
    )
    assert batch.history_indptr.tolist() == [0, 2, 2, 4]
    seen = list(zip(batch.history_ids.tolist(), batch.history_counts.tolist(), strict=True))
    assert [sorted(seen[:2]), sorted(seen[2:])] == [[(1, 1), (3, 3)], [(2, 1), (8, 2)]]
    assert batch.repetition.tolist() == [1.5, 1, 1]
    assert batch.frequency.tolist() == [0, 0, 0.5]
    assert batch.presence.tolist() == [0, 0, 0.25]
    assert batch.temperature.tolist() == [0, 0.5, 0]
    assert batch.top_k.tolist() == [0, 4, 0]
    assert batch.top_p.tolist() == [1, 0.75, 1]
    assert batch.min_p.tolist() == [0, 0.25, 0]
    assert batch.uniform.tolist() == [uniform(5, 0, 4), uniform(5, 0, 2), uniform(5, 0, 3)]
