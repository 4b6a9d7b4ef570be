"""A torch device, "simulated", for kernels that run without their chip: its memory is out of the host's reach.

Whoever runs a chip's kernels by other means (an interpreter, a vendor's host code over code of ours) keeps its tensors
there, and a host that touches device memory, mixes devices, or waits without a word is found out as on the chip.
Nothing here knows which chip it stands for, or what runs on it. Importing this module imports no framework.
"""
