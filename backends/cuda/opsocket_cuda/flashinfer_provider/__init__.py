"""FlashInfer's kernels as a provider, where it is installed."""
