"""Calls that the vendor's Python and C++ take and its documentation forbids: our checks refuse them."""

import numpy as np
import pytest
import torch

from opsocket.operators import ContractError
from opsocket_ascend.torch_npu_provider import strict

BF16, F16, I8, I32, I64 = torch.bfloat16, torch.float16, torch.int8, torch.int32, torch.int64
HEADS, KV_HEADS, DIM, SIZE, BLOCKS = 14, 2, 64, 128, 5


@pytest.fixture(scope="module", autouse=True)
def opened(session):
    return session


def zeros(*shape, dtype=BF16):
    return torch.zeros(shape, dtype=dtype, device="npu")


def attend(**changed):
    arguments = {
        "q": zeros(3, HEADS, DIM),
        "keys": zeros(BLOCKS, SIZE, KV_HEADS, DIM),
        "values": zeros(BLOCKS, SIZE, KV_HEADS, DIM),
        "num_heads": HEADS,
        "num_kv_heads": KV_HEADS,
        "scale": 0.125,
        "q_ends": [1, 2, 3],
        "kv_lens": [5, 130, 1],
        "block_table": zeros(3, 2, dtype=I32),
        "mask": None,
        "want_lse": False,
    }
    return strict.fused_infer_attention(**arguments | changed)


def mask():
    return torch.from_numpy(np.triu(np.ones((2048, 2048), np.int8), 1)).npu()


def latent(**changed):
    pages = zeros(BLOCKS, SIZE, 1, 512)
    arguments = {"q": zeros(3, 16, 512), "keys": pages, "values": pages, "num_heads": 16, "num_kv_heads": 1}
    arguments |= {"q_rope": zeros(3, 16, 64), "key_rope": zeros(BLOCKS, SIZE, 1, 64)}
    return attend(**arguments | changed)


def test_a_right_call_of_each_is_taken(opened):
    assert attend()[0].shape == (3, HEADS, DIM)
    assert attend(sinks=zeros(HEADS))[0].shape == (3, HEADS, DIM)
    assert attend(q_ends=[1, 1, 3], kv_lens=[5, 1, 130], mask=mask(), window=7)[0].shape == (3, HEADS, DIM)
    assert latent()[0].shape == (3, 16, 512)
    assert latent(q_ends=[1, 2, 3], kv_lens=[5, 130, 1])[0].shape == (3, 16, 512)
    codes, scale = strict.dynamic_quant(zeros(3, 64))
    y = strict.quant_matmul(codes, zeros(64, 32, dtype=I8), zeros(32).float(), scale, None, F16)
    assert y.shape == (3, 32)
    strict.weight_quant_matmul(zeros(3, 64), zeros(64, 4, dtype=I32), zeros(2, 32), zeros(2, 32), 32)
    strict.weight_quant_matmul(zeros(3, 64), zeros(32, 64, dtype=I8).t(), zeros(32), None, 0, zeros(32).float())
    strict.rms_norm(zeros(3, 64), zeros(64), 1e-5)


