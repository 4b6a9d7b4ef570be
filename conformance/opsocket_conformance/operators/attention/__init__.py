"""Attention: its knobs, scenes, oracle, tolerance, probes and laws, one file each."""
