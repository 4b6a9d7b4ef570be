from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opsocket.quantization import bf16_to_f32, f32_to_bf16, get_format

EVERY = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).reshape(256, 256)


def test_every_pattern_reads_as_torch_reads_it():
    expected = torch.from_numpy(EVERY.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(bf16_to_f32(EVERY), expected)
    reference = get_format("bf16").reference({"weight": EVERY}, 256, 256)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        np.testing.assert_array_equal(reference, expected.astype(np.float64))


def test_every_pattern_survives_the_round_trip():
    values = bf16_to_f32(EVERY)
    number = ~np.isnan(values)
    np.testing.assert_array_equal(f32_to_bf16(values)[number], EVERY[number])
    assert np.isnan(bf16_to_f32(f32_to_bf16(values))[~number]).all()


@pytest.mark.parametrize("lower_half", [0x0000, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
def test_every_tie_and_its_neighbours_round_as_torchs_do(lower_half):
    values = (EVERY.astype(np.uint32) << 16 | lower_half).view(np.float32)
    expected = torch.from_numpy(values.copy()).bfloat16().float().numpy()
    np.testing.assert_array_equal(bf16_to_f32(f32_to_bf16(values)), expected)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(bits=st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=64))
def test_rounding_is_torchs(bits):
    values = np.array(bits, np.uint32).view(np.float32)
    expected = torch.from_numpy(values.copy()).bfloat16().float().numpy()
    np.testing.assert_array_equal(bf16_to_f32(f32_to_bf16(values)), expected)
