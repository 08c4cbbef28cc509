"""The loader with the run's own renderer: real pictures, real sounds, real text; planned lengths are true lengths."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from weft.arrows.grammar import parse_all
from weft.arrows.render import Renderer
from weft.arrows.resolve import resolve
from weft.arrows.types import Label, guess
from weft.arrows.vocabulary import Vocabulary
from weft.data.loader import Loader
from weft.data.sources import open_table
from weft.errors import DataError
from weft.modalities.text import TextCodec
from weft.recipe import AudioRecipe, ImageRecipe, Recipe, TrainOptions, TrainRecipe

ARROWS = ("image, question -> answer", "image, sound -> answer", "sound -> question", "question -> image", "~question")


class Codec:
    """Stands for a trained one: 16 codes a picture."""

    size, encoded = 32, 0

    def encode(self, items):
        self.encoded += len(items)
        return [np.full(16, int(item.mean()) % 32) for item in items]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    lines = ["image,question,sound,answer"]
    for n in range(12):
        Image.fromarray(rng.integers(0, 255, (20 + n, 40, 3), dtype=np.uint8)).save(folder / f"{n}.png")
        soundfile.write(folder / f"{n}.wav", rng.standard_normal(4000 + 900 * n).astype(np.float32) * 0.1, 16000)
        lines += [f"{n}.png,is it number {q} or {n}?,{n}.wav,{'yes' if q else 'no'}" for q in range(3)]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def load(folder, *arrows: str, kind: str = "decoder", **changes) -> Loader:
    table, parsed = open_table(folder), parse_all(arrows)
    columns = list(dict.fromkeys(name for arrow in parsed for name in arrow.columns))
    types = guess(
        table, {"answer": "label", "question": "text"} if "answer" in columns else {"question": "text"}, columns
    )
    text = TextCodec.train([str(cell) for cell in table.column("question")])
    codecs = {"image": Codec()} if any(arrow.output == "image" and arrow.kind == "produce" for arrow in parsed) else {}
    labels = {name: len(found.values) for name, found in types.items() if isinstance(found, Label)}
    words = Vocabulary(columns, text.size, labels, {name: codec.size for name, codec in codecs.items()})
    recipe = Recipe(arrows=arrows, image=ImageRecipe(size=32, codes=16), audio=AudioRecipe(stack=4))
    recipe = replace(
        recipe, train=TrainRecipe(tokens=1024, length=128, options=TrainOptions(skip_share=0.2)), **changes
    )
    renderer = Renderer(recipe, types, parsed, words, text, codecs)
    resolutions = [resolve(arrow, types, kind) for arrow in parsed]
    split = np.array(["train"] * len(table), dtype=object)
    return Loader(table, renderer, arrows=parsed, resolutions=resolutions, recipe=recipe, split=split)


@pytest.mark.parametrize(
    ("arrow", "kind"),
    [(arrow, "decoder") for arrow in ARROWS[:4]]
    + [("image, question -> answer", "encoder"), ("~question", "encoder"), ("~question", "encoder-decoder")]
    + [("image, question -> answer", "encoder-decoder"), ("image <-> question", "dual")],
)
def test_planned_lengths_are_the_true_ones(folder, arrow, kind):
    loader = load(folder, arrow, kind=kind)
    plan = loader.round(0)
    real = sum(b.real for step in range(plan.steps) for b in loader.step(step))
    assert real == plan.tokens, "tokens counted from headers and tokens made"
    assert not loader.skipped


def test_sharing_saves_what_it_should(folder):
    loader = load(folder, *ARROWS[:2])
    (batch,) = loader.step(0)
    kinds = {media.kind: media for media in batch.tokens.media}
    epochs = loader.round(0).epochs
    documents = sum(len(doc.samples) > 0 for row in loader.round(0).rows[0] for doc in row) / epochs
    assert documents < 2 * 36 / 3, "the six samples of a picture stand in fewer documents than samples"
    assert set(kinds) == {"image", "audio"} and kinds["image"].values.shape[1] == 192
    filled = torch.zeros(batch.tokens.ids.numel(), dtype=torch.bool)
    for media in kinds.values():
        assert not filled[media.at].any(), "no place is filled twice"
        filled[media.at] = True
    assert torch.equal(filled, batch.tokens.span.flatten() > 0), "spans are where media are"


def test_codes_are_made_ahead_and_once(folder):
    loader = load(folder, "question -> image")
    loader.round(0)
    codec = loader.renderer.codecs["image"]
    assert codec.encoded == 12, "each picture once, at planning"
    for step in range(loader.round(0).steps):
        loader.step(step)
    assert codec.encoded == 12


def test_augmented_pictures_move_by_epoch_and_come_back_at_resume(folder):
    image = ImageRecipe(size=32, codes=16, augment=0.2)
    loader = load(folder, *ARROWS[:2], image=image)
    plain = load(folder, *ARROWS[:2])
    epochs = loader.round(0).epochs
    per_epoch = loader.round(0).steps // epochs
    assert epochs > 2 and per_epoch >= 1
    first, later = loader.step(0), loader.step(2 * per_epoch)
    assert not torch.equal(first[0].tokens.media[-1].values, plain.step(0)[0].tokens.media[-1].values), "moved"
    again = load(folder, *ARROWS[:2], image=image).step(2 * per_epoch)
    assert torch.equal(later[0].tokens.media[-1].values, again[0].tokens.media[-1].values), "the same after a resume"
    assert torch.equal(first[0].tokens.media[-1].values, loader.step(0)[0].tokens.media[-1].values), "and going back"
    held = next(iter(loader.evaluation("train")))[0].tokens
    assert torch.equal(held.media[-1].values, next(iter(plain.evaluation("train")))[0].tokens.media[-1].values), (
        "never moved in evaluation"
    )


def test_broken_files_are_named_and_bear_no_loss(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "3.png").write_bytes((folder / "3.png").read_bytes()[:200])  # the header is whole
    (tmp_path / "copy" / "5.wav").write_bytes(b"no sound at all")
    loader = load(tmp_path / "copy", *ARROWS[:2])
    for step in range(loader.round(0).steps):
        loader.step(step)
    found = {(skip.row // 3, skip.arrow) for skip in loader.skipped}
    assert found == {(3, ARROWS[0]), (3, ARROWS[1]), (5, ARROWS[1])}, "the sound's row still answers the typed question"
    assert any("3.png" in skip.what and "row 9" in skip.reason for skip in loader.skipped)
    (tmp_path / "copy" / "7.png").unlink()
    (tmp_path / "copy" / "8.png").unlink()
    worse = load(tmp_path / "copy", *ARROWS[:2])
    with pytest.raises(DataError, match=r"of 36 rows cannot be used, more than the allowed 20.00%"):
        list(zip(range(100), worse.iterate(), strict=False))


def test_a_small_memory_changes_nothing(folder):
    """With room for one picture everything is made anew each time, to the same bits."""
    roomy, tight = load(folder, *ARROWS[:3]), load(folder, *ARROWS[:3])
    tight.assembler.budget = 10_000
    for step in (0, 3, 1):
        for one, two in zip(roomy.step(step), tight.step(step), strict=True):
            assert torch.equal(one.tokens.ids, two.tokens.ids) and torch.equal(one.targets, two.targets)
            assert all(map(torch.equal, [m.values for m in one.tokens.media], [m.values for m in two.tokens.media]))


def test_an_epoch_that_moves_media_renders_nothing_anew(folder):
    loader = load(folder, ARROWS[0], "question -> answer", image=ImageRecipe(size=32, codes=16, augment=0.2))
    loader.split[-6:] = "validation"
    made: list[tuple] = []
    plain = loader.assembler.render
    loader.assembler.render = lambda *given: made.append(given) or plain(*given)
    first = loader.step(0)
    list(loader.evaluation())
    assert made, "control: it was counted"
    rows = loader.round(0).steps
    for number in range(rows):
        loader.step(number)
    made.clear()
    again = loader.step(0)
    later = loader.step(rows - 1)
    list(loader.evaluation())
    assert not made, "another epoch, and a step once more, cost no rendering"
    assert torch.equal(first[0].tokens.media[0].values, again[0].tokens.media[0].values)
    assert later[0].tokens.media, "control: there are pictures in it"
