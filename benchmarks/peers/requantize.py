"""A GGUF model in another of llama.cpp's mixes of formats, by llama-cpp-python.

.peers/llama_cpp/bin/python benchmarks/peers/requantize.py MODEL.gguf Q4_K_M OUT.gguf
"""

from __future__ import annotations

import argparse
import ctypes
import os
from pathlib import Path

import llama_cpp as llama

_PREFIX = "LLAMA_FTYPE_MOSTLY_"


def requantize(model: str | Path, mix: str, target: Path) -> None:
    """Write `model` with its matrices in `mix` (Q4_0, Q4_K_M, Q6_K, ...) to `target`, whole or not at all.

    ValueError for a mix that llama.cpp has not; RuntimeError where it can't make the file.
    """
    kind = getattr(llama, _PREFIX + mix.upper(), None)
    if kind is None:
        known = sorted(name.removeprefix(_PREFIX) for name in dir(llama) if name.startswith(_PREFIX))
        raise ValueError(f"mix: one of {', '.join(known)}, not {mix!r}")
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = kind, True
    partial = target.with_suffix(f".{os.getpid()}.partial")
    try:
        if llama.llama_model_quantize(str(model).encode(), str(partial).encode(), ctypes.byref(params)):
            raise RuntimeError(f"llama.cpp could not write {model} as {mix}")
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("mix", help="Q4_0, Q4_K_M, Q6_K, ...")
    parser.add_argument("target", type=Path, help="the file to write")
    args = parser.parse_args()
    if not args.model.is_file():
        parser.error(f"model: no such file: {args.model}")
    llama.llama_backend_init()
    try:
        requantize(args.model, args.mix, args.target)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
