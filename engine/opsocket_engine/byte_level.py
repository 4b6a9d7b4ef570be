"""The alphabet in which byte-level BPE vocabularies spell bytes (Radford et al. 2019, GPT-2).

Printable Latin-1 characters stand for themselves; each of the 68 other bytes, in order, for a character from U+0100 on.
"""

from __future__ import annotations

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]

CHARACTER_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + i): byte for i, byte in enumerate(_OTHERS)}
"""Character -> the byte it stands for; 256 of them."""


def spelled_bytes(piece: str) -> bytes:
    """The bytes that a piece spells. A piece with a character outside of the alphabet is literal text."""
    try:
        return bytes([CHARACTER_BYTES[character] for character in piece])
    except KeyError:
        return piece.encode()
