"""Capture: runs recorded once and replayed, with other batches and other contents of the same arrays."""
