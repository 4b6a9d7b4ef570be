"""What the vendor's operators are asked for, and what they are not: `supports` for chips that are absent."""

from dataclasses import replace

import pytest

from opsocket.operators import (
    AddSpec,
    AttentionSpec,
    Bounds,
    CacheSpec,
    CacheWriteSpec,
    DeviceInfo,
    GroupedMatmulSpec,
    KVFormat,
    MatmulSpec,
    Numerics,
    Request,
    RopeScaling,
    RopeSpec,
    SiluMulSpec,
)
from opsocket_ascend.backend import AscendBackend

A2 = DeviceInfo("ascend", 0, "Ascend910B3", "Ascend910B3", 64 << 30)
INFERENCE = DeviceInfo("ascend", 0, "Ascend310P3", "Ascend310P3", 24 << 30)
FAST = Numerics("bf16", "approx", "exact", "f32_truncating", dequantized="bf16")


F16 = Numerics("f16", "approx", "exact", "f32_truncating", dequantized="f16")
SINKS = replace(FAST, sinks="bf16")
KINDS = ("q_dtype", "kv_dtype", "out_dtype")
MLA = {"num_kv_heads": 1, "head_dim_qk": 576, "head_dim_vo": 512}

BF16, I8 = KVFormat("bf16"), KVFormat("i8", "token_head")
UNBOUNDED = Bounds()


def cache(block_size=128, k=BF16, v=None, dim=64, heads=2):
    return CacheSpec(8, block_size, heads, dim, dim, k, v or k)


def latent(dim=576, values=512, k=BF16):
    return CacheSpec(8, 128, 1, dim, values, k, None, kind="latent")


def attention(paged=None, bounds=UNBOUNDED, **fields):
    spec = {
        "num_q_heads": 14,
        "num_kv_heads": 2,
        "head_dim_qk": 64,
        "head_dim_vo": 64,
        "scale": 0.125,
        "numerics": FAST,
    }
    spec |= dict.fromkeys(KINDS, "bf16") | fields
    return Request(AttentionSpec(**spec), paged or cache(), bounds=bounds)


def served(request, device=A2):
    return AscendBackend().supports(device, request)


def test_attention_is_the_vendors_where_its_numerics_are_permitted():
    assert served(attention()).provider == "torch_npu"
    assert served(attention(mask="full", want_lse=True)).provider == "torch_npu"
    assert served(attention(cache(256))).provider == "torch_npu"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (attention(numerics=Numerics()), "numerics.probabilities"),
        (attention(numerics=Numerics("bf16", "exact", accumulate="f32_truncating")), "numerics.exp"),
        (attention(numerics=Numerics("bf16", "approx")), "numerics.accumulate"),
        (attention(q_dtype="f32", out_dtype="f32"), "q_dtype"),
        (attention(out_dtype="f32"), "out_dtype"),
        (attention(softcap=30.0), "softcap"),
        (attention(alibi=True), "alibi"),
        (attention(sinks=True), "numerics.sinks"),
        (attention(sinks=True, want_lse=True, numerics=SINKS), "want_lse"),
        (attention(cache(k=I8), sinks=True, numerics=SINKS), "cache"),
        (attention(window_left=7, mask="full"), "window_left"),
        (attention(cache(k=I8), window_left=7), "window_left"),
        (attention(mask="tree"), "mask"),
        (attention(cache(16)), "cache.block_size"),
        (attention(cache(k=KVFormat("f16"))), "cache.k.code"),
        (attention(cache(dim=72), head_dim_qk=72, head_dim_vo=72), "head_dim_qk"),
        (attention(num_q_heads=130), "num_kv_heads"),
        (
            attention(cache(k=I8), numerics=Numerics("bf16", "approx", accumulate="f32_truncating")),
            "numerics.dequantized",
        ),
        (attention(latent(), **MLA, num_q_heads=5), "num_q_heads"),
        (attention(latent(), **MLA, num_q_heads=16, window_left=7), "window_left"),
        (attention(latent(k=I8), **MLA, num_q_heads=16), "cache.k.code"),
        (attention(latent(80, 64), num_kv_heads=1, head_dim_qk=80), "head_dim_qk"),
        (attention(cache(k=I8, v=BF16), Bounds(max_q_len=1)), "cache.v.code"),
    ],
)
def test_what_the_vendors_attention_can_not_do_goes_to_the_next_with_a_reason(request_, field):
    support = served(request_)
    assert support.provider == "torch"
    (reasons,) = (reasons for name, reasons in support.passed_over if name == "torch_npu")
    assert field in [reason.field for reason in reasons]


