"""The KV cache: its four operators, the pinned quantizer, and how a cache under test is filled and read."""
