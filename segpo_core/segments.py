"""Token streams to segment ids.

A segmentation cuts a completion into contiguous segments that cover it, in order and without gaps. It is one
tensor: `segment_ids`, long [B, T], counting 0, 1, 2, … inside each row, −1 at padding. `mask` is bool [B, T],
True at real tokens, right padded. Shapes: B completions, T tokens, M segments.

The first half of the file works on tensors and never waits for the device; the segmenters that read text take
the token pieces of each row (their concatenation is the text) and run in Python.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import pad

# Roles, indices into `types.ROLES`.
OTHER, PERCEPTION, REASONING, ANSWER = 0, 1, 2, 3
TAGS = ("perception", "think", "answer")


# --- segmenters on tensors ------------------------------------------------------------------------


def token_level(mask: Tensor) -> Tensor:
    """Every token is a segment (PPO). [B, T] → long [B, T]."""
    return _ids_from_starts(mask, mask)


def sequence_level(mask: Tensor) -> Tensor:
    """The whole completion is one segment (GRPO, GSPO, RLOO). [B, T] → long [B, T]."""
    return torch.where(mask, 0, -1)


def fixed_length(mask: Tensor, size: int) -> Tensor:
    """Segments of `size` tokens; the last one may be shorter (SPO-tree). [B, T] → long [B, T]."""
    if size < 1:
        raise ValueError(f"a segment needs at least one token, got size={size}")
    return torch.where(mask, (mask.cumsum(1) - 1) // size, -1)


def entropy_topk(entropy: Tensor, mask: Tensor, fraction: float = 0.3) -> Tensor:
    """Cut after the ⌈fraction · T⌉ tokens of highest entropy (SAPO, arXiv 2605.01327, eq. 11).

    These tokens are segment *ends*; the last real token always is one, in addition where it is not among
    them. Of two tokens with equal entropy the earlier one is taken first. `entropy` [B, T] may hold anything
    at padding.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction is the share of tokens that end a segment, from 0 to 1; got {fraction}")
    order = torch.where(mask, entropy, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, _positions(mask))
    # 0.7 · 10 is 7.000000000000001 in floating point; the small step back keeps the ceiling at 7.
    budget = (mask.sum(1, keepdim=True).double() * fraction - 1e-9).ceil()
    return _ids_from_ends(mask & (rank < budget), mask)


def cutpoints(probs: Tensor, mask: Tensor, threshold: float = 0.9, interval: int = 5) -> Tensor:
    """Cut just before every `interval`-th cutpoint, a token with π_old < `threshold` (SPO, arXiv 2505.23564).

    New segments begin at cutpoints 1, 1+k, 1+2k, …; tokens before the first cutpoint form a segment of their
    own, so the first segment begins at a boundary of the paper only where the first token is itself a
    cutpoint. `probs` [B, T].
    """
    if interval < 1:
        raise ValueError(f"a segment needs at least one cutpoint, got interval={interval}")
    cut = mask & (probs < threshold)
    return _ids_from_starts(cut & ((cut.cumsum(1) - 1) % interval == 0), mask)


def segments_from_starts(start: Tensor, mask: Tensor) -> Tensor:
    """A segment begins wherever `start`, bool [B, T], is True, and at the first token. → long [B, T]."""
    return _ids_from_starts(start, mask)


def roles(role_ids: Tensor, mask: Tensor) -> Tensor:
    """A new segment wherever the role changes (SRPO). `role_ids` long [B, T] → long [B, T]."""
    return _ids_from_starts(role_ids != _shift_right(role_ids), mask)


# --- looking at a segmentation --------------------------------------------------------------------


def starts(segment_ids: Tensor) -> Tensor:
    """True at the first token of each segment, bool [B, T]."""
    real = segment_ids >= 0
    return torch.cat([real[:, :1], real[:, 1:] & (segment_ids[:, 1:] != segment_ids[:, :-1])], dim=1)


def ends(segment_ids: Tensor) -> Tensor:
    """True at the last token of each segment, bool [B, T]."""
    real = segment_ids >= 0
    return torch.cat([real[:, :-1] & (segment_ids[:, :-1] != segment_ids[:, 1:]), real[:, -1:]], dim=1)


