"""The tokenizer that a GGUF file describes in its metadata.

Two models are built: "gpt2", byte-level BPE with the file's own merges, and "llama", SentencePiece's BPE, whose merges
follow from the pieces' scores. Keys and defaults as in the GGUF specification and llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, models, normalizers
from tokenizers.processors import TemplateProcessing

from opsocket_engine.gguf.pretokenizer import pretokenizer_rules
from opsocket_engine.keys import Keys
from opsocket_engine.vocabulary import Vocabulary

MAX_PIECE = 4096
"""Characters. Merges are looked for at every cut of a piece, and the longest known pieces are runs of 128 spaces."""

_PREFIX = "tokenizer.ggml."


class TokenType(IntEnum):
    """tokenizer.ggml.token_type, as SentencePiece numbers them."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def vocabulary_from_gguf(path: Path, metadata: Mapping[str, Any]) -> Vocabulary:
    """Build the vocabulary. FormatError names the key that is missing, unsupported or inconsistent."""
    keys = Keys(path, metadata)
    pieces = _pieces(keys)
    types = _types(keys, len(pieces))
    model = keys.text(_PREFIX + "model")
    if model == "gpt2":
        return _byte_level(keys, pieces, types)
    if model == "llama":
        return _sentencepiece(keys, pieces, types)
    raise keys.wrong(_PREFIX + "model", f"wanted gpt2 or llama, got {model!r}")


def _byte_level(keys: Keys, pieces: list[str], types: list[int]) -> Vocabulary:
    rules = pretokenizer_rules(keys)
    ids = {piece: id for id, piece in enumerate(pieces)}
    merges = _merges(keys, ids)
    encoder = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=rules.ignore_merges))
    encoder.pre_tokenizer = rules.split
    if rules.normalizer is not None:
        encoder.normalizer = rules.normalizer
    bos_id, eos_id = (_special_id(keys, name, len(pieces), None) for name in ("bos", "eos"))
    _surround(keys, encoder, bos_id, eos_id, add_bos=rules.add_bos)
    added, special = _add_tokens(encoder, pieces, types)
    return Vocabulary(tuple(pieces), encoder, "byte_level", added, special, "never", bos_id, eos_id)


def _sentencepiece(keys: Keys, pieces: list[str], types: list[int]) -> Vocabulary:
    ids = {piece: id for id, piece in enumerate(pieces)}
    scores = _list(keys, "scores", (int, float), len(pieces))
    if not all(math.isfinite(score) for score in scores):
        raise keys.wrong(_PREFIX + "scores", "wanted finite numbers")
    unknown = pieces[keys.integer(_PREFIX + "unknown_token_id", 0, len(pieces) - 1, 0)]
    merges = merges_from_scores(pieces, types, scores)
    encoder = tokenizers.Tokenizer(
        models.BPE(vocab=ids, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = keys.flag(_PREFIX + "add_space_prefix", True)
    spaces = normalizers.Replace(" ", "\u2581")
    encoder.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces]) if prefix else spaces
    bos_id, eos_id = (_special_id(keys, name, len(pieces), id) for name, id in (("bos", 1), ("eos", 2)))
    _surround(keys, encoder, bos_id, eos_id, add_bos=True)
    added, special = _add_tokens(encoder, pieces, types)
    return Vocabulary(
        tuple(pieces), encoder, "sentencepiece", added, special, "always" if prefix else "never", bos_id, eos_id
    )


