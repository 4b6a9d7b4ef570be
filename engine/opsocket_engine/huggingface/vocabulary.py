"""The tokenizer of a Hugging Face folder: tokenizer.json, with bos and eos from tokenizer_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tokenizers

from opsocket.operators.errors import FormatError
from opsocket_engine.keys import read_json
from opsocket_engine.locate import HuggingFaceFolder
from opsocket_engine.vocabulary import PrefixSpace, Vocabulary

MAX_TOKENIZER_BYTES = 1 << 28
"""Of tokenizer.json; the largest known have 35 MB."""


def vocabulary_from_huggingface(files: HuggingFaceFolder) -> Vocabulary:
    """Build the vocabulary. FormatError names the file and the part of it that is missing, unsupported or inconsistent.

    Decoders of byte-level BPE and of SentencePiece's BPE are known, which is what the supported models have. The
    regular expressions of a pre-tokenizer come from the file: a hostile one can make encoding slow.
    """
    path = files.path / "tokenizer.json"
    described = read_json(path, MAX_TOKENIZER_BYTES)
    encoder = _encoder(path)
    spelling, prefix_space = _spelling(files, described)
    ids = encoder.get_vocab(with_added_tokens=True)
    if not ids:
        raise FormatError(path, "model.vocab", "wanted at least one token, got none")
    pieces: list[str | None] = [None] * _count(files, ids)
    for piece, id in ids.items():
        pieces[id] = piece
    added = encoder.get_added_tokens_decoder()
    for id, token in added.items():
        pieces[id] = token.content
    config = files.json("tokenizer_config.json")
    return Vocabulary(
        tuple(pieces),
        encoder,
        spelling,
        frozenset(added),
        frozenset(id for id, token in added.items() if token.special),
        prefix_space,
        _token_id(files, config, "bos_token", ids),
        _token_id(files, config, "eos_token", ids),
    )


def _encoder(path: Path) -> tokenizers.Tokenizer:
    try:
        encoder = tokenizers.Tokenizer.from_file(str(path))
        encoder.no_truncation()
        encoder.no_padding()
        # Some faults show only at work, such as a post-processor with a token that it doesn't define.
        encoder.encode("a")
    except BaseException as error:
        # The package raises bare Exception for a fault in the file, and its Rust panics are not even that.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise FormatError(path, "tokenizer", str(error)) from None
        raise
    return encoder


def _count(files: HuggingFaceFolder, ids: Mapping[str, int]) -> int:
    count = max(ids.values()) + 1
    if count > 2 * len(ids) + 4096:
        problem = f"wanted ids without large gaps, got {count - 1} among {len(ids)} tokens"
        raise FormatError(files.path / "tokenizer.json", "model.vocab", problem)
    return count


def _spelling(
    files: HuggingFaceFolder, described: Mapping[str, Any]
) -> tuple[Literal["byte_level", "sentencepiece"], PrefixSpace]:
    steps = _steps(described.get("decoder"), "decoders")
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return "byte_level", "never"
    if kinds == ["Metaspace"]:
        scheme = steps[0].get("prepend_scheme", "always")
        if scheme in ("never", "first", "always"):
            return "sentencepiece", scheme
    if [kind for kind in kinds if kind not in ("Fuse", "Strip")] == ["Replace", "ByteFallback"]:
        before = _steps(described.get("normalizer"), "normalizers")
        before += _steps(described.get("pre_tokenizer"), "pretokenizers")
        if "Strip" not in kinds:
            return "sentencepiece", "never"
        always = any(step.get("type") == "Prepend" or step.get("prepend_scheme") == "always" for step in before)
        return "sentencepiece", "always" if always else "first"
    wanted = "wanted ByteLevel, Metaspace, or Replace and ByteFallback"
    raise FormatError(files.path / "tokenizer.json", "decoder", f"{wanted}, got {kinds}")


def _steps(component: Any, list_name: str) -> list[dict[str, Any]]:
    """The steps of a component that may be one step, a Sequence of steps, or null."""
    if not isinstance(component, dict):
        return []
    if component.get("type") != "Sequence":
        return [component]
    return [step for step in component.get(list_name, []) if isinstance(step, dict)]


def _token_id(files: HuggingFaceFolder, config: Mapping[str, Any], key: str, ids: Mapping[str, int]) -> int | None:
    token = config.get(key)
    if isinstance(token, dict):
        token = token.get("content")
    if token is None:
        return None
    if not isinstance(token, str) or token not in ids:
        problem = f"wanted a token of tokenizer.json, got {token!r}"
        raise FormatError(files.path / "tokenizer_config.json", key, problem)
    return ids[token]
