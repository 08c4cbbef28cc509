"""`weft search`: the passages of a folder of texts that are nearest in meaning to a question.

    folder ── text files ── passages (paragraphs that fit the model) ── vectors ──┐
                                                                                  ├── cosine ── the best
    question ─────────────────────────────────────────────────────── vector ──────┘

A file's vectors are kept under the hash of its content and of the model: a second search embeds only what has changed.

Shape letters:  P passages of a file  D width
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weft.errors import DataError, RecipeError
from weft.generate.embed import Embedder

LARGEST = 1 << 24  # bytes of a text file
SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n")


@dataclass(frozen=True)
class Passage:
    """A piece of a file: its text, and the lines that it stands on, counted from 1."""

    text: str
    first: int
    last: int


@dataclass(frozen=True)
class Hit:
    """A passage found. score: the cosine of its vector and the question's, 1 at most."""

    path: Path
    passage: Passage
    score: float

    def as_dict(self) -> dict[str, object]:
        p = self.passage
        return {"path": str(self.path), "first": p.first, "last": p.last, "score": round(self.score, 4), "text": p.text}


@dataclass(frozen=True)
class Found:
    """What a search found: hits, the best first; how many files and passages there were; files that are no text."""

    hits: list[Hit]
    files: int
    passages: int
    embedded: int
    left_out: list[Path]

    def __str__(self) -> str:
        return shown(self)

    def as_dict(self) -> dict[str, object]:
        hits = [hit.as_dict() for hit in self.hits]
        counts = {"files": self.files, "passages": self.passages, "embedded": self.embedded}
        return {"hits": hits, **counts, "left_out": [str(path) for path in self.left_out]}


def search(
    source: str | Path | Embedder, query: str, folder: str | Path, *, top: int = 5, index: str | Path = ""
) -> Found:
    """The passages of the text files in `folder` that are nearest to `query`.

    source  minilm, or another text encoder
    index   where vectors are kept; "": in the user's cache directory
    Raises DataError for a folder without texts, and a question that is too long for the model.
    """
    if top < 1:
        raise RecipeError(f"top={top}: one hit or more can be asked for.")
    if not query.strip():
        raise DataError("The question is empty.")
    embedder = source if isinstance(source, Embedder) else Embedder.open(source)
    paths, left_out = text_files(Path(folder))
    if not paths:
        raise DataError(f"{folder} holds no text file.")
    keep = Path(index) if index else cache_folder()
    mark = fingerprint(embedder)
    hits: list[Hit] = []
    passages = embedded = 0
    question = embedder.embed([query])[0]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        pieces, vectors, new = indexed(embedder, text, keep / mark)
        passages, embedded = passages + len(pieces), embedded + new
        scores = vectors @ question
        best = np.argsort(-scores, kind="stable")[:top]
        hits += [Hit(path, pieces[i], float(scores[i])) for i in best]
    hits.sort(key=lambda hit: -hit.score)
    return Found(hits[:top], len(paths), passages, embedded, left_out)


