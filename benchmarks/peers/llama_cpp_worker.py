"""llama.cpp by llama-cpp-python's low-level binding: the GGUF file as it is, or requantized to Q4_0, whose kernels it
has in repacked form."""

from __future__ import annotations

import ctypes
import tempfile
import time
from pathlib import Path

import llama_cpp as llama
import numpy as np
from protocol import arguments, serve
from requantize import requantize


def requantized(path: str) -> str:
    """The same model with Q4_0 matrices, made once beside this machine's temporary files."""
    target = Path(tempfile.gettempdir()) / f"{Path(path).stem}.requantized.q4_0.gguf"
    if not target.exists():
        requantize(path, "Q4_0", target)
    return str(target)


def main() -> None:
    args = arguments(__doc__ or "", q4_0={"action": "store_true"}, kv={"default": "f16"})
    llama.llama_backend_init()
    silent = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(silent, ctypes.c_void_p(0))
    path = requantized(args.model) if args.q4_0 else args.model
    model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
    params = llama.llama_context_default_params()
    params.n_ctx = args.context
    params.n_batch = params.n_ubatch = 512
    params.n_seq_max = args.batch
    params.kv_unified = True  # or each sequence has an eighth of the context, and no more
    params.n_threads = params.n_threads_batch = args.threads
    if hasattr(params, "flash_attn_type"):
        params.flash_attn_type = 1
    else:
        params.flash_attn = True
    kinds = {"f16": llama.GGML_TYPE_F16, "q8_0": llama.GGML_TYPE_Q8_0, "q4_0": llama.GGML_TYPE_Q4_0}
    params.type_k = params.type_v = kinds[args.kv]
    context = llama.llama_init_from_model(model, params)
    vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    batch = llama.llama_batch_init(512, 0, args.batch)

    def step(tokens: list[tuple[int, int, int, bool]]) -> list[int]:
        """Decode (token, position, sequence, wanted); the greedy token after each wanted one."""
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        if llama.llama_decode(context, batch):
            raise SystemExit("llama_decode failed")
        chosen = []
        for i, (*_, wanted) in enumerate(tokens):
            if wanted:
                logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, i), (vocab,))
                chosen.append(int(logits.argmax()))
        return chosen

    def run(prompts: list[list[int]], decode: int) -> tuple[float, float, list[list[int]]]:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        items = [(t, p, s, p == len(prompt) - 1) for s, prompt in enumerate(prompts) for p, t in enumerate(prompt)]
        start, tokens = time.perf_counter(), [[] for _ in prompts]
        for at in range(0, len(items), 512):
            part = items[at : at + 512]
            for (*_, sequence, _), token in zip([i for i in part if i[3]], step(part), strict=True):
                tokens[sequence].append(token)
        between = time.perf_counter()
        for n in range(decode):
            chosen = step([(tokens[s][-1], len(prompt) + n, s, True) for s, prompt in enumerate(prompts)])
            for s, token in enumerate(chosen):
                tokens[s].append(token)
        return between - start, time.perf_counter() - between, tokens

    kind = "Q4_0" if args.q4_0 else "as it is"
    serve(f"llama.cpp, {kind}, {args.kv} cache", [f"llama-cpp-python {llama.__version__}"], run)


main()
