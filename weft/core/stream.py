"""From the ecosystem's arguments (input_ids, pixel_values, ...) to one stream of tokens, one document a row.

Shape letters:  B rows  T ids  N tokens of an item  F features of one  C channels  p patch side

    with ids       [▒▒▒▒ image ▒▒▒▒][▒▒ sound ▒▒] ids             the ids' places are answered
    placeholders   ids [▒▒▒▒ image ▒▒▒▒] ids                      where the ids themselves say, all places are (LLaVA)
    without ids    [opening][▒▒▒▒ image ▒▒▒▒][▒▒ sound ▒▒]        all places are; the opening is the input's own: a
                                                                  class token, a column's marker, or nothing
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft.core import config as c
from weft.core.embed import Input
from weft.core.topology import FUSED
from weft.core.view import Media, Tokens
from weft.errors import WeftError, nearest


@dataclass(frozen=True)
class Item:
    """kind, values (B,N,F), positions (N,3), how far the position moves past it, rows and columns."""

    kind: str
    values: Tensor
    positions: Tensor
    advance: int
    grid: tuple[int, int]


def stream(
    body: nn.Module,
    ids: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    pixels: Tensor | None = None,
    sounds: Tensor | None = None,
    marks: Tensor | None = None,
) -> tuple[Tokens, int]:
    """Tokens for `body`, and how many of them stand before the ids.

    ids (B,T), mask (B,T) 1 real 0 padding, pixels (B,C,H,W), sounds (B,frames,mels), for a frame stem also
    (B,mels,frames), marks (B,T) 1 a global token. Raises WeftError for media that the model has no stem for, or that do
    not divide into its patches.
    """
    stems = known_stems(body)
    items: list[Item] = []
    if pixels is not None and pixels.dim() == 5:  # (B,pictures,C,H,W): those that are all zero fill up a row
        pixels = pixels.flatten(0, 1)
        pixels = pixels[pixels.flatten(1).any(1)]
    for kind, values in (("image", pixels), ("audio", sounds)):
        if values is not None:
            if kind not in stems:
                raise WeftError(f"The model has no stem for {kind!r}.{nearest(kind, stems)}")
            items.append(image(values, stems[kind].features) if kind == "image" else sound(values, stems[kind]))
    held = placeholders(body)
    if ids is not None and items and all(item.kind in held and (ids == held[item.kind]).any() for item in items):
        return within(ids, mask, items, held), 0
    if items:
        return place(ids, mask, items, marks=marks, opening=opening(body, items[0].kind))
    if ids is None:
        raise WeftError("Nothing came in: give input_ids, pixel_values or input_features.")
    return Tokens(ids, document=None if mask is None else mask.int(), globals=marks), 0


def placeholders(body: nn.Module) -> dict[str, int]:
    """Kind -> the id that stands at its places."""
    if not isinstance(body, FUSED):
        return {}
    return {kind: encoder.token for kind, encoder in body.config.encoders.items() if encoder.token >= 0}


def within(ids: Tensor, mask: Tensor | None, items: list[Item], held: dict[str, int]) -> Tokens:
    """Items in the places that the ids keep for them, in order. Raises WeftError where the counts differ."""
    span, media = torch.zeros_like(ids, dtype=torch.int32), []
    for item in items:
        token, values = held[item.kind], item.values.flatten(0, 1)  # (pictures,N,F) -> (pictures*N,F)
        at = (ids.flatten() == token).nonzero()[:, 0]
        if len(at) != len(values):
            raise WeftError(
                f"The ids keep {len(at)} places for {item.kind} (id {token}), and {len(item.values)} of them bring "
                f"{len(values)} tokens. Repeat the id {item.values.shape[1]} times for each."
            )
        number = torch.arange(len(at), device=ids.device) // item.values.shape[1] + 1 + int(span.max())
        span.view(-1)[at] = number.to(span.dtype)
        media.append(Media(item.kind, values, at, item.grid))
    return Tokens(ids, None if mask is None else mask.int(), span=span, media=tuple(media))


def opening(body: nn.Module, kind: str) -> tuple[int, ...]:
    """What stands before media that come without ids, as the input that takes this kind says."""
    if isinstance(body, FUSED):
        return body.tower.input.config.opening
    inputs = [m.config for m in body.modules() if isinstance(m, Input)]
    return next((config.opening for config in inputs if kind in config.stems), (0,))


def known_stems(body: nn.Module) -> dict[str, c.Stem | c.PictureConfig]:
    """The stems of a model, of its inputs and of its encoders of items."""
    found: dict[str, c.Stem | c.PictureConfig] = {}
    for module in body.modules():
        found |= module.config.stems if isinstance(module, Input) else {}
    if isinstance(body, FUSED):
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
    values = F.unfold(pixels, side, stride=side).transpose(1, 2)  # (B,C*p*p,N) -> (B,N,C*p*p)
    return Item("image", values, grid.to(pixels.device), max(down, right), (down, right))


def sound(frames: Tensor, stem: c.Stem | c.PictureConfig) -> Item:
    """(B,frames,mels) -> (B,N,stack*mels): frames side by side, the last token filled with silence (-1).

    A frame stem takes (B,mels,frames) as well, as Whisper's own features are.
    """
    features = stem.features
    if isinstance(stem, c.FrameStem):
        if features // 2 not in frames.shape[1:]:
            raise WeftError(f"Frames of {features // 2} mels were expected; input_features {tuple(frames.shape)} came.")
        frames = frames.transpose(1, 2) if frames.shape[1] == features // 2 else frames
    stack = features // frames.shape[-1]
    count = -(-frames.shape[1] // stack)
    values = (
        F.pad(frames, (0, 0, 0, count * stack - frames.shape[1]), value=-1.0).unflatten(1, (count, stack)).flatten(2)
    )
    step = stack / 8  # positions per token: 12.5 a second, at 100 frames a second
    places = torch.arange(count, device=frames.device).float() * step
    return Item("audio", values, places[:, None].expand(-1, 3), math.ceil(count * step), (1, count))


def place(
    ids: Tensor | None, mask: Tensor | None, items: list[Item], *, marks: Tensor | None, opening: tuple[int, ...]
) -> tuple[Tokens, int]:
    """Items and ids in one stream. Each item is a span; positions move on as the renderer's do."""
    rows, device = items[0].values.shape[0], items[0].values.device
    head = len(opening) if ids is None else 0
    count = sum(item.values.shape[1] for item in items)
    length = head + count + (0 if ids is None else ids.shape[1])
    whole = torch.zeros(rows, length, dtype=torch.long, device=device)
    span = torch.zeros_like(whole)
    positions = torch.zeros(length, 3, device=device)
    positions[:head] = torch.arange(head, device=device)[:, None]
    whole[:, :head] = torch.tensor(opening[:head], dtype=torch.long, device=device)
    start, reached, media = head, float(head), []
    for number, item in enumerate(items, 1):
        stop = start + item.values.shape[1]
        at = torch.arange(rows, device=device)[:, None] * length + torch.arange(start, stop, device=device)  # (B,N)
        media.append(Media(item.kind, item.values.flatten(0, 1), at.flatten(), item.grid))
        span[:, start:stop] = number
        positions[start:stop] = item.positions + reached
        start, reached = stop, reached + item.advance
    if ids is not None:
        whole[:, count:] = ids
        positions[count:] = reached + torch.arange(ids.shape[1], device=device)[:, None]
    document = None
    if mask is not None and ids is not None:
        document = torch.cat((mask.new_ones(rows, count), mask), 1).int()
    if marks is not None and ids is not None:
        marks = torch.cat((marks.new_zeros(rows, count), marks), 1)
    positions = positions.expand(rows, -1, -1)
    return Tokens(whole, document, span=span, positions=positions, media=tuple(media), globals=marks), (
        0 if ids is None else count
    )