def test_int8_pages_windows_and_latent_pages_are_the_vendors():
    assert served(attention(cache(k=I8), Bounds(max_q_len=1))).provider == "torch_npu"
    assert served(attention(cache(k=I8))).provider == "torch_npu"
    assert served(attention(window_left=7)).provider == "torch_npu"
    assert served(attention(window_left=7, sinks=True, numerics=SINKS)).provider == "torch_npu"
    assert served(attention(latent(), **MLA, num_q_heads=16)).provider == "torch_npu"
    assert served(Request(CacheWriteSpec("bf16"), latent())).provider == "torch_npu"


def test_a_chip_that_lacks_an_operator_says_which():
    support = served(attention(cache(k=KVFormat("f16")), numerics=F16, **dict.fromkeys(KINDS, "f16")), INFERENCE)
    assert support.provider == "torch"
    (reasons,) = (reasons for name, reasons in support.passed_over if name == "torch_npu")
    assert {(r.field, r.got) for r in reasons} == {("device.arch", "Ascend310P3")}


def test_matmul_by_format():
    def by(weight_format, **fields):
        return served(Request(MatmulSpec(weight_format, 256, 512, "f16", "f16", **fields))).provider

    fast = F16
    assert by("f16", numerics=fast) == "torch_npu"
    assert by("f16") == "torch"
    assert by("i8_channel_a8", bias=True) == "torch_npu"
    assert by("gptq_v2_i4_g128", numerics=fast) == "torch_npu"
    assert by("gptq_v2_i4_g128") == "torch"
    assert by("q8_0", numerics=fast) == "torch_npu"
    assert by("f16", numerics=fast, bias=True) == "torch"
    biased = MatmulSpec("bf16", 256, 512, "bf16", "bf16", bias=True, numerics=FAST)
    assert served(Request(biased)).provider == "torch_npu"
    assert by("i2_g64", numerics=fast) == "torch_npu"
    assert by("i8_channel", numerics=fast) == "torch"
    assert by("q4_1", numerics=fast) == "torch"


def test_scales_of_another_type_than_x_are_served_where_they_may_be_rounded():
    def by(weight_format, x_dtype, device=A2, **fields):
        permitted = {"f16": F16, "bf16": FAST}[x_dtype]
        spec = MatmulSpec(weight_format, 256, 512, x_dtype, x_dtype, numerics=replace(permitted, **fields))
        return served(Request(spec), device)

    for weight_format in ("gptq_v2_i4_g128", "awq_i4_g64", "q8_0", "i4_g64_z", "i8_channel"):
        assert by(weight_format, "bf16", scales="bf16").provider == "torch_npu"
        support = by(weight_format, "bf16", scales="f16")
        assert support.provider == "torch"
        (reasons,) = (reasons for name, reasons in support.passed_over if name == "torch_npu")
        assert [reason.field for reason in reasons] == ["numerics.scales"]
    assert by("q8_0", "f16").provider == "torch_npu"
    assert by("i8_channel", "f16").provider == "torch"
    assert by("i8_channel", "f16", scales="f16").provider == "torch_npu"
    assert by("q4_1", "bf16", scales="bf16").provider == "torch"


def test_a_chip_that_has_scales_by_columns_alone_serves_these():
    def by(weight_format):
        spec = MatmulSpec(weight_format, 256, 512, "f16", "f16", numerics=replace(F16, scales="f16"))
        return served(Request(spec), INFERENCE)

    assert by("i8_channel").provider == "torch_npu"
    support = by("gptq_v2_i4_g128")
    assert support.provider == "torch"
    (reasons,) = (reasons for name, reasons in support.passed_over if name == "torch_npu")
    assert [reason.want for reason in reasons] == ["a chip that has npu_weight_quant_batchmatmul with scales by groups"]


