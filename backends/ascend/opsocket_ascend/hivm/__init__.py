"""Triton kernels lowered for Ascend by the vendor's open compilers, where there is no NPU and no CANN."""
