"""Reading a model from one GGUF file. Lines up file by file with `opsocket_engine.huggingface`."""
