"""The run's vocabulary: every id that a model of this run can read or write, in named contiguous blocks.

    0    1    2     3 ..... 34   35 ........    .........   .............   .............   .............
    pad  end  mask  sentinels    one marker     text        label:answer    codes:image     codes:audio
                    (T5 spans)   per column     byte BPE    one id a value  the codec's     the codec's

A vocabulary grows by layers: over pretrained weights the text block is the first, with the ids it always had, and what
a run needs beyond it is appended. Ids that stand never move.

    text of the source ...... | pad end mask sentinels | markers | label:answer | codes:image
    0             its size - 1   appended by the run

A user's text only ever becomes ids of the text block, so it cannot hold a marker, an end or a code, whatever it says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weft.errors import ArrowError, DataError, nearest

SENTINELS = 32
FIRST_MARKER = 3 + SENTINELS
ROLES = ("system", "user", "assistant", "tool")  # who speaks in a conversation


@dataclass(frozen=True)
class Layer:
    """What was appended at one time: the arguments of `Vocabulary`, and whether the special ids are in it."""

    columns: tuple[str, ...] = ()
    text: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    special: bool = True
    roles: int = 0

    def sizes(self) -> dict[str, int]:
        """Its blocks and their sizes, in the order of their ids."""
        sizes = {"special": FIRST_MARKER if self.special else 0, "marker": len(self.columns), "text": self.text}
        sizes |= {f"label:{name}": count for name, count in self.labels.items()}
        sizes |= {f"codes:{kind}": count for kind, count in self.codes.items()}
        return sizes | {"role": self.roles}

    def tree(self) -> dict[str, Any]:
        """As plain JSON values; what is usual is left out."""
        tree: dict[str, Any] = {"columns": list(self.columns), "text": self.text}
        tree |= {"labels": dict(self.labels), "codes": dict(self.codes)}
        return tree | ({"roles": self.roles} if self.roles else {}) | ({} if self.special else {"special": False})


class Vocabulary:
    """Blocks of ids by name: "special", "marker", "text", "label:<column>", "codes:image", "codes:audio", "role".

    columns  the columns that have a marker, in the order of their ids
    text     ids of the text codec (0: no text block)
    labels   label column -> number of values
    codes    "image" and "audio" -> size of the codebook
    roles    ids for who speaks (`ROLES`), where a column holds conversations
    """

    def __init__(
        self,
        columns: Sequence[str],
        text: int = 0,
        labels: Mapping[str, int] | None = None,
        codes: Mapping[str, int] | None = None,
        roles: int = 0,
    ) -> None:
        self._lay((Layer(tuple(columns), text, dict(labels or {}), dict(codes or {}), roles=roles),))

    @classmethod
    def of(cls, layer: Layer) -> Vocabulary:
        """Of one layer."""
        vocabulary = cls.__new__(cls)
        vocabulary._lay((layer,))
        return vocabulary

    @classmethod
    def pretrained(cls, text: int, end: int | None = None) -> Vocabulary:
        """Of pretrained weights: `text` ids and nothing else. end: the one among them that ends a text."""
        vocabulary = cls.__new__(cls)
        vocabulary._lay((Layer(text=text, special=False),), end)
        return vocabulary

    def grown(self, layer: Layer) -> Vocabulary:
        """With a layer appended, of which what stands already is left out. Ids that stand do not move.

        A label whose number of values changed gets a block anew.
        """
        new = Layer(
            tuple(name for name in layer.columns if name not in self._markers),
            0 if "text" in self.blocks else layer.text,
            {k: n for k, n in layer.labels.items() if len(self.blocks.get(f"label:{k}", ())) != n},
            {k: n for k, n in layer.codes.items() if f"codes:{k}" not in self.blocks},
            "special" not in self.blocks,
            0 if "role" in self.blocks else layer.roles,
        )
        grown = Vocabulary.__new__(Vocabulary)
        grown._lay((*self.layers, new) if any(new.sizes().values()) else self.layers, self._end)
        return grown

    def _lay(self, layers: tuple[Layer, ...], end: int | None = None) -> None:
        """Put the layers' blocks side by side."""
        self.layers, self._end = layers, end
        self.columns = tuple(name for layer in layers for name in layer.columns)
        if len(set(self.columns)) != len(self.columns):
            raise ArrowError(f"a column stands twice among {', '.join(self.columns)}; each column has one marker")
        self.blocks: dict[str, range] = {}
        self._markers: dict[str, int] = {}
        start = 0
        for number, layer in enumerate(layers):
            for name, count in layer.sizes().items():
                if count < 0:
                    raise DataError(f"the block {name!r} has {count} ids; 0 or more was expected")
                if not count:
                    continue
                if name == "marker":
                    self._markers |= {column: start + i for i, column in enumerate(layer.columns)}
                if name in self.blocks:
                    self.blocks[f"{name}.{number}"] = self.blocks.pop(name)  # out of the way: it is not used any more
                self.blocks[name] = range(start, start + count)
                start += count
        self.size = start
        first = self.blocks["special"].start if "special" in self.blocks else 0
        self.pad, self.mask, self._first = first, first + 2, first
        self.end = first + 1 if end is None else end

    def block(self, name: str) -> range:
        """The ids of a block. Raises DataError for one that this run does not have."""
        if name not in self.blocks:
            raise DataError(f"the vocabulary has no block {name!r}.{nearest(name, self.blocks)}")
        return self.blocks[name]

    def marker(self, column: str) -> int:
        """The id that announces a column. Raises ArrowError for a column that no arrow of the run names."""
        if column not in self._markers:
            raise ArrowError(f"no arrow of this run names a column {column!r}.{nearest(column, self._markers)}")
        return self._markers[column]

    def sentinel(self, index: int) -> int:
        """The id that stands for the `index`-th hidden span (T5), 0 to 31."""
        if not 0 <= index < SENTINELS:
            raise DataError(f"sentinel {index} was asked for; there are {SENTINELS}, numbered from 0")
        return self._first + 3 + index

    def place(self, token: int) -> tuple[str, int]:
        """Where an id belongs: its block's name and its number in the block. Raises DataError for an id outside."""
        for name, ids in self.blocks.items():
            if token in ids:
                if name.startswith("marker"):
                    return "marker", next(i for i, c in enumerate(self.columns) if self._markers[c] == token)
                return name, token - ids.start
        raise DataError(f"id {token} is outside the vocabulary of {self.size} ids")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.to_tree() == other.to_tree()

    def __hash__(self) -> int:
        return hash((self.columns, self.size))

    def __repr__(self) -> str:
        return f"Vocabulary({self.size} ids: {', '.join(f'{name} {len(ids)}' for name, ids in self.blocks.items())})"

    def to_tree(self) -> dict[str, Any]:
        """As plain JSON values."""
        if len(self.layers) == 1 and self._end is None:
            return self.layers[0].tree()
        return {"layers": [layer.tree() for layer in self.layers], "end": self._end}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Vocabulary:
        """The way back of `to_tree`."""
        vocabulary = cls.__new__(cls)
        layers = tuple(
            Layer(
                tuple(one["columns"]), one["text"], dict(one["labels"]), dict(one["codes"]),
                one.get("special", True), one.get("roles", 0),
            )
            for one in tree.get("layers", [tree])
        )  # fmt: skip
        vocabulary._lay(layers, tree.get("end"))
        return vocabulary