@pytest.mark.parametrize(
    ("argument", "changed"),
    [
        ("block_table", lambda: {"block_table": zeros(3, 2, dtype=I64)}),
        ("block_table", lambda: {"block_table": zeros(2, 2, dtype=I32)}),
        ("block_table", lambda: {"block_table": zeros(3, 1, dtype=I32)}),
        ("keys", lambda: {"keys": zeros(BLOCKS, SIZE, KV_HEADS, 32)}),
        ("keys", lambda: {"keys": zeros(BLOCKS, 16, KV_HEADS, DIM), "values": zeros(BLOCKS, 16, KV_HEADS, DIM)}),
        ("values", lambda: {"values": zeros(BLOCKS, SIZE, KV_HEADS, 32)}),
        ("num_heads", lambda: {"num_heads": 16}),
        ("q", lambda: {"q": zeros(3, HEADS, DIM).float()}),
        ("q", lambda: {"q": zeros(3, 2 * HEADS, DIM)[:, ::2]}),
        ("q_ends", lambda: {"q_ends": [1, 2, 2]}),
        ("q_ends", lambda: {"q_ends": [2, 1, 3]}),
        ("kv_lens", lambda: {"kv_lens": [5, 130]}),
        ("kv_lens", lambda: {"kv_lens": [5, 130, 0]}),
        ("kv_lens", lambda: {"q_ends": [1, 1, 3], "mask": mask()}),
        ("mask", lambda: {"mask": mask()}),
        ("window", lambda: {"window": -1}),
        ("sinks", lambda: {"sinks": zeros(HEADS).float()}),
        ("sinks", lambda: {"sinks": zeros(HEADS - 1)}),
        ("q_rope", lambda: {"q_rope": zeros(3, HEADS, 64)}),
        ("mask", lambda: {"mask": zeros(3, 130, dtype=I8)}),
        (
            "key_scale",
            lambda: {"keys": zeros(BLOCKS, SIZE, KV_HEADS, DIM, dtype=I8), "values": zeros(5, 128, 2, 64, dtype=I8)},
        ),
    ],
)
def test_attention_that_the_vendor_takes_is_refused(argument, changed):
    with pytest.raises(ContractError, match=f"^{argument}: ") as caught:
        attend(**changed())
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("argument", "changed"),
    [
        ("q_rope", lambda: {"key_rope": None}),
        ("q_rope", lambda: {"q_rope": zeros(3, 16, 32)}),
        ("q_rope", lambda: {"q_rope": zeros(3, 16, 64).half()}),
        ("key_rope", lambda: {"key_rope": zeros(BLOCKS, SIZE, 1, 32)}),
        ("q", lambda: {"q": zeros(3, 5, 512), "num_heads": 5, "q_rope": zeros(3, 5, 64)}),
        ("values", lambda: {"values": zeros(BLOCKS, SIZE, 1, 512)}),
        ("window", lambda: {"window": 7}),
        ("q_ends", lambda: {"q_ends": [1, 1, 3], "kv_lens": [5, 1, 130]}),
        (
            "q_ends",
            lambda: {
                "q": zeros(17, 16, 512),
                "q_rope": zeros(17, 16, 64),
                "q_ends": [17],
                "kv_lens": [17],
                "block_table": zeros(1, 2, dtype=I32),
                "mask": mask(),
            },
        ),
    ],
)
def test_latent_attention_that_the_vendor_takes_is_refused(argument, changed):
    with pytest.raises(ContractError, match=f"^{argument}: "):
        latent(**changed())


def product(**changed):
    arguments = {
        "codes": zeros(3, 64, dtype=I8),
        "weight": zeros(64, 32, dtype=I8),
        "scale": zeros(32).float(),
        "per_token": zeros(3).float(),
        "bias": None,
        "dtype": BF16,
    }
    return strict.quant_matmul(**arguments | changed)


@pytest.mark.parametrize(
    ("argument", "changed"),
    [
        ("codes", lambda: {"codes": zeros(3, 64, dtype=F16)}),
        ("weight", lambda: {"weight": zeros(48, 32, dtype=I8)}),
        ("scale", lambda: {"scale": zeros(16).float()}),
        ("per_token", lambda: {"per_token": zeros(2).float()}),
        ("bias", lambda: {"bias": zeros(31).float()}),
        ("dtype", lambda: {"dtype": torch.float32}),
    ],
)
def test_an_int8_product_that_the_vendor_takes_is_refused(argument, changed):
    with pytest.raises(ContractError, match=f"^{argument}: "):
        product(**changed())


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("weight", lambda: (zeros(3, 64), zeros(48, 4, dtype=I32), zeros(2, 32), None, 32)),
        ("scale", lambda: (zeros(3, 64), zeros(64, 4, dtype=I32), zeros(2, 31), None, 32)),
        ("scale", lambda: (zeros(3, 64), zeros(64, 4, dtype=I32), zeros(2, 32).half(), None, 32)),
        ("offset", lambda: (zeros(3, 64), zeros(64, 4, dtype=I32), zeros(2, 32), zeros(1, 32), 32)),
        ("group", lambda: (zeros(3, 64), zeros(64, 4, dtype=I32), zeros(2, 32), None, 48)),
        ("x", lambda: (zeros(3, 64).float(), zeros(64, 4, dtype=I32), zeros(2, 32), None, 32)),
        ("scale", lambda: (zeros(3, 64), zeros(64, 32, dtype=I8), zeros(32).float(), None, 0)),
        ("scale", lambda: (zeros(3, 64), zeros(64, 32, dtype=I8), zeros(2, 32), None, 0)),
        ("bias", lambda: (zeros(3, 64), zeros(64, 32, dtype=I8), zeros(32), None, 0, zeros(32))),
        ("bias", lambda: (zeros(3, 64), zeros(64, 32, dtype=I8), zeros(32), None, 0, zeros(31).float())),
        ("x", lambda: (zeros(3, 64).half(), zeros(64, 32, dtype=I8), zeros(32).half(), None, 0, zeros(32).float())),
    ],
)
def test_a_weight_only_product_that_the_vendor_takes_is_refused(argument, arguments):
    with pytest.raises(ContractError, match=f"^{argument}: "):
        strict.weight_quant_matmul(*arguments())


