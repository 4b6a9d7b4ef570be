"""What the emulated NPU computes for each aclnn operator: our reading of CANN's documentation, in float64."""

from opsocket_ascend.emulator.answers import attention, elementwise, fused, movement, products, reductions  # noqa: F401
