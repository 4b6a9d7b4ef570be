"""Negative tests: every precondition of every operator, broken once."""
