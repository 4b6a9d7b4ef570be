"""What the emulated NPU computes for each operator of CANN: our reading of its documentation, in float64."""

from opsocket_ascend.emulator.answers import (  # noqa: F401
    attention,
    elementwise,
    formats,
    fused,
    movement,
    products,
    reductions,
)