def experts(**changed):
    arguments = {
        "x": zeros(7, 64),
        "weights": [zeros(64, 32), zeros(32, 64).t()],
        "ends": torch.tensor([3, 7]).npu(),
        "dtype": BF16,
    }
    return strict.grouped_matmul(**arguments | changed)


def int8_experts(**changed):
    arguments = {
        "x": zeros(7, 64, dtype=I8),
        "weights": [zeros(64, 32, dtype=I8)] * 2,
        "dtype": F16,
        "scale": [zeros(32).float()] * 2,
        "per_token": zeros(7).float(),
    }
    return experts(**arguments | changed)


def int4_experts(**changed):
    arguments = {
        "weights": [zeros(64, 4, dtype=I32)] * 2,
        "group_scale": [zeros(2, 32)] * 2,
        "group_offset": [zeros(2, 32)] * 2,
    }
    return experts(**arguments | changed)


def channel_experts(**changed):
    arguments = {
        "weights": [zeros(32, 64, dtype=I8).t()] * 2,
        "group_scale": [zeros(32)] * 2,
        "group_offset": [zeros(32)] * 2,
    }
    return experts(**arguments | changed)


def test_right_products_of_experts_are_taken(opened):
    assert channel_experts(bias=[zeros(32).float()] * 2).shape == (7, 32)
    assert experts().shape == experts(bias=[zeros(32).float()] * 2).shape == (7, 32)
    assert int8_experts().dtype == F16
    assert int4_experts().shape == (7, 32)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("weights", lambda: experts(weights=[])),
        ("weights", lambda: experts(weights=[zeros(64, 32)] * 129)),
        (r"weights\[1\]", lambda: experts(weights=[zeros(64, 32), zeros(64, 31)])),
        (r"weights\[1\]", lambda: experts(weights=[zeros(64, 32), zeros(32, 32)])),
        (r"weights\[1\]", lambda: experts(weights=[zeros(64, 32), zeros(64, 32).half()])),
        ("x", lambda: experts(x=zeros(7, 64).half())),
        ("ends", lambda: experts(ends=zeros(2, dtype=I32))),
        ("ends", lambda: experts(ends=zeros(3, dtype=I64))),
        (r"bias\[0\]", lambda: experts(bias=[zeros(31).float()] * 2)),
        (r"bias\[0\]", lambda: experts(bias=[zeros(32)] * 2)),
        ("bias", lambda: experts(bias=[zeros(32).float()])),
        ("dtype", lambda: experts(dtype=F16)),
        ("dtype", lambda: int8_experts(dtype=BF16)),
        ("scale", lambda: int8_experts(scale=None)),
        (r"scale\[0\]", lambda: int8_experts(scale=[zeros(32)] * 2)),
        ("per_token", lambda: int8_experts(per_token=None)),
        ("per_token", lambda: int8_experts(per_token=zeros(6).float())),
        ("bias", lambda: int8_experts(bias=[zeros(32).float()] * 2)),
        ("group_scale", lambda: int4_experts(group_scale=None)),
        ("group_scale", lambda: channel_experts(group_scale=None)),
        ("group_offset", lambda: channel_experts(group_offset=None)),
        (r"group_scale\[0\]", lambda: channel_experts(group_scale=[zeros(32).float()] * 2)),
        (r"group_scale\[0\]", lambda: channel_experts(group_scale=[zeros(2, 32)] * 2)),
        ("scale", lambda: channel_experts(scale=[zeros(32).float()] * 2)),
        (r"group_offset\[0\]", lambda: int4_experts(group_offset=[zeros(1, 32)] * 2)),
        ("group_scale", lambda: int4_experts(group_scale=[zeros(3, 32)] * 2, group_offset=[zeros(3, 32)] * 2)),
    ],
)
def test_a_product_of_experts_that_the_vendor_takes_is_refused(argument, call):
    with pytest.raises(ContractError, match=f"^{argument}: "):
        call()


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("joined", lambda: strict.swiglu(zeros(3, 63).float())),
        ("joined", lambda: strict.swiglu(zeros(3, 64))),
        ("joined", lambda: strict.swiglu(zeros(3, 128).float()[:, :64])),
        ("x", lambda: strict.rotary_mul(zeros(3, 2, 64), zeros(3, 1, 64), zeros(3, 1, 64), False)),
        ("x", lambda: strict.rotary_mul(zeros(3, 1000, 2).float(), *[zeros(3, 1, 2).float()] * 2, False)),
        ("cos", lambda: strict.rotary_mul(zeros(3, 2, 64).float(), *[zeros(2, 1, 64).float()] * 2, False)),
        (
            "sin",
            lambda: strict.rotary_mul(zeros(3, 2, 4).float(), zeros(3, 1, 4).float(), zeros(3, 1, 2).float(), True),
        ),
    ],
)
def test_a_gate_or_a_turn_that_the_vendor_takes_is_refused(argument, call):
    with pytest.raises(ContractError, match=f"^{argument}: "):
        call()


