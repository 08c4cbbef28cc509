"""The run's vocabulary: every id that a model of this run can read or write, in named contiguous blocks.

    0    1    2     3 ..... 34   35 ........    .........   .............   .............   .............
    pad  end  mask  sentinels    one marker     text        label:answer    codes:image     codes:audio
                    (T5 spans)   per column     byte BPE    one id a value  the codec's     the codec's

A user's text only ever becomes ids of the text block, so it cannot hold a marker, an end or a code, whatever it says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weft.errors import ArrowError, DataError, nearest

SENTINELS = 32
FIRST_MARKER = 3 + SENTINELS


class Vocabulary:
    """Blocks of ids by name: "special", "marker", "text", "label:<column>", "codes:image", "codes:audio".

    columns  the columns that have a marker, in the order of their ids
    text     ids of the text codec (0: no text block)
    labels   label column -> number of values
    codes    "image" and "audio" -> size of the codebook
    """

    pad, end, mask = 0, 1, 2

    def __init__(
        self,
        columns: Sequence[str],
        text: int = 0,
        labels: Mapping[str, int] | None = None,
        codes: Mapping[str, int] | None = None,
    ) -> None:
        if len(set(columns)) != len(columns):
            raise ArrowError(f"a column stands twice among {', '.join(columns)}; each column has one marker")
        self.columns = tuple(columns)
        sizes = {"special": FIRST_MARKER, "marker": len(self.columns), "text": text}
        sizes |= {f"label:{name}": count for name, count in (labels or {}).items()}
        sizes |= {f"codes:{kind}": count for kind, count in (codes or {}).items()}
        self.blocks: dict[str, range] = {}
        start = 0
        for name, count in sizes.items():
            if count < 0:
                raise DataError(f"the block {name!r} has {count} ids; 0 or more was expected")
            if count:
                self.blocks[name] = range(start, start + count)
                start += count
        self.size = start
        self._markers = {name: FIRST_MARKER + index for index, name in enumerate(self.columns)}

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
        return 3 + index

    def place(self, token: int) -> tuple[str, int]:
        """Where an id belongs: its block's name and its number in the block. Raises DataError for an id outside."""
        for name, ids in self.blocks.items():
            if token in ids:
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
        count = lambda head: {name[len(head) :]: len(ids) for name, ids in self.blocks.items() if name.startswith(head)}
        return {
            "columns": list(self.columns),
            "text": len(self.blocks.get("text", ())),
            "labels": count("label:"),
            "codes": count("codes:"),
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Vocabulary:
        """The way back of `to_tree`."""
        return cls(tree["columns"], tree["text"], tree["labels"], tree["codes"])
