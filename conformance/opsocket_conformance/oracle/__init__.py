"""What the operators' results are: float64, from the original inputs, written from the interface's pinned semantics.

Shares no function with any backend, nor with core beyond the specs and batches, which are data.
"""
