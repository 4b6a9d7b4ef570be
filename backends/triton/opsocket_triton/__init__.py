"""Triton kernels that the backends for NVIDIA and AMD share: a kernel library, not a backend."""
