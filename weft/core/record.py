"""A recorder keeps what the layers attended to. It is an argument: nothing is stored on a module."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class Recorder:
    """`weights[(stack, layer, "self" | "cross")]` is (B,H,T,S), each row of it sums to 1."""

    def __init__(self) -> None:
        self.weights: dict[tuple[str, int, str], Tensor] = {}
        self.stack = ""

    def within(self, stack: str) -> Recorder:
        """What comes next is of `stack` ("", "encoder", "decoder", "left", "right", or an encoder's kind)."""
        self.stack = stack
        return self

    def add(self, layer: int, part: str, weights: Tensor) -> None:
        self.weights[(self.stack, layer, part)] = weights.detach()

    def overlay(self, layer: int, put: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Rows of "self" computed apart, for global tokens, come into their places: `put` (B,T,..), (B,G,..)."""
        apart = self.weights.pop((self.stack, layer, "globals"))  # (B,H,G,S)
        whole = self.weights[(self.stack, layer, "self")]
        self.weights[(self.stack, layer, "self")] = put(whole.transpose(1, 2), apart.transpose(1, 2)).transpose(1, 2)
