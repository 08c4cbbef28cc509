"""Blocks of numbers as ggml stores them, and the way back to float32.

Each format is a row of blocks of `size` numbers in `bytes` bytes. A number is q * scale (+ offset):

    Q8_0   f16 scale | 32 x int8                                               q * d
    Q4_0   f16 scale | 16 x (low, high nibble)                                 (q - 8) * d
    Q4_1   f16 scale | f16 offset | 16 x nibbles                               q * d + m
    Q5_0   f16 scale | 32 fifth bits | 16 x nibbles                            (q - 16) * d
    Q4_K   f16 d | f16 m | 8 x (6-bit scale, 6-bit offset) | 128 x nibbles     q * (d * s) - m * o     256 numbers
    Q6_K   128 x nibbles | 64 x 2 high bits | 16 x int8 scale | f16 d          (q - 32) * (d * s)      256 numbers

Source: the functions dequantize_row_* of ggml (ggml-quants.c), which this agrees with number for number.

Shape letters:  N blocks
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Blocks = np.ndarray  # (N, bytes of a block) uint8
PIECE = 1 << 16  # blocks turned at once: the numbers between stay in the processor's cache


@dataclass(frozen=True)
class Kind:
    """A number format: `size` numbers stand in `bytes` bytes; `floats` makes (N, size) float32 of (N, bytes) uint8."""

    number: int
    name: str
    size: int
    bytes: int
    floats: Callable[[Blocks], np.ndarray]


def half(blocks: Blocks, start: int, count: int = 1) -> np.ndarray:
    """(N,count) float32 of the float16 that begin at byte `start`."""
    return np.ascontiguousarray(blocks[:, start : start + 2 * count]).view("<f2").astype(np.float32)


def nibbles(packed: np.ndarray) -> np.ndarray:
    """(N,...,K) bytes -> (N,...,2K): all low halves, then all high ones."""
    return np.concatenate((packed & 15, packed >> 4), -1)


def f32(blocks: Blocks) -> np.ndarray:
    return blocks.view("<f4")


def f16(blocks: Blocks) -> np.ndarray:
    return blocks.view("<f2").astype(np.float32)


def bf16(blocks: Blocks) -> np.ndarray:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def q8_0(blocks: Blocks) -> np.ndarray:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * half(blocks, 0)


def q4_0(blocks: Blocks) -> np.ndarray:
    return (nibbles(blocks[:, 2:]).astype(np.float32) - 8) * half(blocks, 0)


def q4_1(blocks: Blocks) -> np.ndarray:
    return nibbles(blocks[:, 4:]).astype(np.float32) * half(blocks, 0) + half(blocks, 2)


def q5_0(blocks: Blocks) -> np.ndarray:
    bits = np.ascontiguousarray(blocks[:, 2:6]).view("<u4")  # (N,1): the fifth bit of number j is bit j
    fifth = ((bits >> np.arange(32, dtype=np.uint32)) & 1).astype(np.uint8) << 4
    return ((nibbles(blocks[:, 6:]) | fifth).astype(np.float32) - 16) * half(blocks, 0)


def q4_k(blocks: Blocks) -> np.ndarray:
    scales, offsets = six_bits(blocks[:, 4:16])  # (N,8) twice, of groups of 32
    d, m = half(blocks, 0) * scales, half(blocks, 2) * offsets
    # 4 x 32 bytes; each 32 hold one group in their low halves and the next one in their high halves
    q = nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32).astype(np.float32)
    return (q * d[:, :, None] - m[:, :, None]).reshape(-1, 256)


def six_bits(packed: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """(N,12) bytes -> 8 scales and 8 offsets, (N,8) float32 each.

    The first four of each lie in the low six bits of bytes 0-3 and 4-7; of the others the low four bits lie in bytes
    8-11 (scales low, offsets high) and the high two on top of the first four.
    """
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate((first & 63, (rest & 15) | (first >> 6 << 4)), 1)
    offsets = np.concatenate((second & 63, (rest >> 4) | (second >> 6 << 4)), 1)
    return scales.astype(np.float32), offsets.astype(np.float32)


def q6_k(blocks: Blocks) -> np.ndarray:
    low = blocks[:, :128].reshape(-1, 2, 64)  # two halves of 128 numbers, each 64 bytes of nibbles,
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32)  # and 32 bytes of four times two bits
    two = (high >> np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]) & 3  # (N,2,4,32)
    q = nibbles(low).reshape(-1, 2, 4, 32) | (two << 4)
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32) * half(blocks, 208)  # (N,16), of groups of 16
    return ((q.astype(np.float32) - 32).reshape(-1, 16, 16) * scales[:, :, None]).reshape(-1, 256)


KINDS: dict[int, Kind] = {
    kind.number: kind
    for kind in (
        Kind(0, "F32", 1, 4, f32),
        Kind(1, "F16", 1, 2, f16),
        Kind(30, "BF16", 1, 2, bf16),
        Kind(8, "Q8_0", 32, 34, q8_0),
        Kind(2, "Q4_0", 32, 18, q4_0),
        Kind(3, "Q4_1", 32, 20, q4_1),
        Kind(6, "Q5_0", 32, 22, q5_0),
        Kind(12, "Q4_K", 256, 144, q4_k),
        Kind(14, "Q6_K", 256, 210, q6_k),
    )
}
NAMED: dict[str, Kind] = {kind.name: kind for kind in KINDS.values()}

# What else a file may hold, to say what it is (enum ggml_type).
OTHERS = {
    7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64",
    28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


def dequantise(raw: np.ndarray, kind: Kind) -> np.ndarray:
    """(bytes,) uint8 of whole blocks -> (numbers,) float32, writable and its own memory."""
    blocks = raw.reshape(-1, kind.bytes)
    out = np.empty((len(blocks), kind.size), np.float32)
    piece = max(1, PIECE // kind.size) * 32
    for start in range(0, len(blocks), piece):
        out[start : start + piece] = kind.floats(np.ascontiguousarray(blocks[start : start + piece]))
    return out.reshape(-1)


def quantise(values: np.ndarray, kind: Kind) -> np.ndarray:
    """float32 -> (bytes,) uint8. F32, F16 and Q8_0: what `weft export` writes. Numbers divide into blocks."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1, kind.size)
    if kind.name == "F32":
        return flat.astype("<f4").view(np.uint8).reshape(-1)
    if kind.name == "F16":
        return flat.astype("<f2").view(np.uint8).reshape(-1)
    if kind.name != "Q8_0":
        raise ValueError(f"weft writes {', '.join(WRITES)}, not {kind.name}")
    scale = (np.abs(flat).max(1, keepdims=True) / 127).astype(np.float32)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    q = flat * inverse
    q = np.trunc(q + np.copysign(np.float32(0.5), q)).astype(np.int8)  # halves away from zero, as C's roundf
    return np.concatenate((scale.astype("<f2").view(np.uint8), q.view(np.uint8)), 1).reshape(-1)


WRITES = ("F32", "F16", "Q8_0")