def count(segment_ids: Tensor) -> Tensor:
    """Number of segments of each completion, long [B]."""
    return starts(segment_ids).sum(1)


def per_segment_sum(x: Tensor, segment_ids: Tensor, num_segments: int | None = None) -> Tensor:
    """Sum `x` [B, T] inside each segment → [B, M], 0 where a row has fewer than M segments.

    M is `num_segments`, which must not be less than the true number; T by default, the safe bound that needs
    no look at the data.
    """
    return _empty_slots(x, segment_ids, num_segments).scatter_add_(1, segment_ids + 1, x)[:, 1:]


def per_segment_pick(x: Tensor, segment_ids: Tensor, here: Tensor, num_segments: int | None = None) -> Tensor:
    """`x` [B, T] at the one token of each segment where `here` is True → [B, M], 0 beyond the last segment."""
    slot = torch.where(here, segment_ids + 1, 0)
    return _empty_slots(x, segment_ids, num_segments).scatter_(1, slot, x)[:, 1:]


def per_segment_mean(x: Tensor, segment_ids: Tensor, num_segments: int | None = None) -> Tensor:
    """Mean of `x` [B, T] inside each segment → [B, M], 0 where a row has fewer than M segments."""
    sizes = per_segment_sum(torch.ones_like(x), segment_ids, num_segments)
    return per_segment_sum(x, segment_ids, num_segments) / sizes.clamp(min=1)


def spread(per_segment: Tensor, segment_ids: Tensor) -> Tensor:
    """Give every token the value of its segment: [B, M] → [B, T], 0 at padding."""
    return pad(per_segment, (1, 0)).gather(1, segment_ids + 1)


def segment_sum(x: Tensor, segment_ids: Tensor) -> Tensor:
    """Sum of `x` over the segment a token belongs to, at every token. [B, T] → [B, T], 0 at padding."""
    return spread(per_segment_sum(x, segment_ids), segment_ids)


def segment_mean(x: Tensor, segment_ids: Tensor) -> Tensor:
    """Mean of `x` over the segment a token belongs to, at every token. [B, T] → [B, T], 0 at padding."""
    return spread(per_segment_mean(x, segment_ids), segment_ids)


# --- segmenters on text ---------------------------------------------------------------------------


def newline(pieces: Sequence[Sequence[str]], mask: Tensor) -> Tensor:
    """One segment a line of text (VinePPO's steps). → long [B, T].

    A segment ends with a token that contains a newline. Blank lines make no segment of their own: they belong
    to the line before them, at the beginning to the line after.
    """
    return _ids_from_rows(pieces, mask, _line_starts)


def step_markers(pieces: Sequence[Sequence[str]], mask: Tensor, pattern: str = r"Step \d+") -> Tensor:
    """A segment starts at the token in which a match of `pattern` begins. → long [B, T].

    Matches are found in the text, so a marker may span several tokens or begin inside one.
    """
    marker = re.compile(pattern)

    def marker_starts(row: Sequence[str]) -> Iterator[int]:
        offsets = _offsets(row)
        for match in marker.finditer("".join(row)):
            if match.end() > match.start():
                yield bisect_right(offsets, match.start()) - 1

    return _ids_from_rows(pieces, mask, marker_starts)


