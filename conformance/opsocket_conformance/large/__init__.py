"""The large tier: offsets beyond 2^31 elements, one case at a time, in at most 6 GiB.

An offset kept in 32 bits wraps around: what it names lies elsewhere in the array, or outside, where it takes the
process with it. So every case has other contents at the array's beginning and around the middle, where such an offset,
in elements or in bytes, would land.
"""
