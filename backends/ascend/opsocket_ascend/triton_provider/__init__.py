"""Our own kernels in Triton, for what torch_npu has no operator for."""
