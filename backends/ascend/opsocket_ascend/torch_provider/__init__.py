"""Provider `torch`: general operators of torch on the NPU, in f32, for what is not asked of the vendor's fused ones."""
