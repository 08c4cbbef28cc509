"""SentencePiece: its .model file read by hand, and its two models built from their pieces.

    "the cat"  ->  normalised, spaces to ▁  ->  ▁the▁cat  ->  unigram: the likeliest pieces      ->  ids
                                                              bpe: the best pair joined, again

The file is a protocol buffer of three parts: pieces (text, score, type), how it was trained, how texts are normalised.
Fifty lines read it, so nothing has to be installed. Sources: Kudo & Richardson 2018 (SentencePiece), Kudo 2018
(unigram); sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from weft.errors import ConvertError

SPACE = "▁"  # U+2581
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # types of pieces, in a GGUF as well
UNIGRAM, BPE = 1, 2
LARGEST = 1 << 28  # bytes of a .model


@dataclass(frozen=True)
class Piece:
    text: str
    score: float = 0.0
    type: int = NORMAL


@dataclass(frozen=True)
class Spec:
    """What a SentencePiece model is. charsmap: the compiled normalisation; prefix: a space before the first word."""

    pieces: Sequence[Piece]
    model: int = UNIGRAM
    charsmap: bytes = b""
    prefix: bool = True
    squeeze: bool = True
    roles: dict[str, int] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------ the file


def fields(data: bytes, path: Path) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a message: a number, or the bytes of a text, a message or a float."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while at < len(data) and shift < 64:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ConvertError(f"{path} is no SentencePiece model, or it is damaged (at byte {at:,} of a part).")

    while at < len(data):
        key = varint()
        wire = key & 7
        if wire == 0:
            yield key >> 3, varint()
            continue
        length = {1: 8, 5: 4}.get(wire)
        if length is None:
            if wire != 2:
                raise ConvertError(f"{path} is no SentencePiece model, or it is damaged (wire type {wire}).")
            length = varint()
        if length > len(data) - at:
            raise ConvertError(
                f"{path} is cut off: a field of {length:,} bytes begins {len(data) - at:,} before its end."
            )
        yield key >> 3, data[at : at + length]
        at += length


def read(path: Path) -> Spec:
    """The Spec of a .model file. Raises ConvertError for one that is damaged or of another model."""
    if path.stat().st_size > LARGEST:
        raise ConvertError(f"{path} has {path.stat().st_size:,} bytes; a SentencePiece model has {LARGEST:,} at most.")
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normaliser: dict[int, int | bytes] = {}
    for number, value in fields(path.read_bytes(), path):
        if number in (1, 2, 3) and not isinstance(value, bytes):
            raise ConvertError(f"{path} is no SentencePiece model, or it is damaged (part {number}).")
        if number == 1:
            pieces.append(read_piece(value, path))  # pyright: ignore[reportArgumentType]
        elif number in (2, 3):
            (trainer if number == 2 else normaliser).update(fields(value, path))  # pyright: ignore
    model = int(trainer.get(3, UNIGRAM))
    if not pieces or model not in (UNIGRAM, BPE):
        raise ConvertError(
            f"{path} holds {len(pieces)} pieces of model type {model}; unigram (1) and bpe (2) are read."
        )
    roles = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}
    numbers = {role: signed(int(trainer.get(number, default))) for role, (number, default) in roles.items()}
    charsmap = normaliser.get(2, b"")
    return Spec(
        pieces,
        model,
        charsmap if isinstance(charsmap, bytes) else b"",
        prefix=bool(normaliser.get(3, True)),
        squeeze=bool(normaliser.get(4, True)),
        roles={role: number for role, number in numbers.items() if 0 <= number < len(pieces)},
    )


def signed(value: int) -> int:
    """A 32-bit number as it was meant: -1 is stored as 2^64 - 1."""
    return value - (1 << 64) if value >= 1 << 63 else value


def read_piece(data: bytes, path: Path) -> Piece:
    found = dict(fields(data, path))
    text, score = found.get(1, b""), found.get(2, bytes(4))
    if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4:
        raise ConvertError(f"{path} is no SentencePiece model, or it is damaged (a piece).")
    return Piece(text.decode("utf-8", "replace"), struct.unpack("<f", score)[0], int(found.get(3, NORMAL)))


# ------------------------------------------------------------------------------------------------ the tokenizer


def build(spec: Spec) -> Tokenizer:
    """The Spec as a tokenizer that cuts as SentencePiece does. Raises ConvertError for pieces that make none."""
    texts = [piece.text for piece in spec.pieces]
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise ConvertError(f"The tokenizer holds the piece {twice!r} twice.")
    unknown = next((i for i, piece in enumerate(spec.pieces) if piece.type == UNKNOWN), None)
    bytewise = any(piece.type == BYTE for piece in spec.pieces)
    if spec.model == UNIGRAM:
        scored = [(piece.text, float(piece.score)) for piece in spec.pieces]
        tokenizer = Tokenizer(models.Unigram(scored, unk_id=unknown, byte_fallback=bytewise))
    else:
        vocabulary = {text: i for i, text in enumerate(texts)}
        tokenizer = Tokenizer(
            models.BPE(
                vocabulary,
                merges(spec.pieces),
                unk_token=None if unknown is None else texts[unknown],
                fuse_unk=True,
                byte_fallback=bytewise,
            )
        )
    tokenizer.normalizer = normalizers.Sequence(normal(spec))
    if all(SPACE not in text[1:] for text in texts):  # no piece reaches over a space: words can be cut one by one
        tokenizer.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    # The decoder drops the space that was put before the first word.
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if spec.prefix else parts)
    mark(tokenizer, [(piece.text, piece.type) for piece in spec.pieces])
    return tokenizer


def normal(spec: Spec) -> list[normalizers.Normalizer]:
    """The steps before cutting."""
    steps: list[normalizers.Normalizer] = []
    if spec.charsmap:
        try:
            steps.append(normalizers.Precompiled(spec.charsmap))
        except Exception as error:  # the library raises plain Exception
            raise ConvertError(f"The tokenizer's table of normalisation cannot be read ({error}).") from error
    if spec.squeeze:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.prefix:
        steps.append(normalizers.Prepend(SPACE))
    return [*steps, normalizers.Replace(" ", SPACE)]


def mark(tokenizer: Tokenizer, typed: Sequence[tuple[str, int]]) -> None:
    """Tell the tokenizer which of its texts are control tokens, and which a user may write as they are."""
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t, kind in typed if kind in (CONTROL, UNKNOWN)]
    )
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, kind in typed if kind == USER])


def merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """The pairs that BPE joins, best first: every cut of a piece into two others, by the piece's score."""
    plain = {piece.text: i for i, piece in enumerate(pieces) if piece.type == NORMAL}
    found = []
    for text, i in plain.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in plain and right in plain:
                found.append((-pieces[i].score, plain[left], plain[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]
