"""An emulated NPU: the unmodified torch_npu over stand-in CANN libraries of ours, built from `src/` by `build`.

What is real: torch_npu's C++ and Python, the checks in them, and the aclnn calls that they make. What is ours: the
runtime below it, the device's memory, which the host can't touch, and the numbers, in float64. So a run here says that
a backend calls what CANN offers, with the shapes, strides, dtypes, formats and attributes that it means; it says
nothing about CANN's kernels, the checks in them, or time.
"""
