"""The backend for AMD GPUs."""