def role_ids(
    pieces: Sequence[Sequence[str]], mask: Tensor, tags: Sequence[str | tuple[str, str]] = TAGS
) -> tuple[Tensor, Tensor]:
    """The role of each token by the block it stands in (SRPO): (long [B, T], bool [B] well formed).

    Roles: 1 perception, 2 reasoning, 3 answer (the order of `tags`), 0 anything else, −1 padding. A tag is a
    name, for `<name>…</name>`, or an (opening, closing) pair. A completion is well formed if every tag occurs
    exactly once and the blocks follow each other in this order; missing, repeated, nested or swapped tags
    make all its roles 0.

    Tags may span tokens. A token that is nothing but tag has role 0; one that holds a tag's end *and* text of
    the block has the block's role, so no text is lost. An empty piece (half a character) has the role of the
    text that follows it.
    """
    pairs = [(f"<{tag}>", f"</{tag}>") if isinstance(tag, str) else tag for tag in tags]
    table = torch.full(mask.shape, -1, dtype=torch.long)
    well_formed = []
    for b, row in enumerate(_real_rows(pieces, mask)):
        blocks = _blocks("".join(row), pairs)
        well_formed.append(blocks is not None)
        table[b, : len(row)] = OTHER
        starts = _offsets(row)
        stops = [start + max(len(piece), 1) for start, piece in zip(starts, row, strict=True)]
        # Both go up: a block's tokens are a range. One of two blocks has the role of the first, which is written last.
        for role, (left, right) in reversed([*enumerate(blocks or (), 1)]):
            table[b, bisect_right(stops, left) : bisect_left(starts, right)] = role
    return table.to(mask.device), torch.tensor(well_formed, dtype=torch.bool, device=mask.device)


# --- inside ---------------------------------------------------------------------------------------


def _positions(mask: Tensor) -> Tensor:
    return torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)


def _empty_slots(x: Tensor, segment_ids: Tensor, num_segments: int | None) -> Tensor:
    """[B, 1 + M] zeros: slot m + 1 is segment m, slot 0 takes what stands at padding, to be dropped."""
    slots = segment_ids.shape[1] if num_segments is None else num_segments
    return x.new_zeros(len(x), 1 + slots)


def _shift_right(x: Tensor, fill: int | bool = -2) -> Tensor:
    return torch.cat([torch.full_like(x[:, :1], fill), x[:, :-1]], dim=1)


def _ids_from_starts(start: Tensor, mask: Tensor) -> Tensor:
    """The first token starts a segment whatever `start` says."""
    start = mask & (start | (_positions(mask) == 0))
    return torch.where(mask, start.cumsum(1) - 1, -1)


def _ids_from_ends(end: Tensor, mask: Tensor) -> Tensor:
    return _ids_from_starts(_shift_right(end, True), mask)


def _real_rows(pieces: Sequence[Sequence[str]], mask: Tensor) -> Iterator[Sequence[str]]:
    """The pieces of the real tokens of each row."""
    lengths = mask.sum(1).tolist()
    if len(pieces) != len(lengths):
        raise ValueError(f"got the pieces of {len(pieces)} completions for a mask of {len(lengths)} rows")
    for b, (row, length) in enumerate(zip(pieces, lengths, strict=True)):
        if len(row) < length:
            raise ValueError(f"completion {b} has {length} real tokens but only {len(row)} token pieces")
        yield row[:length]


def _ids_from_rows(
    pieces: Sequence[Sequence[str]], mask: Tensor, find_starts: Callable[[Sequence[str]], Iterator[int]]
) -> Tensor:
    start = torch.zeros(mask.shape, dtype=torch.bool)
    for b, row in enumerate(_real_rows(pieces, mask)):
        start[b, list(find_starts(row))] = True
    return _ids_from_starts(start.to(mask.device), mask)


def _offsets(row: Sequence[str]) -> list[int]:
    """Where each piece begins in the text."""
    return list(accumulate(map(len, row), initial=0))[: len(row)]


def _line_starts(row: Sequence[str]) -> Iterator[int]:
    """A line is opened by its first text, and then begins right after the newline before it."""
    after_newline, text_seen = 0, False
    for t, piece in enumerate(row):
        if piece.strip():
            if text_seen and after_newline:
                yield after_newline
            text_seen, after_newline = True, 0
        if "\n" in piece:
            after_newline = t + 1


def _blocks(text: str, pairs: Sequence[tuple[str, str]]) -> list[tuple[int, int]] | None:
    """The span of the text between each pair of tags, or None if the text is malformed."""
    tags = [tag for pair in pairs for tag in pair]
    if any(text.count(tag) != 1 for tag in tags):
        return None
    found = [text.index(tag) for tag in tags]
    follows = all(a + len(tag) <= b for a, b, tag in zip(found, found[1:], tags, strict=False))
    spans = [(found[i] + len(tags[i]), found[i + 1]) for i in range(0, len(tags), 2)]
    return spans if follows else None
