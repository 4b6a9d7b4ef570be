"""The four operators over a KV cache, and what its codes stand for."""
