"""What is proven of this backend where there is no NPU: every call of torch_npu that a run made, held against the
wheel's own schema, shape functions and C++ checks; and calls that are wrong on purpose."""
