"""The weight formats that cases ask for."""

from __future__ import annotations

from typing import Final

FORMATS: Final = (
    "f32", "f16", "bf16", "i8_channel", "i8_channel_a8", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0",
    "q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "iq4_nl", "iq4_xs",
    "f8e4m3fn_tensor", "f8e4m3fn_channel", "f8e4m3fn_128x128", "mxfp4",
    "i4_g32", "i4_g64", "i4_g128", "i4_g32_z", "i4_g128_z", "i2_g32", "i2_g64_z", "i2_g128",
    "gptq_v1_i4_g128", "gptq_v1_i4_g32_act", "gptq_v2_i4_g64", "gptq_v2_i4_g128_act", "awq_i4_g128", "awq_i4_g32",
)  # fmt: skip
"""Every format, and every family of formats in more than one group size."""


SMOKE = (
    "f32",
    "f16",
    "bf16",
    "i8_channel_a8",
    "f8e4m3fn_128x128",
    "mxfp4",
    "q4_0",
    "q8_0",
    "q4_K",
    "i4_g64",
    "i2_g32",
    "gptq_v1_i4_g32_act",
    "gptq_v2_i4_g64",
    "awq_i4_g128",
)

INT8: Final = (
    "q4_0_a8", "q4_1_a8", "q5_0_a8", "q8_0_a8", "q4_K_a8", "q6_K_a8", "i4_g32_a8", "i4_g128_a8", "i2_g64_a8",
    "gptq_v1_i4_g32_act_a8", "q4_0_a8g32", "q4_1_a8g32", "q8_0_a8g32", "q2_K_a8g32", "q6_K_a8g32", "i4_g48_a8g32",
    "i4_g128_z_a8g32", "gptq_v2_i4_g64_act_a8g32", "awq_i4_g128_a8g32", "i8_channel_a8g32",
    "mxfp4_a8", "mxfp4_a8g32", "q3_K_a8", "q5_K_a8g32", "q5_1_a8", "iq4_nl_a8g32",
)  # fmt: skip
"""Formats with int8 activations and scales per group, of the weight or of x: every width of code, every kind of zero
point and minimum, groups that are smaller, larger and no multiple of 32, and permuted columns."""

SMOKE_INT8: Final = ("q4_0_a8", "q4_1_a8", "q4_1_a8g32", "q8_0_a8", "q6_K_a8", "i4_g128_a8", "gptq_v1_i4_g32_act_a8")
