"""What a tokenizer file holds, once read: the piece of each id, how pieces spell bytes, and the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tokenizers

PrefixSpace = Literal["never", "first", "always"]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """pieces: by id; None for an id that the file leaves out. encoder: text to ids.

    spelling: `byte_level`, each character of a piece stands for a byte (GPT-2), or `sentencepiece`, a piece is text
    with U+2581 for a space and <0xAB> for a byte. added: ids whose piece is literal text, matched whole before anything
    else; special: those of them that steer a model and are no text. prefix_space: where the encoder puts a space that
    the text doesn't have and decoding takes away again: before the first segment, or before every segment between
    added tokens. ends: what the tokenizer's own settings name as the end of a sequence.
    """

    pieces: tuple[str | None, ...]
    encoder: tokenizers.Tokenizer
    spelling: Literal["byte_level", "sentencepiece"]
    added: frozenset[int]
    special: frozenset[int]
    prefix_space: PrefixSpace
    bos_id: int | None
    eos_id: int | None
