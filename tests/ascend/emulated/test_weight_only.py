"""Weights in codes whose scales are rounded to the type of the activations, as the vendor's products take them."""

import numpy as np
import pytest

from opsocket.operators import ContractError, GroupedMatmulSpec, MatmulSpec, Numerics, Request

N, K = 48, 128


def request(dtype="bf16", experts=0, weight="i8_channel"):
    numerics = Numerics(accumulate="f32_truncating", dequantized=dtype, scales=dtype)
    if experts:
        return Request(GroupedMatmulSpec(experts, weight, N, K, dtype, dtype, numerics=numerics))
    return Request(MatmulSpec(weight, N, K, dtype, dtype, numerics=numerics))


def tensors(scale=0.003):
    rng = np.random.default_rng(3)
    return {
        "weight": rng.integers(-127, 128, (N, K)).astype(np.int8),
        "scale": (scale * rng.uniform(0.5, 1, N)).astype(np.float32),
    }


def rounded(scale, dtype):
    if dtype == "f16":
        return scale.astype(np.float16).astype(np.float32)
    bits = scale.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("experts", [0, 2])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_a_weight_means_its_codes_times_its_rounded_scales(session, dtype, experts):
    given = tensors()
    plan = session.plan(request(dtype, experts))
    packed = session.prepare_weight(request(dtype, experts), given)
    assert plan.provider == "torch_npu"
    expected = given["weight"] * rounded(given["scale"], dtype)[:, None]
    assert np.array_equal(session.download(plan.dequantize(session, packed)), expected)


def test_a_weight_of_scales_in_one_type_meets_no_activations_of_another(session):
    plan = session.plan(request("f16"))
    packed = session.prepare_weight(request("bf16"), tensors())
    with pytest.raises(ContractError, match="layout"):
        plan.run(session.upload(np.ones((2, K), np.float32), "f16"), packed)


def test_scales_that_f16_can_not_hold_are_refused(session):
    with pytest.raises(ContractError, match="scales that f16 can hold"):
        session.prepare_weight(request("f16"), tensors(scale=3e5))
