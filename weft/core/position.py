"""Where a token is: rotations, distances, waves.

Shape letters:  B rows  T queries  S keys  A axes  E features of a head (E' of them rotated)  H heads  D width
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from weft.core import config as c
from weft.core.view import Layout


def places(layout: Layout, axes: int) -> Tensor:
    """(1|B,T,axes) float32 positions of a layout: 1 sequence; 2 row, column; 3 sequence, row, column."""
    if axes == 1 or layout.place is None:
        # One axis counts tokens: the patches of an image share one place on the sequence axis of `positions`.
        return layout.order[..., None].float().expand(-1, -1, axes)
    return layout.place[..., -axes:].float()


def frequencies(config: c.Rope, width: int, device: torch.device) -> Tensor:
    """(E'/2,) radians per step: theta^(-2i/E'), made slower by the scaling."""
    rotated = int(width * config.fraction) // 2 * 2
    steps = torch.arange(0, rotated, 2, device=device, dtype=torch.float32) / rotated
    speed = 1.0 / config.theta**steps
    return SCALINGS[type(config.scaling)](config.scaling, speed, config.theta)


def stretched(s: c.Stretch, speed: Tensor, theta: float) -> Tensor:
    """Llama 3.1: long waves stretched, short ones kept, those between interpolated."""
    turns = s.length * speed / (2 * math.pi)
    keep = ((turns - s.low) / (s.high - s.low)).clamp(0, 1)
    return (1 - keep) * speed / s.factor + keep * speed


def yarn(s: c.Yarn, speed: Tensor, theta: float) -> Tensor:
    """Peng et al. 2023, section 3.2: a ramp over the features, from those that turn `fast` times to those of `slow`."""
    features = 2 * len(speed)
    feature = lambda turns: features * math.log(s.length / (turns * 2 * math.pi)) / (2 * math.log(theta))
    first, last = feature(s.fast), feature(s.slow)
    if s.whole:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, features - 1)
    ramp = torch.arange(len(speed), dtype=torch.float32, device=speed.device) - first
    slow = (ramp / (last - first if last != first else 0.001)).clamp(0, 1)
    return speed / s.factor * slow + speed * (1 - slow)


SCALINGS: dict[type, Callable[..., Tensor]] = {
    type(None): lambda s, speed, theta: speed,
    c.Interpolate: lambda s, speed, theta: speed / s.factor,
    c.Stretch: stretched,
    c.Yarn: yarn,
}


def sharper(config: c.Rope) -> float:
    """What queries and keys are multiplied with, so that longer rows do not flatten the softmax (YaRN)."""
    s = config.scaling
    if not isinstance(s, c.Yarn):
        return 1.0
    return s.attention or (0.1 * math.log(s.factor) + 1.0 if s.factor > 1 else 1.0)


def rotation(config: c.Rope, layout: Layout, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin, each (1|B,T,1,E'/2). Frequency i turns by axis i mod A, so each axis gets slow and fast ones."""
    speed = frequencies(config, width, layout.index.device)
    place = places(layout, config.axes)  # (1|B,T,A)
    axis = torch.arange(len(speed), device=speed.device) % config.axes
    angle = place[..., axis] * speed  # (1|B,T,E'/2)
    cos, sin = (wave[:, :, None] * sharper(config) for wave in (angle.cos(), angle.sin()))
    return cos.to(dtype), sin.to(dtype)


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """(B,T,H,E) -> the same, feature pairs (i, i + E'/2) turned; features past E' are left as they are."""
    cos, sin = turn
    half = cos.shape[-1]
    a, b = x[..., :half], x[..., half : 2 * half]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]), -1)


def sinusoidal(order: Tensor, dim: int, theta: float) -> Tensor:
    """(1|B,T) places -> (1|B,T,D): the sines of all waves, then their cosines; of an odd D the last feature is 0.

    As the authors' own code does it (tensor2tensor, `get_timing_signal_1d`) and Whisper after it: waves from 2 pi to
    2 pi theta, both included. The formula printed in section 3.5 of Vaswani et al. 2017 has sine and cosine of a wave
    side by side, and wave i of D/2 at theta^(2i/D): another order, which the layers above learn alike, and a longest
    wave a little shorter.
    """
    half = dim // 2
    speed = theta ** -(torch.arange(half, device=order.device, dtype=torch.float32) / max(half - 1, 1))
    angle = order[..., None].float() * speed
    waves = torch.cat((angle.sin(), angle.cos()), -1)
    return torch.nn.functional.pad(waves, (0, dim % 2))


def interpolate(table: Tensor, config: c.Grid, rows: int, columns: int) -> Tensor:
    """(config.rows*config.columns,D) -> (rows*columns,D), bicubic in float32; the table itself where sizes agree."""
    if (rows, columns) == (config.rows, config.columns):
        return table
    picture = table.float().unflatten(0, (config.rows, config.columns)).permute(2, 0, 1)[None]  # (1,D,R,C)
    picture = torch.nn.functional.interpolate(picture, (rows, columns), mode="bicubic", align_corners=False)
    return picture[0].permute(1, 2, 0).flatten(0, 1).to(table.dtype)


def buckets(config: c.RelativeBias, q: Layout, k: Layout, *, both: bool) -> Tensor:
    """(1|B,T,S) int64 number of the bucket of each distance (Raffel et al. 2020).

    Half of the buckets are for exact distances, half grow by logarithm up to `distance`. both: one set per side.
    """
    behind = (q.order[:, :, None] - k.order[:, None, :]).long()  # > 0: the key is behind
    count, start = config.buckets, 0
    if both:
        count //= 2
        start = (behind < 0) * count
        behind = behind.abs()
    behind = behind.clamp(min=0)
    exact = count // 2
    grown = torch.log(behind.clamp(min=1) / exact) / math.log(config.distance / exact) * (count - exact)
    return start + torch.where(behind < exact, behind, (exact + grown.long()).clamp(max=count - 1))


def slopes(heads: int) -> list[float]:
    """ALiBi's slopes: 2^(-8i/n) for the next lower power of two n, then every second one of twice as many."""
    power = 2 ** math.floor(math.log2(heads))
    first = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return first + [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (heads - power), 2)]


def alibi(heads: int, q: Layout, k: Layout) -> Tensor:
    """(1|B,H,T,S) minus slope times distance."""
    distance = (q.order[:, None, :, None] - k.order[:, None, None, :]).abs()
    return -torch.tensor(slopes(heads), device=distance.device)[:, None, None] * distance
