"""e4m3fn against torch's, code by code and between the codes."""

from __future__ import annotations

import numpy as np
import pytest

from opsocket.quantization import f8e4m3fn_to_f32, f32_to_f8e4m3fn

torch = pytest.importorskip("torch")
CODES = np.arange(256, dtype=np.uint8)


def test_every_code():
    want = torch.from_numpy(CODES).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(f8e4m3fn_to_f32(CODES), want)
    finite = np.isfinite(want)
    np.testing.assert_array_equal(f32_to_f8e4m3fn(want[finite]), CODES[finite])
    assert (f32_to_f8e4m3fn(np.array([np.nan, -np.nan], np.float32)) & 0x7F).tolist() == [0x7F, 0x7F]


def test_the_nearest_code_ties_to_even():
    rng = np.random.default_rng(0)
    values = f8e4m3fn_to_f32(CODES[:127])
    middles = (values[:-1] + values[1:]) / 2
    near = np.concatenate(
        (middles, np.nextafter(middles, 0, dtype=np.float32), np.nextafter(middles, 500, dtype=np.float32))
    )
    some = rng.standard_normal(100_000) * np.exp2(rng.uniform(-14, 7, 100_000))
    x = np.concatenate((near, -near, some.clip(-448, 448))).astype(np.float32)
    want = torch.from_numpy(x).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(f32_to_f8e4m3fn(x), want)


def test_beyond_the_largest_it_saturates():
    x = np.array([449, 464, 1e30, np.inf, -465, -np.inf], np.float32)
    np.testing.assert_array_equal(f8e4m3fn_to_f32(f32_to_f8e4m3fn(x)), np.copysign(np.float32(448), x))
