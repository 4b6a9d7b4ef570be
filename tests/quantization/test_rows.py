"""Joined weights mean what their parts mean, one after the other; rows of a weight mean what they mean in it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from opsocket.operators import ContractError
from opsocket.quantization import FORMATS, WeightTensor, concatenate, get_format, rows_join, rows_of

JOINING = [format for format in FORMATS if not format.g_idx and format.block_n == 1]


@pytest.mark.parametrize("format", JOINING, ids=lambda format: format.id)
def test_the_whole_is_the_parts_in_order(format, random_tensors):
    rng, k = np.random.default_rng(0), 256
    parts = [WeightTensor(format, n, k, random_tensors(format, n, k, rng)) for n in (16, 8, 24)]
    whole = concatenate(parts)
    assert rows_join(format)
    assert (whole.format, whole.n, whole.k) == (format, 48, k)
    want = np.concatenate([format.reference(part.tensors, part.n, k) for part in parts])
    np.testing.assert_array_equal(format.reference(whole.tensors, 48, k), want)


def test_one_weight_is_itself(random_tensors):
    weight = WeightTensor(get_format("f32"), 4, 32, random_tensors(get_format("f32"), 4, 32, np.random.default_rng(0)))
    assert concatenate([weight]) is weight


def test_what_does_not_join_is_refused(random_tensors):
    def weight(name: str, k: int = 64) -> WeightTensor:
        return WeightTensor(get_format(name), 8, k, random_tensors(get_format(name), 8, k, np.random.default_rng(1)))

    for shared in (weight("f8e4m3fn_tensor"), weight("f8e4m3fn_128x128")):
        assert not rows_join(shared.format)
        with pytest.raises(ContractError, match="no scales of several rows"):
            concatenate([shared, shared])
    ordered, own = weight("gptq_v1_i4_g32_act"), weight("f32")
    foreign = replace(own, format=replace(own.format, packing="elsewhere"))
    assert not rows_join(ordered.format)
    for weights in ([], [own, weight("f16")], [own, weight("f32", 32)], [ordered, ordered], [foreign, foreign]):
        with pytest.raises(ContractError):
            concatenate(weights)


@pytest.mark.parametrize("format", JOINING, ids=lambda format: format.id)
def test_some_rows_are_those_of_the_whole_and_are_not_copied(format, random_tensors):
    n, k = 48, 256
    weight = WeightTensor(format, n, k, random_tensors(format, n, k, np.random.default_rng(2)))
    whole = format.reference(weight.tensors, n, k)
    for first, last in ((0, 8), (8, 32), (40, 48), (0, 48)):
        some = rows_of(weight, first, last)
        assert (some.format, some.n, some.k) == (format, last - first, k)
        np.testing.assert_array_equal(format.reference(some.tensors, some.n, k), whole[first:last])
        for name, tensor in some.tensors.items():
            assert np.shares_memory(tensor, weight.tensors[name])


def test_rows_that_are_not_there_or_do_not_join_are_refused(random_tensors):
    def weight(name: str) -> WeightTensor:
        return WeightTensor(
            get_format(name), 24, 64, random_tensors(get_format(name), 24, 64, np.random.default_rng(3))
        )

    for first, last in ((0, 32), (-8, 8), (8, 8), (16, 8), (4, 16), (0, 12)):
        with pytest.raises(ContractError, match="first, last"):
            rows_of(weight("q4_0"), first, last)
    for name in ("gptq_v1_i4_g32_act", "f8e4m3fn_tensor"):
        with pytest.raises(ContractError, match="whose rows join"):
            rows_of(weight(name), 0, 8)
