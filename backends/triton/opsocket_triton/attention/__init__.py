"""Attention over paged and contiguous keys, and the merge of its parts."""