def text_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Text files below a folder, and those that are none: not UTF-8, zero bytes, too large. Hidden ones are neither."""
    if folder.is_file():
        folder, names = folder.parent, [folder]
    elif folder.is_dir():
        names = sorted(folder.rglob("*"))
    else:
        raise DataError(f"{folder} is neither a folder nor a file.")
    good, bad = [], []
    for path in names:
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        (good if is_text(path) else bad).append(path)
    return good, bad


def is_text(path: Path) -> bool:
    if path.stat().st_size > LARGEST:
        return False
    data = path.read_bytes()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return bool(data.strip()) and b"\0" not in data


def indexed(embedder: Embedder, text: str, keep: Path) -> tuple[list[Passage], np.ndarray, int]:
    """Passages of a text, their vectors (P,D), and how many had to be embedded now."""
    pieces = list(passages(text, embedder))
    place = keep / (hashlib.blake2b(text.encode(), digest_size=16).hexdigest() + ".npz")
    known = kept(place, len(pieces), embedder.width)
    if known is not None:
        return pieces, known, 0
    vectors = embedder.embed([piece.text for piece in pieces])
    if not embedder.unit:
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    place.parent.mkdir(parents=True, exist_ok=True)
    staged = place.with_name(f".{os.getpid()}.{place.name}")
    with open(staged, "wb") as file:
        np.savez(file, vectors=vectors)
    staged.replace(place)
    return pieces, vectors, len(pieces)


def kept(place: Path, count: int, width: int) -> np.ndarray | None:
    """The vectors of an earlier search; None if there are none, or the file is damaged."""
    if not place.is_file():
        return None
    try:
        with np.load(place, allow_pickle=False) as file:
            vectors = file["vectors"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None  # embedded anew, and written over
    return vectors if vectors.shape == (count, width) and vectors.dtype == np.float32 else None


def passages(text: str, embedder: Embedder) -> Iterator[Passage]:
    """Paragraphs, joined while they fit into the model, split at sentences and then at words where one does not."""
    room = embedder.longest - len(embedder.ids(""))
    size = lambda piece: len(embedder.source.tokenizer.codec.encode(piece))
    parts: list[tuple[str, int, int]] = []  # text, first and last line
    line = 1
    for paragraph in re.split(r"(\n\s*\n)", text):
        if paragraph.strip():
            parts += fitting(paragraph, line, room, size)
        line += paragraph.count("\n")
    held: tuple[str, int, int, int] | None = None
    for piece, first, last in parts:
        tokens = size(piece)
        if held is not None and held[3] + tokens + 2 <= room:
            held = (f"{held[0]}\n\n{piece}", held[1], last, held[3] + tokens + 2)
            continue
        if held is not None:
            yield Passage(*held[:3])
        held = (piece, first, last, tokens)
    if held is not None:
        yield Passage(*held[:3])


def fitting(paragraph: str, line: int, room: int, size: Callable[[str], int]) -> list[tuple[str, int, int]]:
    """(text, first line, last line) of pieces of a paragraph that fit."""
    lead = len(paragraph) - len(paragraph.lstrip())
    line, paragraph = line + paragraph[:lead].count("\n"), paragraph.strip()
    if size(paragraph) <= room:
        return [(paragraph, line, line + paragraph.count("\n"))]
    ends = [match.end() for match in SENTENCE.finditer(paragraph)]
    middle = len(paragraph) // 2
    if not ends or (len(ends) == 1 and ends[0] >= len(paragraph)):
        ends = [match.end() for match in re.finditer(r"\s+", paragraph)] or [middle]
    cut = min((end for end in ends if 0 < end < len(paragraph)), key=lambda end: abs(end - middle), default=middle)
    head, tail = paragraph[:cut], paragraph[cut:]
    return fitting(head, line, room, size) + fitting(tail, line + head.count("\n"), room, size)


def fingerprint(embedder: Embedder) -> str:
    """A name for vectors of this model: its weights, and how its passages are cut and pooled."""
    digest = hashlib.blake2b(f"{embedder.pool} {embedder.longest} 1".encode(), digest_size=12)
    for parameter in embedder.source.model.parameters():
        digest.update(np.ascontiguousarray(parameter.detach().float().numpy()).data)
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where vectors are kept unless it is said: the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weft" / "search"


def shown(found: Found, width: int = 100) -> str:
    """Hits for people: score, place, the beginning of the passage."""
    lines = []
    for hit in found.hits:
        text = " ".join(hit.passage.text.split())
        where = f"{hit.path}:{hit.passage.first}"
        lines += [f"{hit.score:.3f}  {where}", f"       {text[:width]}{'…' if len(text) > width else ''}"]
    note = f"{found.passages:,} passages of {found.files:,} files, {found.embedded:,} embedded now"
    if found.left_out:
        note += f"; {len(found.left_out)} files are no text: {', '.join(str(p) for p in found.left_out[:3])}"
    return "\n".join([*lines, note])
