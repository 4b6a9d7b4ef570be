"""Joined weights mean what their parts mean, one after the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from opsocket.operators import ContractError
from opsocket.quantization import FORMATS, WeightTensor, concatenate, get_format, rows_join

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
