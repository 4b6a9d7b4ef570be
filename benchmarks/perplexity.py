"""What rounding costs in accuracy: the perplexity of SmolLM2 on a public text, by activations, cache and weights.

    .venv/bin/python benchmarks/perplexity.py [--tokens 8192] [--threads 2] [--settings 'none/f32/f32;...'] [--json F]

Every window of the text starts with an empty cache and is computed in chunks, so that keys and values come back from
the cache in its own format. The model's own file, Q4_1 with a Q8_0 head, is computed by transformers in f32 with
dequantized weights (the reference), and through the operator interface by the CPU backend. Differences are paired,
token by token: their standard error is far below that of the perplexity itself. What has been computed is kept under
`--kept`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import opsocket
from opsocket.cache import BlockManager
from opsocket.operators import ContractError, Request
from opsocket.quantization import QuantFormat, WeightTensor, dequantize, get_format, quantize, with_activation
from opsocket_engine.batch import assemble
from opsocket_engine.checkpoint import Checkpoint, open_checkpoint
from opsocket_engine.config import ModelConfig
from opsocket_engine.locate import GGUFModel, locate
from opsocket_engine.model import Decoder
from opsocket_engine.options import ACTIVATIONS, EngineOptions
from opsocket_engine.requests import DecoderRequests, decoder_requests
from opsocket_engine.sampling import SamplingParams
from opsocket_engine.scheduler import Chunk, Step
from opsocket_engine.sequence import Sequence
from opsocket_engine.tokenizer import load_tokenizer

TEXT = Path("/usr/share/doc/dpkg/spec/triggers.txt")
"""A specification in prose, which comes with dpkg-dev. (Licenses are of no use: models know them by heart.)"""

REFERENCE = "transformers f32"
KV_FORMATS = ("f32", "bf16", "f8e4m3fn", "i8", "i4")
MIXED = "i8_token, qkv+gate_up+lm_head i8_g32"
"""Scales for each 32 columns only where the outliers are: in what comes of a norm."""
SETTINGS = (
    *(f"{a}/{dtype}/{dtype}" for dtype in ("f32", "bf16") for a in (*ACTIVATIONS, MIXED)),
    *(f"none/f32/{kv}" for kv in KV_FORMATS[1:]),
    *(f"{a}/bf16/{kv}" for a in ("none", "i8_g32") for kv in KV_FORMATS[2:]),
)
"""ACTIVATIONS/DTYPE/KV FORMAT: activations by dtype, then cache formats on top of two of them."""
WEIGHT_FORMATS = (
    "f16", "bf16", "i8_channel", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0",
    "i4_g32", "i4_g32_z", "i4_g64", "i4_g64_z", "i2_g32_z",
    "q6_K", "q5_K", "q4_K", "q3_K", "q2_K", "iq4_nl", "iq4_xs",
    "f8e4m3fn_channel", "f8e4m3fn_tensor", "f8e4m3fn_128x128", "mxfp4",
)  # fmt: skip
"""With --weights: of the matrices of the layers, in f32 and with a cache in f32. Others are the same numbers in another
order (AWQ and GPTQ are i4_gN_z)."""


@dataclass(frozen=True)
class Row:
    """One setting. change: in nats per token against the reference, and its standard error. same: share of tokens whose
    most probable continuation is that of the reference."""

    setting: str
    perplexity: float
    change: float
    change_error: float
    same: float
    provider: str


@dataclass(frozen=True)
class Requantized:
    """A checkpoint whose layers' matrices are rounded to the nearest numbers of another format, where
    it has their shape."""

    checkpoint: Checkpoint
    format: QuantFormat

    @property
    def config(self) -> ModelConfig:
        return self.checkpoint.config

    def has(self, name: str) -> bool:
        return self.checkpoint.has(name)

    def vector(self, name: str) -> np.ndarray:
        return self.checkpoint.vector(name)

    def weight(self, name: str) -> WeightTensor:
        weight = self.checkpoint.weight(name)
        if not name.startswith("layers."):
            return weight
        try:
            self.format.tensor_specs(weight.n, weight.k)
        except ContractError:
            return weight
        values = dequantize(weight.format, weight.tensors, weight.n, weight.k)
        return WeightTensor(self.format, weight.n, weight.k, quantize(self.format, values))


def windows(tokens: list[int], count: int, width: int) -> list[list[int]]:
    return [tokens[start : start + width] for start in range(0, min(count, len(tokens)) - width + 1, width)]


def score(logits: torch.Tensor, following: list[int]) -> np.ndarray:
    """f64[T, 2]: -log p of the token that follows, and the most probable one."""
    losses = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(following), reduction="none")
    return np.stack([losses.numpy(), logits.argmax(-1).double().numpy()], axis=1)


def by_transformers(path: Path, texts: list[list[int]]) -> np.ndarray:
    sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))
    from huggingface import model_of

    model = model_of(str(path))
    with torch.inference_mode():
        return np.concatenate([score(model(torch.tensor([text])).logits[0, :-1], text[1:]) for text in texts])


def by_operators(
    checkpoint: Any, texts: list[list[int]], setting: str, threads: int, chunk: int
) -> tuple[np.ndarray, str]:
    """Scores, and which providers served the products of the layers."""
    activations, dtype, kv_format, *weights = setting.split("/")
    if weights:
        checkpoint = Requantized(checkpoint, get_format(weights[0]))
    activations, _, exception = activations.partition(", ")
    width = len(texts[0])
    options = EngineOptions(
        dtype=dtype, activations=activations, kv_format=kv_format, num_blocks=-(-width // 16), max_batch=chunk,
        max_step_tokens=chunk, prefix_sharing=False,
    )  # fmt: skip
    with opsocket.open("cpu", threads=threads) as session:
        requests = decoder_requests(
            checkpoint.config, lambda name: checkpoint.weight(name).format.id, options, options.num_blocks
        )
        if exception:
            names, _, other = exception.partition(" ")
            requests = _with(requests, names.split("+"), other)
        decoder = Decoder(session, checkpoint, requests)
        providers = {decoder.plans[r].provider for r in decoder.plans if r.op in ("matmul", "attention")}
        scores = [part for text in texts for part in _in_chunks(session, decoder, options, text, chunk)]
    return np.concatenate(scores), "+".join(sorted(providers))


def _with(requests: DecoderRequests, names: list[str], activations: str) -> DecoderRequests:
    """The same decoder, some of whose products have other activations: of qkv, o_proj, gate_up, down_proj, lm_head."""

    def other(request: Request) -> Request:
        spec: Any = request.spec
        return replace(request, spec=replace(spec, weight_format=with_activation(spec.weight_format, activations)))

    def changed(part: Any) -> Any:
        """A layer, or its MLP, with those of the names that it has."""
        new: dict[str, Any] = {}
        for name in {field.name for field in fields(part)} & set(names):
            old = getattr(part, name)
            several = isinstance(old, tuple)
            new[name] = tuple(replace(p, request=other(p.request)) for p in old) if several else other(old)
        return replace(part, **new)

    layers = tuple(replace(changed(layer), feed_forward=changed(layer.feed_forward)) for layer in requests.layers)
    lm_head = other(requests.lm_head) if "lm_head" in names else requests.lm_head
    return replace(requests, layers=layers, lm_head=lm_head)


def _in_chunks(
    session: Any, decoder: Decoder, options: EngineOptions, text: list[int], chunk: int
) -> Iterator[np.ndarray]:
    assert options.num_blocks is not None
    blocks = BlockManager(options.num_blocks, options.block_size)
    sequence = Sequence(0, SamplingParams(), 0, text, len(text))
    blocks.admit(sequence.key, text)
    blocks.grow(sequence.key, len(text))
    for start in range(0, len(text), chunk):
        stop = min(start + chunk, len(text))
        step = Step()
        step.chunks.append(Chunk(sequence, start, stop))
        rows = np.arange(stop - start if stop < len(text) else stop - start - 1)
        logits = session.download(decoder.forward(replace(assemble(step, blocks), rows=rows, is_decode=False)))
        yield score(torch.from_numpy(logits), text[start + 1 : start + 1 + len(rows)])


def row(setting: str, scores: np.ndarray, reference: np.ndarray, provider: str) -> Row:
    losses, change = scores[:, 0], scores[:, 0] - reference[:, 0]
    error = change.std() / np.sqrt(len(change))
    same = (scores[:, 1] == reference[:, 1]).mean()
    return Row(setting, float(np.exp(losses.mean())), float(change.mean()), float(error), float(same), provider)


def table(rows: list[Row], facts: dict[str, Any]) -> str:
    lines = [
        f"{facts['model']}; {facts['scored']} tokens of {facts['text']} ({facts['package']}), windows of "
        f"{facts['window']} in chunks of {facts['chunk']}",
        "",
        "| activations | dtype | KV cache | weights | perplexity | against the reference, nats per token | same pick |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
    ]
    for r in rows:
        activations, dtype, kv_format, weights = [*r.setting.split("/"), "", "", ""][:4]
        names = [activations, dtype, kv_format, weights or "the file's"]
        change = f"{r.change:+.5f} +- {r.change_error:.5f}" if r.setting != REFERENCE else ""
        lines.append(f"| {' | '.join(names)} | {r.perplexity:.4f} | {change} | {100 * r.same:.1f} % |")
    return "\n".join(lines)


def package_of(path: Path) -> str:
    """The Debian package that a file belongs to, and its version; "" where there is no dpkg."""
    try:
        owner = subprocess.run(["dpkg", "-S", path], capture_output=True, text=True, check=True).stdout.split(":")[0]
        shown = ["dpkg-query", "-W", "-f", "${Package} ${Version}", owner]
        return subprocess.run(shown, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--chunk", type=int, default=256, help="tokens in one step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--settings", help=f"ACTIVATIONS/DTYPE/KV[/WEIGHTS], separated by semicolons; default: {', '.join(SETTINGS)}"
    )
    parser.add_argument(
        "--weights", action="store_true", help=f"instead: the layers' matrices in {', '.join(WEIGHT_FORMATS)}"
    )
    parser.add_argument("--kept", type=Path, default=Path("reports/perplexity"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    files = locate("smollm2")
    assert isinstance(files, GGUFModel)
    content = args.text.read_bytes()
    texts = windows(load_tokenizer(files).encode(content.decode()), args.tokens, args.window)
    facts = {
        "model": files.path.name, "text": str(args.text), "package": package_of(args.text),
        "sha256": hashlib.sha256(content).hexdigest(), "window": args.window, "chunk": args.chunk,
        "scored": len(texts) * (args.window - 1),
    }  # fmt: skip
    key = hashlib.sha256(json.dumps([facts, opsocket.__version__]).encode()).hexdigest()[:12]
    args.kept.mkdir(parents=True, exist_ok=True)
    checkpoint = open_checkpoint(files)
    rows: list[Row] = []
    reference = np.empty(0)
    settings = [f"none/f32/f32/{name}" for name in WEIGHT_FORMATS] if args.weights else SETTINGS
    for setting in (REFERENCE, *(args.settings.split(";") if args.settings else settings)):
        kept = args.kept / f"{key}-{re.sub(r'[ ,/]+', '-', setting)}.npz"
        if kept.exists():
            scores, provider = (saved := np.load(kept))["scores"], str(saved["provider"])
        else:
            if setting == REFERENCE:
                scores, provider = by_transformers(files.path, texts), "transformers"
            else:
                scores, provider = by_operators(checkpoint, texts, setting, args.threads, args.chunk)
            np.savez(kept, scores=scores, provider=provider)
        reference = scores if setting == REFERENCE else reference
        rows.append(row(setting, scores, reference, provider))
        print(f"{setting}: {rows[-1].perplexity:.4f} ({provider})", flush=True)
    print(f"\n{table(rows, facts)}")
    if args.json:
        args.json.write_text(json.dumps({**facts, "rows": [asdict(r) for r in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
