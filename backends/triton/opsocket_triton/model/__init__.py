"""The rest of a decoder."""
