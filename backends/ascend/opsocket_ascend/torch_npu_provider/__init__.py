"""Provider `torch_npu`: the vendor's fused operators, where their numerics are permitted and their limits are kept."""
