"""The GGUF file's weights, dequantized once, as Hugging Face's libraries take them: a model, or a folder."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint


def model_of(path: str) -> transformers.LlamaForCausalLM:
    """In f32, on the CPU."""
    transformers.utils.logging.disable_progress_bar()
    settings = load_gguf_checkpoint(path)["config"]
    config = transformers.LlamaConfig(**{k: v for k, v in settings.items() if k != "model_type"})
    model = transformers.LlamaForCausalLM(config)
    loaded = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)
    state = {name: torch.as_tensor(values) for name, values in loaded["tensors"].items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if set(missing) - {"lm_head.weight"} or unexpected:
        raise SystemExit(f"transformers did not take the weights: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model.eval()


def folder_of(path: str) -> Path:
    """config.json, safetensors in f32 and the tokenizer, made once for a file's content, among this machine's temporary
    files."""
    source = Path(path)
    with source.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    target = Path(tempfile.gettempdir()) / f"{source.stem}-{content}.dequantized-{transformers.__version__}"
    if not target.exists():
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        model_of(path).save_pretrained(partial)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        tokenizer.save_pretrained(partial)
        partial.rename(target)
    return target