def test_experts_by_format():
    def by(weight_format, x_dtype="f16", numerics=F16, **fields):
        return served(
            Request(GroupedMatmulSpec(4, weight_format, 256, 512, x_dtype, x_dtype, numerics=numerics, **fields))
        ).provider

    assert by("f16") == by("i4_g64") == by("i8_channel_a8") == "torch_npu"
    assert by("bf16", "bf16", FAST, bias=True) == "torch_npu"
    rounded = replace(FAST, scales="bf16")
    assert by("i8_channel", "bf16", rounded) == by("gptq_v2_i4_g64", "bf16", rounded, bias=True) == "torch_npu"
    assert by("q8_0", "bf16", rounded) == by("i8_channel", "bf16", FAST) == "torch"
    assert by("f16", bias=True) == by("gptq_v1_i4_g64_act") == by("q8_0") == by("f16", numerics=Numerics()) == "torch"
    assert by("i8_channel_a8", "bf16", FAST) == ""


def test_gates_and_turns_are_the_vendors_in_f32():
    assert served(Request(SiluMulSpec(128, "bf16"))).provider == "torch_npu"
    assert served(Request(RopeSpec(3, 64, 64, 1e4, dtype="bf16"))).provider == "torch_npu"
    stretched = RopeScaling("yarn", 16.0, 4096, attention_factor=1.28)
    assert served(Request(RopeSpec(3, 64, 64, 1e4, scaling=stretched))).provider == "torch"


def test_a_chip_without_bf16_refuses_it_and_serves_f16():
    write = Request(CacheWriteSpec("bf16"), cache())
    assert not served(write, INFERENCE)
    assert {reason.field for reason in served(write, INFERENCE).reasons} >= {"dtype", "cache.k.code"}
    assert served(Request(CacheWriteSpec("f16"), cache(k=KVFormat("f16"))), INFERENCE)


def test_a_chip_whose_products_are_in_f16_serves_what_permits_it():
    half = {"x_dtype": "f16", "out_dtype": "f16"}
    pages = cache(k=KVFormat("f16"))

    def refused(request):
        support = served(request, INFERENCE)
        assert not support
        return {reason.field for reason in support.reasons if reason.code == "chip"}

    assert served(Request(MatmulSpec("f16", 256, 512, **half, numerics=F16)), INFERENCE).provider == "torch_npu"
    assert served(Request(MatmulSpec("q4_1", 256, 512, **half, numerics=F16)), INFERENCE).provider == "torch"
    assert served(attention(pages, numerics=F16, **dict.fromkeys(KINDS, "f16")), INFERENCE).provider == "torch"
    assert refused(Request(MatmulSpec("f16", 256, 512, **half))) >= {"numerics.accumulate"}
    assert refused(Request(MatmulSpec("f16", 256, 512, "f32", "f32", numerics=F16))) >= {"x_dtype"}
    exact = replace(F16, dequantized="f32", probabilities="f32")
    assert refused(Request(MatmulSpec("q4_1", 256, 512, **half, numerics=exact))) >= {"numerics.dequantized"}
    wide = attention(pages, numerics=exact, **dict.fromkeys(KINDS, "f16"))
    assert refused(wide) >= {"numerics.probabilities"}
    assert refused(attention(pages, numerics=F16, **dict.fromkeys(KINDS, "f32"))) >= {"q_dtype"}


def test_what_core_composes_in_f64_is_refused():
    stretched = Request(RopeSpec(3, 64, 64, 0.05, factors=True, dtype="f16"))
    fields = {reason.field for reason in served(stretched).reasons}
    assert fields >= {"theta", "device.arch"}


def test_core_composes_in_the_types_that_the_chip_has():
    assert served(Request(AddSpec(64, "bf16"))).provider == "composed"
    assert served(Request(AddSpec(64, "f16")), INFERENCE).provider == "composed"
    assert [reason.got for reason in served(Request(AddSpec(64, "bf16")), INFERENCE).reasons if reason.field == "dtype"]


def test_controls_are_of_what_a_chip_serves():
    def names(arch):
        return {control.name for control in AscendBackend().ladder().wrong_kernels(arch)}

    assert names("Ascend310P3") < names("Ascend910B3") == names("Ascend910_9391")
    assert "low bits lost" in names("Ascend310P3")
    assert "lengths as captured" in names("Ascend910B3") - names("Ascend310P3")
