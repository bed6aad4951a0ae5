"""A cache with room: keys and values of decoded tokens are written in place, where transformers copies all that came
before at every token; and rows come, go and branch one by one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """Keys and values of n rows: a view of buffers that are larger."""

    def __init__(self, layer: DynamicLayer):
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self._buffers = layer.keys, layer.values
        self.keys, self.values = layer.keys, layer.values

    def _make_room(self, rows: int, length: int) -> None:
        """Buffers of at least that size, with what they hold. They grow by a share of themselves, so that all the
        copying of a long completion is worth a few copies of its end."""
        have = self._buffers[0].shape
        if rows <= have[0] and length <= have[2]:
            return
        rows = have[0] if rows <= have[0] else max(rows, have[0] + have[0] // 2)
        length = have[2] if length <= have[2] else length + length // 4 + 16
        kept, filled = self.keys.shape[0], self.keys.shape[2]
        larger = []
        for old in (self.keys, self.values):
            with torch.inference_mode(False):  # what is written to later, outside of a step
                new = old.new_empty(rows, old.shape[1], length, old.shape[3])
            new[:kept, :, :filled] = old
            larger.append(new)
        self._buffers = larger[0], larger[1]

    def _show(self, rows: int, length: int) -> None:
        self.keys, self.values = (buffer[:rows, :, :length] for buffer in self._buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        rows, start = self.keys.shape[0], self.keys.shape[2]
        end = start + key_states.shape[2]
        self._make_room(rows, end)
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:rows, :, start:end] = new
        self._show(rows, end)
        return self.keys, self.values

    def arrange(self, rows: int, target: Tensor, source: Tensor) -> None:
        """From now on `rows` rows, of which `target` (long [k]) are copies of `source`; no target is a source."""
        length = self.keys.shape[2]
        self._make_room(rows, length)
        for buffer in self._buffers if len(target) else ():
            held = buffer[:, :, :length]
            held.index_copy_(0, target, held.index_select(0, source))
        self._show(rows, length)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._buffers = self.keys, self.values


def with_room(cache: DynamicCache) -> DynamicCache:
    """The cache, whose layers that keep everything are from now on written in place. Layers with a sliding window or a
    running state stay as they are: their size does not grow."""
    cache.layers = [RoomyLayer(x) if type(x) is DynamicLayer and x.is_initialized else x for x in cache.layers]
    return cache


def select_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Only the rows `rows` (long [m]) of the cache, repeats allowed."""
    for layer in cache.layers:
        _select(layer, rows)


def _select(layer: Any, rows: Tensor) -> None:
    # `reorder_cache` takes running states along, also those beside keys and values; ours has buffers behind these.
    (layer.batch_select_indices if isinstance(layer, RoomyLayer) else layer.reorder_cache)(rows)


def arrange(cache: DynamicCache, source: np.ndarray, device: torch.device) -> None:
    """Row i of the cache becomes what row source[i] was (`branch` gives such a `source`)."""
    moved = np.flatnonzero(source != np.arange(len(source)))
    target, origin, everything = (torch.from_numpy(x).to(device) for x in (moved, source[moved], source))
    for layer in cache.layers:
        if isinstance(layer, RoomyLayer):
            layer.arrange(len(source), target, origin)
        else:
            _select(layer, everything)


def branch(node: np.ndarray, token: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nodes after one more token: rows that were alike, and go on alike, share one.

    A node stays where it was if it can, so that little is copied: its first child takes its place, further ones take
    places that are free.

    Args:
        node: long [n], the node of each row; token: long [n], its next token.
        size: more than any token.

    Returns:
        (long [m], the node that each new one continues; long [m], its token; long [n], the new node of each row). A new
        node that is not where its parent was is where a node without children was, or beyond all.
    """
    name, which = np.unique(node * size + token, return_inverse=True)
    parent = name // size
    first = np.ones(len(name), dtype=bool)
    first[1:] = parent[1:] != parent[:-1]
    stays = first & (parent < len(name))
    free = np.ones(len(name), dtype=bool)
    free[parent[stays]] = False
    place = parent.copy()
    place[~stays] = np.flatnonzero(free)
    source, tokens = np.empty_like(parent), np.empty_like(parent)
    source[place], tokens[place] = parent, name % size
    return source, tokens, place[which]
