"""Texts -> vectors, for search and comparison: near in meaning, near in space.

    texts ── ids, [CLS] ... [SEP] ── encoder ── (B,T,D) ── mean over the real tokens ── unit length ── (B,D)

How a directory's vectors are pooled and whether they are normed stands in its modules.json and 1_Pooling/config.json
(Reimers & Gurevych 2019, Sentence-BERT); without those: the mean, to unit length.

Shape letters:  N texts  B rows of a batch  T tokens  D width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from weft.convert.text import TextModel, open_text
from weft.convert.tokenizer import read_json, read_text
from weft.core.pool import pool
from weft.errors import ConvertError, DataError, RecipeError
from weft.generate.text import lay_ids

TOKENS = 8192  # of a batch, padding included
POOLS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first", "pooling_mode_lasttoken": "last"}


@dataclass(frozen=True, eq=False)
class Embedder:
    """An opened model and how its vectors are made. longest: tokens of a text, its frame included."""

    source: TextModel
    longest: int
    pool: str = "mean"
    unit: bool = True

    @classmethod
    def open(cls, source: str | Path) -> Embedder:
        """Raises ConvertError for a source that has no texts, or pools in a way that weft does not have."""
        opened = open_text(source)
        if opened.model.kind not in ("encoder", "decoder"):
            raise ConvertError(f"{source} is a {opened.model.kind}: texts are embedded by an encoder, such as minilm.")
        folder = opened.path
        said = read_json(folder / "sentence_bert_config.json").get("max_seq_length") if folder.is_dir() else None
        longest = min(said, opened.context) if isinstance(said, int) and said > 2 else opened.context
        pooling, unit = pooling_of(folder)
        return cls(opened, longest, pooling, unit)

    @property
    def width(self) -> int:
        return self.source.model.config.topology.stack.dim  # pyright: ignore[reportAttributeAccessIssue]

    def ids(self, text: str) -> np.ndarray:
        """(T,) ids of a text with its frame."""
        return self.source.tokenizer.around(text)

    def embed(self, texts: Sequence[str], *, cut: bool = False) -> np.ndarray:
        """(N,D) float32. cut: read the beginning of a text that is too long; else it raises DataError."""
        rows = [self.fitting(self.ids(text), number, cut) for number, text in enumerate(texts)]
        out = np.zeros((len(rows), self.width), np.float32)
        for batch in batches([len(row) for row in rows]):
            out[batch] = self.vectors([rows[i] for i in batch])
        return out

    def fitting(self, ids: np.ndarray, number: int, cut: bool) -> np.ndarray:
        """The ids, if they are not too many; cut before what closes them."""
        if not len(ids):
            raise DataError(f"Text {number} (counted from 0) is empty: this model reads one token or more. Drop it.")
        if len(ids) <= self.longest:
            return ids
        if not cut:
            raise DataError(
                f"Text {number} (counted from 0) has {len(ids):,} tokens; this model reads {self.longest:,}. Split it, "
                "or let the end be cut off (cut=True, --cut)."
            )
        closing = len(self.source.tokenizer.frame[1])
        return np.concatenate([ids[: self.longest - closing], ids[len(ids) - closing :]])

    @torch.inference_mode()
    def vectors(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """(B,D) of a batch of ids."""
        tokens = lay_ids(rows, self.source.tokenizer.roles.get("pad", 0)).tokens
        hidden = self.source.model.hidden(tokens)  # (B,T,D)
        found = pool(hidden, tokens, self.pool).float()
        return (F.normalize(found, dim=-1) if self.unit else found).numpy()


def pooling_of(folder: Path) -> tuple[str, bool]:
    """How a directory's vectors are pooled, and whether they are made of unit length."""
    if not (folder / "modules.json").is_file():
        return "mean", True
    said = read_json(folder / "1_Pooling" / "config.json")
    chosen = [key for key, value in said.items() if key.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in POOLS:
        raise ConvertError(f"{folder} pools by {', '.join(chosen) or 'nothing'}; weft has {', '.join(POOLS)}.")
    return POOLS[chosen[0]], "Normalize" in read_text(folder / "modules.json")


def batches(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of texts, those of like length together, about TOKENS tokens to a batch."""
    out: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if out and (len(out[-1]) + 1) * lengths[out[-1][0]] <= TOKENS:
            out[-1].append(number)
        else:
            out.append([number])
    return out


def embed(source: str | Path | Embedder, texts: str | Sequence[str], *, cut: bool = False) -> np.ndarray:
    """Vectors of texts: `weft.embed("minilm", ["a cat", "a kitten"])` -> (2,384) float32. One text gives (384,).

    source  minilm, a model directory or a run with a text encoder
    cut     read only the beginning of a text that is too long for the model; else it raises DataError
    """
    embedder = source if isinstance(source, Embedder) else Embedder.open(source)
    if isinstance(texts, str):
        return embedder.embed([texts], cut=cut)[0]
    return embedder.embed(texts, cut=cut)


def embed_file(
    source: str | Path, path: str | Path, out: str | Path = "", *, cut: bool = False
) -> tuple[Path, tuple[int, int]]:
    """One vector for each line of a file, to an .npy of (lines, D) or a .jsonl of {"text", "vector"}.

    Returns where that is, and (lines, D).

    out  where to; "": the file's name with .npy. Raises DataError for a file that is no UTF-8 text, or empty.
    """
    path = Path(path)
    target = Path(out) if out else path.with_suffix(".npy")
    if target.suffix not in (".npy", ".jsonl"):
        raise RecipeError(f"{target} is neither .npy nor .jsonl.")
    if not target.absolute().parent.is_dir():
        raise RecipeError(f"{target.parent} is no folder: {target.name} cannot be written there. Give another --out.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text ({error}).") from error
    if not lines:
        raise DataError(f"{path} is empty: one text on each line was expected.")
    vectors = embed(source, lines, cut=cut)
    staged = target.with_name(f".{target.name}.new")
    if target.suffix == ".npy":
        with open(staged, "wb") as file:
            np.save(file, vectors)
    else:
        import json

        rows = zip(lines, vectors.tolist(), strict=True)
        with open(staged, "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": t, "vector": v}, ensure_ascii=False) + "\n" for t, v in rows)
    staged.replace(target)
    return target, (len(lines), vectors.shape[1])
