"""The weight formats that cases ask for."""

from __future__ import annotations

from typing import Final

FORMATS: Final = (
    "f32", "f16", "bf16", "i8_channel", "i8_channel_a8", "q4_0", "q4_1", "q5_0", "q8_0", "q2_K", "q4_K", "q6_K",
    "i4_g32", "i4_g64", "i4_g128", "i4_g32_z", "i4_g128_z", "i2_g32", "i2_g64_z", "i2_g128",
    "gptq_v1_i4_g128", "gptq_v1_i4_g32_act", "gptq_v2_i4_g64", "gptq_v2_i4_g128_act", "awq_i4_g128", "awq_i4_g32",
)  # fmt: skip
"""Every format, and every family of formats in more than one group size."""


SMOKE = (
    "f32",
    "f16",
    "bf16",
    "i8_channel_a8",
    "q4_0",
    "q8_0",
    "q4_K",
    "i4_g64",
    "i2_g32",
    "gptq_v2_i4_g64",
    "awq_i4_g128",
)
