"""Text to token ids and back."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable

from opsocket.operators.errors import ContractError
from opsocket_engine.byte_level import spelled_bytes
from opsocket_engine.gguf.vocabulary import vocabulary_from_gguf
from opsocket_engine.huggingface.vocabulary import vocabulary_from_huggingface
from opsocket_engine.locate import GGUFModel, ModelFiles
from opsocket_engine.stream import Detokenizer
from opsocket_engine.vocabulary import Vocabulary

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def load_tokenizer(files: ModelFiles) -> Tokenizer:
    """The tokenizer of a located model. FormatError names the file and the key in it that is wrong."""
    if isinstance(files, GGUFModel):
        return Tokenizer(vocabulary_from_gguf(files.path, files.file.metadata))
    return Tokenizer(vocabulary_from_huggingface(files))


class Tokenizer:
    """Encodes and decodes with one vocabulary; safe to share between threads.

    `special_ids` steer a model and are no text; `added_ids` contains them and every other token that is matched whole.
    `bos_id` and `eos_id` are the tokenizer's own, None where it has none; what ends a generation is in
    `ModelConfig.eos_ids`.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._pieces = vocabulary.pieces
        self._spelling = vocabulary.spelling
        self._encoder = vocabulary.encoder
        self._encoder_lock = threading.Lock()
        self.prefix_space = vocabulary.prefix_space
        self.added_ids = vocabulary.added
        self.special_ids = vocabulary.special
        self.bos_id = vocabulary.bos_id
        self.eos_id = vocabulary.eos_id

    @property
    def vocab_size(self) -> int:
        """One more than the largest id; the model's embedding may have more rows."""
        return len(self._pieces)

    @property
    def bos_token(self) -> str | None:
        """The piece of bos_id, as chat templates want it."""
        return None if self.bos_id is None else self.id_to_piece(self.bos_id)

    @property
    def eos_token(self) -> str | None:
        """The piece of eos_id, as chat templates want it."""
        return None if self.eos_id is None else self.id_to_piece(self.eos_id)

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """The ids of `text`.

        add_special: put the tokens around it that the model expects around a text (often a bos; none for some models).
        parse_special: special tokens written out in the text become those tokens, as a rendered chat needs; off, they
        are text like any other, as a stranger's text needs. A byte for which the vocabulary has no piece is dropped,
        as everywhere in the field. ContractError where `text` is no valid Unicode (a lone surrogate).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ContractError("text", "valid Unicode", f"{error.reason} at {error.start}") from None
        # Whether special tokens are parsed is a setting of the encoder, not an argument of its encode.
        with self._encoder_lock:
            self._encoder.encode_special_tokens = not parse_special
            return self._encoder.encode(text, add_special_tokens=add_special).ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; what is no UTF-8 becomes U+FFFD.

        The inverse of `encode` up to the vocabulary's own normalization and bytes that it lacks: a space that encoding
        put before a word is taken away. An id at or past vocab_size, as an embedding with spare rows has, adds nothing.
        """
        detokenizer = Detokenizer(self, skip_special=skip_special)
        return "".join([detokenizer.push(id) for id in ids]) + detokenizer.finish()

    def token_bytes(self, id: int) -> bytes:
        """The bytes that the token adds to a text; often no whole characters. b"" for an id without a piece."""
        if id < 0:
            raise ContractError("id", "at least 0", id)
        piece = self._pieces[id] if id < len(self._pieces) else None
        if piece is None:
            return b""
        if id in self.added_ids:
            return piece.encode()
        if self._spelling == "byte_level":
            return spelled_bytes(piece)
        if byte := _BYTE_PIECE.fullmatch(piece):
            return bytes([int(byte[1], 16)])
        return piece.replace("\u2581", " ").encode()

    def id_to_piece(self, id: int) -> str | None:
        """The piece as the vocabulary spells it; None for an id without one."""
        return self._pieces[id] if 0 <= id < len(self._pieces) else None

    def piece_to_id(self, piece: str) -> int | None:
        """The id of a piece, spelled as in the vocabulary; None where it has no such piece."""
        return self._encoder.token_to_id(piece)
