"""From the ecosystem's arguments (input_ids, pixel_values, ...) to one stream of tokens, one document a row.

Shape letters:  B rows  T ids  N tokens of an item  F features of one  C channels  p patch side

    with ids       [▒▒▒▒ image ▒▒▒▒][▒▒ sound ▒▒] ids             the ids' places are answered
    without ids    [id 0][▒▒▒▒ image ▒▒▒▒][▒▒ sound ▒▒]           all places are; id 0 is the class token
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core import config as c
from weft.core.embed import Input
from weft.core.topology import EarlyFusion
from weft.core.view import Media, Tokens
from weft.errors import WeftError, nearest

Item = tuple[str, Tensor, Tensor, int]  # kind, values (B,N,F), positions (N,3), how far the position moves past it


def stream(
    body: nn.Module,
    ids: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    pixels: Tensor | None = None,
    sounds: Tensor | None = None,
) -> tuple[Tokens, int]:
    """Tokens for `body`, and how many of them stand before the ids.

    ids (B,T), mask (B,T) 1 real 0 padding, pixels (B,C,H,W), sounds (B,frames,mels). Raises WeftError for media that
    the model has no stem for, or that do not divide into its patches.
    """
    stems = known_stems(body)
    items: list[Item] = []
    for kind, values in (("image", pixels), ("audio", sounds)):
        if values is not None:
            if kind not in stems:
                raise WeftError(f"The model has no stem for {kind!r}.{nearest(kind, stems)}")
            items.append((image if kind == "image" else sound)(values, stems[kind].features))
    if items:
        return place(ids, mask, items)
    if ids is None:
        raise WeftError("Nothing came in: give input_ids, pixel_values or input_features.")
    return Tokens(ids, document=None if mask is None else mask.int()), 0


def known_stems(body: nn.Module) -> dict[str, c.Stem]:
    """The stems of a model, of its inputs and of its encoders of items."""
    found = {kind: stem for m in body.modules() if isinstance(m, Input) for kind, stem in m.config.stems.items()}
    if isinstance(body, EarlyFusion):
        found |= {kind: encoder.stem for kind, encoder in body.config.encoders.items()}
    return found


def image(pixels: Tensor, features: int) -> Item:
    """(B,C,H,W) -> (B,N,C*p*p), row by row; within a patch channel, row, column."""
    channels, height, width = pixels.shape[1:]
    side = math.isqrt(features // channels)
    if height % side or width % side:
        raise WeftError(f"An image of {height} x {width} pixels does not divide into patches of {side}.")
    down, right = height // side, width // side
    grid = torch.cartesian_prod(torch.zeros(1), torch.arange(down).float(), torch.arange(right).float())  # (N,3)
    return "image", F.unfold(pixels, side, stride=side).transpose(1, 2), grid.to(pixels.device), max(down, right)


def sound(frames: Tensor, features: int) -> Item:
    """(B,frames,mels) -> (B,N,stack*mels): frames side by side, the last token filled with silence (-1)."""
    stack = features // frames.shape[-1]
    count = -(-frames.shape[1] // stack)
    values = (
        F.pad(frames, (0, 0, 0, count * stack - frames.shape[1]), value=-1.0).unflatten(1, (count, stack)).flatten(2)
    )
    step = stack / 8  # positions per token: 12.5 a second, at 100 frames a second
    places = torch.arange(count, device=frames.device).float() * step
    return "audio", values, places[:, None].expand(-1, 3), math.ceil(count * step)


def place(ids: Tensor | None, mask: Tensor | None, items: list[Item]) -> tuple[Tokens, int]:
    """Items and ids in one stream. Each item is a span; positions move on as the renderer's do."""
    rows, device = items[0][1].shape[0], items[0][1].device
    head = 1 if ids is None else 0  # the class token
    count = sum(values.shape[1] for _, values, _, _ in items)
    length = head + count + (0 if ids is None else ids.shape[1])
    whole = torch.zeros(rows, length, dtype=torch.long, device=device)
    span = torch.zeros_like(whole)
    positions = torch.zeros(length, 3, device=device)
    start, reached, media = head, float(head), []
    for number, (kind, values, offsets, advance) in enumerate(items, 1):
        stop = start + values.shape[1]
        at = torch.arange(rows, device=device)[:, None] * length + torch.arange(start, stop, device=device)  # (B,N)
        media.append(Media(kind, values.flatten(0, 1), at.flatten()))
        span[:, start:stop] = number
        positions[start:stop] = offsets + reached
        start, reached = stop, reached + advance
    if ids is not None:
        whole[:, count:] = ids
        positions[count:] = reached + torch.arange(ids.shape[1], device=device)[:, None]
    document = None
    if mask is not None and ids is not None:
        document = torch.cat((mask.new_ones(rows, count), mask), 1).int()
    positions = positions.expand(rows, -1, -1)
    return Tokens(whole, document, span=span, positions=positions, media=tuple(media)), 0 if head else count