def merges_from_scores(pieces: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges of SentencePiece's BPE, best first: any two pieces that make a third, by the third's score.

    Ties go to the lower id, and of one piece's several pairs to the longest left part. SentencePiece gives ties to the
    leftmost pair in the text, which no order of merges can say; it makes a difference only for a piece that overlaps
    itself ("abab" in "ababab") and can be put together in more than one way. Tokens that are matched whole, or never
    made from text, take part in no merge.
    """
    usable = {
        piece: id
        for id, (piece, type) in enumerate(zip(pieces, types, strict=True))
        if type in (TokenType.NORMAL, TokenType.UNUSED)
    }
    ranked = [
        (-scores[id], id, -cut, piece[:cut], piece[cut:])
        for piece, id in usable.items()
        for cut in range(1, len(piece))
        if piece[:cut] in usable and piece[cut:] in usable
    ]
    return [(left, right) for *_, left, right in sorted(ranked)]


def _pieces(keys: Keys) -> list[str]:
    pieces = _list(keys, "tokens", (str,))
    if not pieces:
        raise keys.wrong(_PREFIX + "tokens", "wanted at least one token, got none")
    first: dict[str, int] = {}
    for id, piece in enumerate(pieces):
        if len(piece) > MAX_PIECE:
            problem = f"token {id}: wanted at most {MAX_PIECE} characters, got {len(piece)}"
            raise keys.wrong(_PREFIX + "tokens", problem)
        if first.setdefault(piece, id) != id:
            raise keys.wrong(_PREFIX + "tokens", f"token {id} repeats token {first[piece]}, {piece[:80]!r}")
    return pieces


def _types(keys: Keys, count: int) -> list[int]:
    if keys.get(_PREFIX + "token_type") is None:
        return [TokenType.NORMAL] * count
    types = _list(keys, "token_type", (int,), count)
    known = {int(type) for type in TokenType}
    for id, type in enumerate(types):
        if type not in known:
            raise keys.wrong(_PREFIX + "token_type", f"token {id}: wanted one of {sorted(known)}, got {type}")
    return types


def _merges(keys: Keys, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    merges = []
    for number, merge in enumerate(_list(keys, "merges", (str,))):
        # A piece may begin with a space, but has none further on.
        cut = merge.find(" ", 1)
        left, right = merge[:cut], merge[cut + 1 :]
        for piece in (left, right, left + right):
            if cut < 0 or piece not in ids:
                problem = f"merge {number}, {merge[:80]!r}: wanted two tokens that make a third, got {piece[:80]!r}"
                raise keys.wrong(_PREFIX + "merges", problem)
        merges.append((left, right))
    return merges


def _list(keys: Keys, name: str, types: tuple[type, ...], count: int | None = None) -> list[Any]:
    values = keys.items(_PREFIX + name, types)
    if count is not None and len(values) != count:
        raise keys.wrong(_PREFIX + name, f"wanted {count}, one for each token, got {len(values)}")
    return values


def _special_id(keys: Keys, name: str, count: int, default: int | None) -> int | None:
    id = keys.integer(f"{_PREFIX}{name}_token_id", 0, count - 1, None)
    return default if id is None and default is not None and default < count else id


def _surround(
    keys: Keys, encoder: tokenizers.Tokenizer, bos_id: int | None, eos_id: int | None, *, add_bos: bool
) -> None:
    template: list[str] = ["$A"]
    special: list[tuple[str, int]] = []
    if keys.flag(_PREFIX + "add_bos_token", add_bos and bos_id is not None):
        if bos_id is None:
            raise keys.wrong(_PREFIX + "add_bos_token", "true, in a file without bos_token_id")
        template, special = ["bos", *template], [("bos", bos_id), *special]
    if keys.flag(_PREFIX + "add_eos_token", False):
        if eos_id is None:
            raise keys.wrong(_PREFIX + "add_eos_token", "true, in a file without eos_token_id")
        template, special = [*template, "eos"], [*special, ("eos", eos_id)]
    encoder.post_processor = TemplateProcessing(single=template, pair=None, special_tokens=special)


def _add_tokens(
    encoder: tokenizers.Tokenizer, pieces: list[str], types: list[int]
) -> tuple[frozenset[int], frozenset[int]]:
    def ids(*wanted: TokenType) -> list[int]:
        return [id for id, type in enumerate(types) if type in wanted and pieces[id]]

    special, literal = ids(TokenType.CONTROL, TokenType.UNKNOWN), ids(TokenType.USER_DEFINED)
    encoder.add_special_tokens([AddedToken(pieces[id], normalized=False, special=True) for id in special])
    encoder.add_tokens([AddedToken(pieces[id], normalized=False, special=False) for id in literal])
    return frozenset(special + literal), frozenset(special)
