"""Requests are the one truth: frozen, hashable, and the same after a trip through JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsocket.operators import (
    AddSpec,
    ArgmaxSpec,
    AttentionSpec,
    Bounds,
    CacheLayout,
    CacheSpec,
    CacheWriteSpec,
    ContractError,
    EmbeddingSpec,
    GroupedMatmulSpec,
    KVFormat,
    MatmulSpec,
    Numerics,
    Plane,
    Request,
    RMSNormSpec,
    RopeScaling,
    RopeSpec,
    SampleSpec,
    Spec,
)

floats = st.sampled_from(["f32", "f16", "bf16"])
sizes = st.integers(1, 300)
finite = st.floats(0.001, 1000.0)

kv_formats = st.one_of(
    st.builds(KVFormat, st.sampled_from(["f32", "f16", "bf16"])),
    st.builds(
        KVFormat,
        st.sampled_from(["i8", "i4", "i2"]),
        st.sampled_from(["tensor", "head", "channel", "token_head"]),
        st.sampled_from(["f32", "f16"]),
        st.booleans(),
    ),
    st.builds(KVFormat, st.sampled_from(["f8e4m3fn", "f8e4m3fnuz"]), st.sampled_from(["none", "tensor", "token_head"])),
)
caches = st.one_of(
    st.builds(CacheSpec, sizes, sizes, sizes, sizes, sizes, kv_formats, kv_formats),
    st.builds(
        CacheSpec, sizes, sizes, st.just(1), st.just(576), st.just(512), kv_formats, st.none(), st.just("latent")
    ),
)
layouts = st.builds(
    CacheLayout,
    st.text(max_size=9),
    st.tuples(st.builds(Plane, st.just("k"), st.just((3, 5)), st.just("i8"), st.just(("block", "dim")))),
    sizes,
    sizes,
)
numerics = st.builds(
    lambda *choices, steps: Numerics(*choices[:4], steps if choices[3] == "f32_truncating" else 1, choices[4]),
    floats,
    st.sampled_from(["exact", "approx"]),
    st.sampled_from(["exact", "approx"]),
    st.sampled_from(["f32", "f64", "f32_truncating"]),
    floats,
    steps=st.integers(1, 64),
)
attention = st.builds(
    lambda group, heads, **kw: AttentionSpec(group * heads, heads, **kw),
    st.integers(1, 8),
    st.integers(1, 8),
    head_dim_qk=sizes,
    head_dim_vo=sizes,
    scale=finite,
    mask=st.sampled_from(["causal", "full", "tree"]),
    window_left=st.none() | st.integers(0, 99),
    window_right=st.none() | st.integers(0, 99),
    softcap=st.none() | finite,
    alibi=st.booleans(),
    sinks=st.booleans(),
    q_dtype=floats,
    kv_dtype=floats,
    out_dtype=floats,
    numerics=numerics,
    want_lse=st.booleans(),
    deterministic=st.booleans(),
)
formats = st.sampled_from(["f16", "q4_0", "q6_K", "i4_g32_z", "gptq_v1_i4_g128", "i8_channel_a8"])
specs = st.one_of(
    attention,
    st.builds(MatmulSpec, formats, sizes, sizes, floats, floats, st.booleans(), numerics),
    st.builds(GroupedMatmulSpec, sizes, formats, sizes, sizes),
    st.builds(EmbeddingSpec, formats, sizes, sizes, floats),
    st.builds(RMSNormSpec, sizes, finite, floats),
    st.builds(
        RopeSpec,
        sizes,
        st.just(64),
        st.sampled_from([2, 32, 64]),
        finite,
        st.booleans(),
        st.none() | st.builds(RopeScaling, st.sampled_from(["linear", "llama3", "yarn"]), finite, sizes),
    ),
    st.builds(ArgmaxSpec, sizes),
    st.builds(SampleSpec, sizes),
)
bounds = st.builds(Bounds, *[st.none() | st.integers(0, 1 << 40)] * 4)
requests = st.one_of(
    st.builds(Request, specs, bounds=bounds),
    st.builds(Request, attention, caches, st.none() | layouts, bounds),
    st.builds(Request, st.builds(CacheWriteSpec, floats), caches),
)


@given(requests)
def test_a_request_is_the_same_after_json(request):
    text = request.dumps()
    again = Request.loads(text)
    assert again == request
    assert hash(again) == hash(request)
    assert again.dumps() == text


@given(requests, st.data())
def test_one_changed_value_is_an_error_that_names_it_or_another_request(request, data):
    """No value is silently dropped or defaulted on the way in."""
    tree = json.loads(request.dumps())
    key = data.draw(st.sampled_from(sorted(tree["spec"]))) if tree["spec"] else None
    if key is None:
        return
    tree["spec"][key] = data.draw(st.sampled_from(["nonsense", -7, 2.5, [], {"x": 1}, True]))
    try:
        changed = Request.from_json(tree)
    except ContractError:
        return
    assert changed.to_json()["spec"][key] == tree["spec"][key]


@pytest.mark.parametrize(
    ("text", "argument"),
    [
        ("[]", "request"),
        ("{", "request"),
        ("[" * 100_000, "request"),
        ("{}", "request.op"),
        ('{"op": "add"}', "request.spec"),
        ('{"op": "nonsense", "spec": {}}', "op"),
        ('{"op": "add", "spec": {"width": 4}, "extra": 1}', "request.extra"),
        ('{"op": "add", "spec": {"width": 4, "widht": 4}}', "request.spec.widht"),
        ('{"op": "add", "spec": {"width": "4"}}', "request.spec.width"),
        ('{"op": "add", "spec": {"width": true}}', "request.spec.width"),
        ('{"op": "add", "spec": {"width": 0}}', "width"),
        ('{"op": "add", "spec": {}}', "request.spec.width"),
        ('{"op": "rms_norm", "spec": {"width": 4, "eps": NaN}}', "request.spec.eps"),
        ('{"op": "cache_move", "spec": {}}', "cache"),
    ],
)
def test_bad_json_names_the_place(text, argument):
    with pytest.raises(ContractError) as caught:
        Request.loads(text)
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: AttentionSpec(4, 3, 64, 64, 1.0), "num_q_heads"),
        (lambda: AttentionSpec(4, 2, 0, 64, 1.0), "head_dim_qk"),
        (lambda: AttentionSpec(4, 2, 64, 64, float("nan")), "scale"),
        (lambda: AttentionSpec(4, 2, 64, 64, 1.0, mask="sliding"), "mask"),
        (lambda: AttentionSpec(4, 2, 64, 64, 1.0, window_left=-1), "window_left"),
        (lambda: AttentionSpec(4, 2, 64, 64, 1.0, softcap=0.0), "softcap"),
        (lambda: AttentionSpec(4, 2, 64, 64, 1.0, q_dtype="float32"), "q_dtype"),
        (lambda: KVFormat("i8"), "granularity"),
        (lambda: KVFormat("f16", "token_head"), "granularity"),
        (lambda: KVFormat("f8e4m3fn", zero_point=True), "zero_point"),
        (lambda: CacheSpec(1, 0, 1, 1, 1, KVFormat("f16"), KVFormat("f16")), "block_size"),
        (lambda: CacheSpec(1, 1, 1, 1, 1, KVFormat("f16"), None), "v"),
        (lambda: CacheSpec(1, 1, 1, 8, 8, KVFormat("f16"), KVFormat("f16"), "mla"), "kind"),
        (lambda: CacheSpec(1, 1, 1, 8, 8, KVFormat("f16"), KVFormat("f16"), "latent"), "v"),
        (lambda: CacheSpec(1, 1, 2, 8, 8, KVFormat("f16"), None, "latent"), "num_kv_heads"),
        (lambda: CacheSpec(1, 1, 1, 8, 9, KVFormat("f16"), None, "latent"), "head_dim_v"),
        (lambda: Numerics("f64"), "numerics.probabilities"),
        (lambda: Numerics(accumulate="bf16"), "numerics.accumulate"),
        (lambda: Numerics(accumulate="f32_truncating", accumulate_step=0), "numerics.accumulate_step"),
        (lambda: Numerics(accumulate_step=16), "numerics.accumulate_step"),
        (lambda: Numerics(dequantized="i8"), "numerics.dequantized"),
        (lambda: MatmulSpec("q4_O", 64, 64), "format"),
        (lambda: Bounds(max_tokens=-1), "bounds.max_tokens"),
        (lambda: Request(AddSpec(4), CacheSpec(1, 1, 1, 1, 1, KVFormat("f16"), KVFormat("f16"))), "cache"),
        (lambda: RopeSpec(1, 64, 63, 1e4), "rotary_dim"),
        (lambda: RMSNormSpec(4, 1e-5, residual=True, heads=2), "heads"),
    ],
)
def test_an_impossible_spec_is_refused_by_name(make, argument):
    with pytest.raises(ContractError) as caught:
        make()
    assert caught.value.argument == argument


def test_scale_has_no_default():
    scale = next(f for f in dataclasses.fields(AttentionSpec) if f.name == "scale")
    assert scale.default is dataclasses.MISSING


def test_two_operators_can_not_share_a_name():
    with pytest.raises(ContractError, match="add"):

        class Clash(Spec):
            op = "add"