def test_a_gamma_of_another_width_is_refused():
    with pytest.raises(ContractError, match=r"^gamma: "):
        strict.rms_norm(zeros(3, 64), zeros(32), 1e-5)


def test_int8_pages_are_decoded_with_their_scales(session):
    """What the suite does not ask for, as its requests bound no q_len: one query over int8 pages."""
    from opsocket.operators import (
        AttentionBatch,
        AttentionSpec,
        Bounds,
        CacheSpec,
        CacheWriteSpec,
        KVFormat,
        Numerics,
        Request,
        SlotBatch,
    )

    fmt = KVFormat("i8", "token_head")
    paged = CacheSpec(4, 128, KV_HEADS, DIM, DIM, fmt, fmt)
    numerics = Numerics("bf16", "approx", accumulate="f32_truncating", dequantized="bf16")
    kinds = dict.fromkeys(("q_dtype", "kv_dtype", "out_dtype"), "bf16")
    spec = AttentionSpec(HEADS, KV_HEADS, DIM, DIM, 0.125, numerics=numerics, **kinds)
    plan = session.plan(Request(spec, paged, bounds=Bounds(max_q_len=1)))
    assert plan.provider == "torch_npu"
    rng = np.random.default_rng(0)
    k, v = (rng.standard_normal((150, KV_HEADS, DIM)).astype(np.float32) for _ in "kv")
    q = rng.standard_normal((1, HEADS, DIM)).astype(np.float32)
    cache = session.allocate_cache(paged)
    write = session.plan(Request(CacheWriteSpec("f32"), paged), SlotBatch(128 + np.arange(150)))
    write.run(cache, session.upload(k), session.upload(v))
    plan.update(AttentionBatch(np.array([0, 1], np.int32), np.array([150], np.int32), np.array([[1, 2]], np.int32)))
    out, _ = plan.run(session.upload(q, "bf16"), cache)
    scores = np.einsum("hd,shd->hs", q[0], np.repeat(k, HEADS // KV_HEADS, 1)) * 0.125
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    want = np.einsum("hs,shd->hd", weights / weights.sum(-1, keepdims=True), np.repeat(v, HEADS // KV_HEADS, 1))
    assert np.abs(session.download(out)[0] - want).max() < 0.02
