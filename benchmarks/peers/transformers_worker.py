"""Hugging Face transformers on torch, with the GGUF file's weights dequantized once at load. In f32 it is the reference
for tokens."""

from __future__ import annotations

import time

import torch
import transformers
from huggingface import model_of
from protocol import arguments, serve


def main() -> None:
    args = arguments(__doc__ or "", dtype={"default": "float32"})
    torch.set_num_threads(args.threads)
    model = model_of(args.model).to(getattr(torch, args.dtype))

    @torch.inference_mode()
    def run(prompts: list[list[int]], decode: int) -> tuple[float, float, list[list[int]]]:
        start = time.perf_counter()
        out = model(torch.tensor(prompts), use_cache=True, logits_to_keep=1)
        chosen = [out.logits[:, -1].argmax(-1, keepdim=True)]
        between = time.perf_counter()
        for _ in range(decode):
            out = model(chosen[-1], past_key_values=out.past_key_values, use_cache=True)
            chosen.append(out.logits[:, -1].argmax(-1, keepdim=True))
        return between - start, time.perf_counter() - between, torch.cat(chosen, 1).tolist()

    versions = [f"transformers {transformers.__version__}", f"torch {torch.__version__}"]
    serve(f"transformers {args.dtype}", versions, run)


main()
