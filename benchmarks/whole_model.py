"""Whole-model speed beside a named peer: the same GGUF file, the same prompts, the same machine, in turn (A B A B ...).

    .venv/bin/python benchmarks/whole_model.py [--threads 2] [--repeats 5] [--json FILE]

Peer: Hugging Face transformers on torch, with the file's weights dequantized to f32 or bf16 once at load, as that
library does it. Its decode step therefore reads 4 or 2 bytes for each weight where ours reads the 4 to 8 bits of the
file. Both are greedy; whether our tokens equal the f32 peer's is printed. Before each run a buffer beyond any cache
is read raw: the limit of whatever streams its weights from memory.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

import opsocket
from opsocket_engine.engine import Engine
from opsocket_engine.locate import locate
from opsocket_engine.measure import HostReader, Spread
from opsocket_engine.options import EngineOptions
from opsocket_engine.sampling import SamplingParams


def peer(path: Path, dtype: torch.dtype) -> Any:
    """LlamaForCausalLM with the file's dequantized weights."""
    transformers.utils.logging.disable_progress_bar()
    settings = load_gguf_checkpoint(str(path))["config"]
    config = transformers.LlamaConfig(**{k: v for k, v in settings.items() if k != "model_type"})
    model = transformers.LlamaForCausalLM(config)
    loaded = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
    state = {name: torch.as_tensor(values) for name, values in loaded["tensors"].items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if set(missing) - {"lm_head.weight"} or unexpected:
        raise SystemExit(f"the peer did not take the weights: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model.to(dtype).eval()


def run_peer(model: Any, prompts: list[list[int]], decode: int) -> tuple[float, float, list[list[int]]]:
    """Prompt tokens/s, decode tokens/s, and the tokens chosen."""
    with torch.inference_mode():
        start = time.perf_counter()
        out = model(torch.tensor(prompts), use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        between, chosen = time.perf_counter(), [token]
        for _ in range(decode):
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            chosen.append(token)
        end = time.perf_counter()
    size = len(prompts)
    ids = torch.cat(chosen, 1).tolist()
    return size * len(prompts[0]) / (between - start), size * decode / (end - between), ids


def run_ours(engine: Engine, prompts: list[list[int]], decode: int) -> tuple[float, float, list[list[int]]]:
    """The same of this project's engine; a step is prompt until every prompt is computed."""
    params = SamplingParams(ignore_eos=True, max_tokens=decode + 1)
    numbers = [engine.add_request(prompt, params) for prompt in prompts]
    chosen: dict[int, list[int]] = {number: [] for number in numbers}
    start = time.perf_counter()
    _step(engine, chosen)
    between = time.perf_counter()
    if not all(chosen.values()):
        raise SystemExit("the prompts did not fit one step: prompt and decode times would mix")
    while engine.has_work:
        _step(engine, chosen)
    end = time.perf_counter()
    size = len(prompts)
    return size * len(prompts[0]) / (between - start), size * decode / (end - between), list(chosen.values())


def _step(engine: Engine, chosen: dict[int, list[int]]) -> None:
    for output in engine.step():
        chosen[output.request].append(output.token_id)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--decode", type=int, default=16, help="decode steps")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    files = locate("smollm2")
    session = opsocket.open("cpu", threads=args.threads)
    options = EngineOptions(
        max_batch=8, max_step_tokens=2048, max_context=args.prompt + args.decode + 2, prefix_sharing=False
    )
    engine = Engine.load(session, "smollm2", options)
    peers = {"transformers f32": peer(files.path, torch.float32), "transformers bf16": peer(files.path, torch.bfloat16)}
    torch.set_num_threads(args.threads)
    reader, rng = HostReader(args.threads), np.random.default_rng(0)
    systems: dict[str, Callable[[list[list[int]]], tuple[float, float, list[list[int]]]]] = {
        "opsocket cpu/torch f32": lambda p: run_ours(engine, p, args.decode)
    }
    for name, model in peers.items():
        systems[name] = lambda p, model=model: run_peer(model, p, args.decode)

    rows, equal = [], True
    for batch in (int(b) for b in args.batches.split(",")):
        rates: dict[str, list[tuple[float, float, float]]] = {name: [] for name in systems}
        for repeat in range(args.repeats + 1):
            prompts = rng.integers(0, 49000, (batch, args.prompt)).tolist()
            tokens = {}
            for name, run in systems.items():
                read = reader.bytes_per_second()
                prompt_rate, decode_rate, tokens[name] = run(prompts)
                if repeat:
                    rates[name].append((prompt_rate, decode_rate, read))
            equal &= tokens["opsocket cpu/torch f32"] == tokens["transformers f32"]
        for name, values in rates.items():
            prompt, decode, read = (Spread.of(column) for column in zip(*values, strict=True))
            rows.append({"batch": batch, "system": name, "prompt": prompt, "decode": decode, "read": read})

    print(
        f"{platform.machine()}, {session.device.name}, {args.threads} threads; SmolLM2-135M-Instruct Q4_1 GGUF; "
        f"prompt {args.prompt}, decode {args.decode}, medians of {args.repeats} (least-most); "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
    print(f"tokens equal to the f32 peer's in every run: {'yes' if equal else 'NO'}\n")
    print("| batch | system | prompt tokens/s | decode tokens/s | decode, ours / this | raw read GB/s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        ours = next(r for r in rows if r["batch"] == row["batch"])["decode"].median
        print(
            f"| {row['batch']} | {row['system']} | {_spread(row['prompt'])} | {_spread(row['decode'])} "
            f"| {ours / row['decode'].median:.2f} | {_spread(row['read'], 1e-9)} |"
        )
    if args.json:
        plain = [{k: (vars(v) if isinstance(v, Spread) else v) for k, v in row.items()} for row in rows]
        args.json.write_text(json.dumps({"threads": args.threads, "tokens_equal": equal, "rows": plain}, indent=1))


def _spread(spread: Spread, scale: float = 1.0) -> str:
    return f"{spread.median * scale:.1f} ({spread.low * scale:.1f}-{spread.high * scale:.1f})"


if __name__ == "__main__":
    main()
