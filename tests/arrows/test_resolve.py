"""Every arrow on every kind of model resolves to one thing, or is refused with what would do."""

from __future__ import annotations

import pytest

from weft.arrows.grammar import parse
from weft.arrows.resolve import KINDS, Resolution, describe, resolve
from weft.arrows.types import Audio, Image, Label, Text
from weft.errors import ArrowError

TYPES = {"image": Image(), "speech": Audio(), "text": Text(), "caption": Text(), "answer": Label(("no", "yes"))}


@pytest.mark.parametrize(
    ("arrow", "kind", "objective", "head", "decoder", "metric"),
    [
        ("-> text", "decoder", "next", "language", "text, until end", "bits per byte"),
        ("image -> caption", "decoder", "next", "language", "text, until end", "exact match"),
        ("speech -> caption", "decoder", "next", "language", "text, until end", "word error"),
        ("image, speech -> caption", "decoder", "next", "language", "text, until end", "exact match"),
        ("image -> answer", "decoder", "next", "language", "one of 2 labels", "accuracy"),
        ("caption -> image", "decoder", "next", "language", "image codes", "judge"),
        ("text -> speech", "decoder", "next", "language", "audio codes, until end", "judge"),
        ("-> image", "decoder", "next", "language", "image codes", "bits per token"),
        ("~text", "encoder", "masked", "language", "likeliest token at each hidden place", "accuracy"),
        ("text -> answer", "encoder", "classify", "label:answer", "one of 2 labels", "accuracy"),
        ("image -> answer", "encoder", "classify", "label:answer", "one of 2 labels", "accuracy"),
        ("text -> caption", "encoder-decoder", "seq2seq", "language", "text, until end", "exact match"),
        ("text -> answer", "encoder-decoder", "seq2seq", "language", "one of 2 labels", "accuracy"),
        ("~text", "encoder-decoder", "seq2seq", "language", "hidden spans, until end", "accuracy"),
        ("image <-> caption", "dual", "contrastive", "", "nearest", "recall@1"),
    ],
)
def test_resolutions(arrow: str, kind: str, objective: str, head: str, decoder: str, metric: str) -> None:
    assert resolve(parse(arrow), TYPES, kind) == Resolution(objective, head, decoder, metric, arrow)


@pytest.mark.parametrize(
    ("arrow", "kind", "told"),
    [
        ("~text", "decoder", "'~text' fills in hidden tokens, and a decoder model is not made for that. "
                             "Take an encoder model (bert, vit, longformer, cnn, birnn) or an encoder-decoder model"),
        ("image <-> text", "decoder", "brings two sides close, and a decoder model has one side. "
                                      "Take a dual model (clip, siglip)"),
        ("text -> caption", "encoder", "an encoder model writes labels only. Take a decoder model "
                                       "(weft, gpt, llama, llava, smolvlm, dalle, rnn, ngram, hmm) or an encoder"),
        ("text -> caption", "encoder", "or an encoder-decoder model (t5, whisper), or say 'caption:la"),
        ("text -> image", "encoder", "writes image, and an encoder model writes labels only"),
        ("-> text", "encoder", "writes a column from nothing, and an encoder model cannot"),
        ("-> text", "encoder-decoder", "Take a decoder model"),
        ("image <-> text", "encoder-decoder", "a dual model (clip, siglip)"),
        ("text -> answer", "dual", "writes a column, and a dual model writes none"),
        ("~image", "encoder", "only text can be filled in, and column 'image' is image"),
        ("~answer", "encoder", "column 'answer' is label"),
        ("-> text", "decodr", "no kind of model. Did you mean 'decoder'?"),
    ],
)  # fmt: skip
def test_refusals(arrow: str, kind: str, told: str) -> None:
    with pytest.raises(ArrowError) as caught:
        resolve(parse(arrow), TYPES, kind)
    assert told in str(caught.value)


def test_rows_of_the_table() -> None:
    rows = describe(
        [resolve(parse("2* image -> answer"), TYPES, "decoder"), resolve(parse("image <-> text"), TYPES, "dual")]
    )
    assert [list(row) for row in rows] == [["arrow", "objective", "head", "decoder", "metric"]] * 2
    assert rows[0]["arrow"] == "2* image -> answer" and rows[1]["head"] == "–"


def test_the_families_named_in_messages_are_of_that_kind() -> None:
    families = pytest.importorskip("weft.families").FAMILIES
    named = {name: kind for kind, names in KINDS.items() for name in names.split(", ")}
    assert named == {name: family.kind for name, family in families.items()}
