"""ONNX Runtime GenAI, int4 in blocks of 32, by its own builder from the GGUF file's dequantized weights: matrices and
output head are quantized once more, symmetrically, and multiplied with int8 activations (accuracy level 4)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai
from huggingface import folder_of
from protocol import arguments, serve


def built(path: str) -> Path:
    """What the builder makes of a model, made once beside this machine's temporary files."""
    target = Path(tempfile.gettempdir()) / f"{Path(path).stem}.onnxruntime-genai-{genai.__version__}"
    if not target.exists():
        partial, cache = target.with_suffix(".partial"), target.with_suffix(".cache")
        shutil.rmtree(partial, ignore_errors=True)
        build = [
            sys.executable,
            "-m",
            "onnxruntime_genai.models.builder",
            "-i",
            str(folder_of(path)),
            "-o",
            str(partial),
        ]
        options = ["--extra_options", "int4_accuracy_level=4", "int4_block_size=32"]
        subprocess.run([*build, "-p", "int4", "-e", "cpu", "-c", str(cache), *options], check=True, stdout=sys.stderr)
        shutil.rmtree(cache, ignore_errors=True)
        partial.rename(target)
    return target


def main() -> None:
    args = arguments(__doc__ or "")
    folder = built(args.model)
    config = genai.Config(str(folder))
    vocab = json.loads((folder / "genai_config.json").read_text())["model"]["vocab_size"]
    # Only a token that no text has ends a sequence here: in the other systems none does.
    overlay = {"eos_token_id": [vocab - 1], "decoder": {"session_options": {"intra_op_num_threads": args.threads}}}
    config.overlay(json.dumps({"model": overlay}))
    model = genai.Model(config)

    def run(prompts: list[list[int]], decode: int) -> tuple[float, float, list[list[int]]]:
        length = len(prompts[0])
        params = genai.GeneratorParams(model)
        params.set_search_options(batch_size=len(prompts), max_length=length + decode + 1, do_sample=False)
        generator = genai.Generator(model, params)
        start = time.perf_counter()
        generator.append_tokens(np.array(prompts, np.int32))
        generator.generate_next_token()
        between = time.perf_counter()
        for _ in range(decode):
            generator.generate_next_token()
        seconds = time.perf_counter() - between
        return between - start, seconds, [generator.get_sequence(i)[length:].tolist() for i in range(len(prompts))]

    serve("ONNX Runtime GenAI, int4 block 32", [f"onnxruntime-genai {genai.__version__}"], run)


main()
