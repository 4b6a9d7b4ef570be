"""The scales that a static cache format is allocated with, checked once in core for every backend."""

from __future__ import annotations

import numpy as np
import pytest

from opsocket.operators import CacheSpec, ContractError, KVFormat, static_scale

SHAPES = {"tensor": (1,), "head": (3,), "channel": (3, 8)}


def cache(granularity: str) -> CacheSpec:
    return CacheSpec(2, 4, 3, 16, 8, KVFormat("f16"), KVFormat("i8", granularity))


@pytest.mark.parametrize("granularity", SHAPES)
def test_a_good_scale_is_copied(granularity):
    scale = np.full(SHAPES[granularity], 0.5, np.float32)
    held = static_scale("v", cache(granularity), scale)
    np.testing.assert_array_equal(held, scale)
    assert not np.may_share_memory(held, scale)


@pytest.mark.parametrize(
    ("name", "granularity", "scale", "told"),
    [
        ("k", "head", np.ones(3, np.float32), "k_scale: wanted None: the format has no static scale"),
        ("v", "token_head", np.ones(3, np.float32), "v_scale: wanted None: the format has no static scale"),
        ("v", "head", None, "v_scale: wanted f32 scales for granularity 'head'"),
        ("v", "channel", np.ones((3, 16), np.float32), r"v_scale: wanted f32 \[3, 8\], got float32 \[3, 16\]"),
        ("v", "tensor", np.ones(1), r"v_scale: wanted f32 \[1\], got float64 \[1\]"),
        ("v", "head", np.float32([1, 0, 1]), "v_scale: wanted positive finite numbers, got 0"),
        ("v", "head", np.float32([1, np.nan, 1]), "v_scale: wanted positive finite numbers, got nan"),
    ],
)
def test_any_other_is_refused_by_name(name, granularity, scale, told):
    with pytest.raises(ContractError, match=told):
        static_scale(name, cache(granularity), scale)


def test_no_scale_where_none_is_wanted():
    assert static_scale("k", cache("head"), None) is None
    assert static_scale("v", CacheSpec(2, 4, 1, 16, 8, KVFormat("f16"), None, "latent"), None) is None
