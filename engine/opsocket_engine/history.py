"""What penalties go by: which tokens a sequence has, and how often."""

from __future__ import annotations

import numpy as np


class History:
    """Grows with its sequence: to count all tokens of a long one anew takes longer than to choose the next."""

    def __init__(self) -> None:
        self._place: dict[int, int] = {}
        self._counted = 0
        self._ids = np.empty(64, np.int64)
        self._counts = np.zeros(64, np.int32)

    def of(self, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Each id of `tokens` once, i64 [H], and how often it is there, i32 [H]; valid until the next call.

        tokens: those of the last call, and perhaps more behind them.
        """
        for token in tokens[self._counted :]:
            place = self._place.setdefault(token, len(self._place))
            if place == len(self._ids):
                self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._ids[place] = token
            self._counts[place] += 1
        self._counted = len(tokens)
        return self._ids[: len(self._place)], self._counts[: len(self._place)]
