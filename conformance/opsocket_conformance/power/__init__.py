"""The power of the suite, measured: faults that it has to find, and right backends of other kinds that must pass."""
