"""How fast the cases are that passed: context for a verdict, not a benchmark.

Conformance shapes are small, so that what is timed is a call with all its overhead, through the public interface.
"""
