"""What is proven of a backend's kernels where its chip is absent: the rungs of `opsocket.operators.Ladder`, climbed
with the same cases that a device is asked, and written into the same report."""
