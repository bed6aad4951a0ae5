"""The text of a rollout as columns that a page can carry."""

from __future__ import annotations

import numpy as np

from segviz.runs.rollout import Rollout
from segviz.show.encode import tidy

LONG = 4096  #: tokens from which on columns are stored more coarsely and some are left out


def text_columns(rollout: Rollout) -> dict[str, np.ndarray]:
    """What cuts the page's text into tokens and segments: lengths in UTF-16 units, and in tokens."""
    units = [len(tidy(piece).encode("utf-16-le")) // 2 for piece in rollout.pieces]
    return {
        "units": np.array(units, dtype=np.uint16 if max(units, default=0) < 2**16 else np.uint32),
        # lengths rather than places: small numbers that repeat deflate to almost nothing
        "seg": np.array([end - start for start, end in rollout.segments], dtype=np.uint32),
    }
