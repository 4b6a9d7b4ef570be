"""Matrix products over weights in any format, and what reads such weights."""
