"""Text from tokens as they come: whole characters only, and nothing past a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

from opsocket.operators.errors import ContractError

if TYPE_CHECKING:
    from opsocket_engine.tokenizer import Tokenizer


class Detokenizer:
    """Turns ids into text one at a time: what the pushes and `finish` return, joined, is what `Tokenizer.decode` gives.

    after: the ids that came before, such as the prompt, whose text is not repeated; a space that the tokenizer puts
    before a text's first word is taken away only where a text begins. Bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, *, after: Sequence[int] = (), skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._previous = after[-1] if after else None
        self._has_text = any(id not in tokenizer.special_ids for id in after)

    def push(self, id: int) -> str:
        """The characters that `id` completes; "" while one is still in the making."""
        data = self._tokenizer.token_bytes(id)
        at_start = self._at_segment_start()
        self._previous = id
        if id in self._tokenizer.special_ids and self._skip_special:
            return ""
        if at_start and id not in self._tokenizer.added_ids:
            data = data.removeprefix(b" ")
        self._has_text = True
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What an unfinished character leaves: U+FFFD, or "" where the last one is whole."""
        return self._decoder.decode(b"", True)

    def _at_segment_start(self) -> bool:
        match self._tokenizer.prefix_space:
            case "never":
                return False
            case "first":
                return not self._has_text
            case "always":
                return self._previous is None or self._previous in self._tokenizer.added_ids


class StopMatcher:
    """Passes text on until a stop string is complete; never a part of one.

    The text that comes out doesn't depend on how it was cut into pushes: the stop string that is complete first wins,
    and of several complete at once the longest. ContractError for an empty stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ContractError("stops", "strings of at least one character", list(stops))
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """What of the text so far is certain to be no part of a stop string; "" once one has matched."""
        if self.matched is not None:
            return ""
        text = self._held + text
        matches = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in text]
        if matches:
            end, _, self.matched = min(matches)
            self._held = ""
            return text[: end - len(self.matched)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The text held back, when no more comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` with which `text` ends."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
