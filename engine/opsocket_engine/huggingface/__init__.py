"""Reading a model from a Hugging Face folder. Lines up file by file with `opsocket_engine.gguf`."""
