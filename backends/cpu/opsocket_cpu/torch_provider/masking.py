"""What hides keys from queries and biases them by distance, a tile at a time: never a mask of queries by keys."""

from __future__ import annotations

import torch

from opsocket.operators import AttentionBatch, AttentionSpec
from opsocket_cpu.torch_provider.grouping import Queries, window


class GroupMask:
    """Masks and ALiBi of one group of n queries of each of R requests; `shape` is (R, n)."""

    def __init__(self, queries: Queries, batch: AttentionBatch, spec: AttentionSpec) -> None:
        self.shape = queries.positions.shape
        self._left, self._right = window(spec)
        self._positions = torch.from_numpy(queries.positions)
        self._first = torch.from_numpy(queries.first_position).unsqueeze(1)
        self._span = torch.from_numpy(queries.span).unsqueeze(1)
        self._tree = spec.mask == "tree"
        if self._tree:
            request = int(queries.requests[0])  # groups of tree masks hold one request
            self._history = int(queries.history[0])
            self._bits_at = int(batch.mask_indptr[request])
            self._q_len = int(batch.q_indptr[request + 1] - batch.q_indptr[request])
            self._order = torch.from_numpy(queries.order[0])

    def hidden(self, tree_mask: torch.Tensor | None, start: int, stop: int) -> torch.Tensor:
        """bool [R, n, S]: whether a query does not see a key of the tile [start, stop)."""
        keys = torch.arange(start, stop)
        hidden = (keys >= self._span).unsqueeze(1).repeat(1, self.shape[1], 1)
        distance = self._distance(start, stop)
        if self._left is not None:
            hidden |= distance < -self._left
        if self._right is not None:
            hidden |= distance > self._right
        if tree_mask is not None and stop > self._history:
            new = max(start, self._history)
            hidden[0, :, new - start :] |= ~self._seen_by_tree(tree_mask, new - self._history, stop - self._history)
        return hidden

    def add_alibi(self, scores: torch.Tensor, slopes: torch.Tensor, start: int, stop: int) -> None:
        """scores [Hkv, R, G, n, S] -= slope * |query position - key position|, slopes f32[Hq]."""
        distance = self._distance(start, stop).abs_().float()[:, None]
        scores.addcmul_(slopes.view(scores.shape[0], 1, scores.shape[2], 1, 1), distance, value=-1)

    def _distance(self, start: int, stop: int) -> torch.Tensor:
        """i64 [R, n, S]: key position less query position."""
        return (self._first + torch.arange(start, stop)).unsqueeze(1) - self._positions.unsqueeze(2)

    def _seen_by_tree(self, tree_mask: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """bool [n, stop - start]: the tree's bits for new tokens [start, stop), least significant first."""
        bit = self._order[:, None] * self._q_len + torch.arange(start, stop)
        return (tree_mask[self._bits_at + (bit >> 3)] >> (bit & 7).to(torch.uint8)) & 1 == 1
