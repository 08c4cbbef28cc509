"""Inputs left out where it counts: in the steps of a training, of the arrows that draw, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from decoding_world import make_renderer

from weft.arrows.grammar import parse_all
from weft.arrows.resolve import resolve
from weft.data.loader import Loader
from weft.data.sources import open_table
from weft.errors import RecipeError
from weft.recipe import Recipe, TrainOptions, TrainRecipe

SHARE = 0.5
RNG = np.random.default_rng(0)
TEXTS = ["a red circle", "is it red?", "what colour is it?", "red"]
ROWS = [
    {"text": TEXTS[i % 4], "image": RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8), "answer": ("red", "no")[i % 2]}
    for i in range(48)
]


def load(*arrows: str, share: float = SHARE, kind: str = "decoder") -> Loader:
    table, parsed, renderer = open_table(ROWS), parse_all(arrows), make_renderer(arrows)
    recipe = Recipe(arrows=arrows, image=renderer.image, audio=renderer.audio)
    options = TrainOptions(condition_dropout=share)
    recipe = replace(recipe, train=TrainRecipe(tokens=256, length=64, options=options))
    resolutions = [resolve(arrow, renderer.columns, kind) for arrow in parsed]
    split = np.array(["train"] * 40 + ["validation"] * 8, dtype=object)
    return Loader(table, renderer, arrows=parsed, resolutions=resolutions, recipe=recipe, split=split)


def asked(loader: Loader, batches: list) -> dict[int, list[bool]]:
    """Arrow -> of each of its documents in these batches, whether its inputs stand there."""
    found: dict[int, list[bool]] = {}
    for batch in batches:
        given = batch.tokens if batch.source is None else batch.source
        words = loader.renderer.vocabulary.block("text")
        for row in range(len(batch.tokens.ids)):
            for document in set(batch.tokens.document[row].tolist()) - {0}:
                mine = batch.tokens.document[row] == document
                arrows = set(batch.arrow[row][mine].tolist()) - {-1}
                there = given.ids[row][given.document[row] == document]
                if batch.source is None:  # what stands before the first that is trained
                    first = int((batch.targets[row][mine] != -100).nonzero()[0])
                    there = there[:first]
                for arrow in arrows:
                    found.setdefault(arrow, []).append(bool(((there >= words.start) & (there < words.stop)).any()))
    return found


@pytest.mark.parametrize(
    ("arrows", "kind"),
    [
        (("text -> image",), "decoder"),
        (("text -> image", "text -> answer", "image -> text"), "decoder"),
        (("text -> image", "text -> answer"), "encoder-decoder"),
    ],
)
def test_a_share_of_the_drawn_documents_and_no_others(arrows: tuple[str, ...], kind: str) -> None:
    """`text -> answer` begins with the same words: it must neither lose them nor keep the drawing from losing them."""
    loader = load(*arrows, kind=kind)
    steps = [loader.step(number) for number in range(24)]
    found = asked(loader, [batch for step in steps for batch in step])
    drawn = found[0]
    assert 0.3 < 1 - np.mean(drawn) < 0.7, f"{len(drawn)} documents"
    for number, arrow in enumerate(arrows):
        if arrow == "text -> answer":
            assert all(found[number])
    again = loader.step(5)
    assert all((a.tokens.ids == b.tokens.ids).all() for a, b in zip(again, steps[5], strict=True)), "it repeats"
    if kind == "decoder":
        never = asked(loader, [batch for step in loader.evaluation("validation") for batch in step])
        assert all(never[0]), "what is measured is always asked"
    whole = load(*arrows, share=0.0, kind=kind)
    assert all(asked(whole, [batch for number in range(24) for batch in whole.step(number)])[0]), "control"


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"condition_dropout=0.5 needs an arrow that draws or speaks"):
        load("image -> text")
