"""Preparation with pictures and sounds: codecs where they are produced, from training rows only, all of it saved."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from weft.arrows.types import Label
from weft.data.sources import open_table
from weft.errors import ArrowError, DataError, RecipeError
from weft.recipe import Recipe
from weft.run import Run
from weft.train import prepare as p
from weft.train import train

WORDS = [
    "image.size=16", "image.patch=8", "image.codes=4", "image.codebook=8", "image.codec_steps=4", "audio.mels=16",
    "audio.codebook=8", "audio.codec_steps=4", "train.length=64", "train.tokens=256", "model.dim=32", "model.depth=1",
    "model.heads=2", "train.options.compile=off", "train.options.dtype=float32",
]  # fmt: skip
ARROWS = ("image -> colour", "colour -> image", "sound -> word:text", "word:text -> sound")
COLOURS = {"red": (200, 20, 20), "green": (20, 180, 20), "blue": (20, 20, 220)}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """60 pictures of one colour, 40 sounds of one pitch; two files are no media at all."""
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(60):
        name = list(COLOURS)[i % 3]
        pixels = np.clip(np.array(COLOURS[name]) + rng.normal(0, 10, (16, 16, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append([f"{i}.png", name, "", "", "test" if i % 7 == 5 else "validation" if i % 7 == 4 else "train"])
    for i in range(40):
        wave = 0.3 * np.sin(np.arange(4000) * (0.1 + 0.1 * (i % 2))) + 0.01 * rng.normal(size=4000)
        soundfile.write(folder / f"{i}.wav", wave, 16000)
        word = ("low", "high")[i % 2] + " pitch"
        rows.append(["", "", f"{i}.wav", word, "test" if i % 8 > 5 else "validation" if i % 8 > 3 else "train"])
    (folder / "0.png").write_bytes(b"\x89PNG broken")
    (folder / "0.wav").write_bytes(b"RIFF broken")
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image", "colour", "sound", "word", "split"], *rows])
    return folder / "metadata.csv"


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Run:
    out = tmp_path_factory.mktemp("run") / "media"
    return train(data, *ARROWS, out=out, steps=4, overrides=[*WORDS, "train.options.skip_share=0.1"])


def test_media_in_and_out_trains_and_the_run_holds_its_codecs(run):
    told = json.loads((run.path / "codecs" / "report.json").read_text())
    assert set(told) == {"image", "audio"}
    for kind, ending in (("image", ".png"), ("audio", ".wav")):
        assert 0 < told[kind]["use"] <= 1 and told[kind]["steps"] == 4 and told[kind]["codebook"] == 8
        assert len(told[kind]["pairs"]) == p.PAIRS
        for name in (name for pair in told[kind]["pairs"] for name in pair):
            assert name.endswith(ending) and (run.path / "codecs" / name).stat().st_size > 60
    assert {name for line in run.metrics("step") for name in line["arrows"]} == set(ARROWS)
    renderer = run.renderer
    assert len(renderer.vocabulary.block("codes:image")) == 8 and len(renderer.vocabulary.block("codes:audio")) == 8
    again = train(resume=run.path)
    assert [line["loss"] for line in again.metrics("step")] == [line["loss"] for line in run.metrics("step")]


def test_undecodable_media_is_listed_with_row_and_file(run):
    lines = [json.loads(line) for line in (run.path / "skipped.jsonl").read_text().splitlines()]
    assert {line["row"] for line in lines} == {0, 60}
    assert all(("0.png" if line["row"] == 0 else "0.wav") in line["file"] and line["reason"] for line in lines)


def test_more_undecodable_media_than_allowed_stops(data, tmp_path):
    with pytest.raises(DataError, match=r"skip_share.*row"):
        train(data, *ARROWS, out=tmp_path / "run", steps=4, overrides=[*WORDS, "train.options.skip_share=0.001"])


def test_the_alarm_swaps_pictures_and_sounds_too(run):
    columns = {line["column"] for line in run.metrics("event") if line["event"] == "blind"}
    assert columns == {"image", "colour", "sound", "word"}


def recipe_of(data: Path, *arrows: str, words: tuple[str, ...] = ()) -> Recipe:
    from weft.train.session import make_recipe

    return make_recipe(data, arrows, overrides=[*WORDS, *words])[0]


def test_nothing_that_is_not_produced_gets_a_codec(data, monkeypatch):
    for maker in (p.ImageCodec, p.AudioCodec):
        monkeypatch.setattr(maker, "train", lambda *a, **k: pytest.fail("no codec is needed"))
    found = p.prepare(recipe_of(data, "image -> colour", "sound -> word:text"), open_table(data))
    assert "codes:image" not in found.renderer.vocabulary.blocks
    stems = found.config.topology.input.stems
    assert stems["image"].features == 3 * 8 * 8 and stems["audio"].features == 8 * 16


def test_no_stem_for_what_is_only_produced(data):
    found = p.prepare(recipe_of(data, "word:text -> sound"), open_table(data), quick=True)
    assert not found.config.topology.input.stems


def test_text_and_codecs_see_training_rows_only(data, monkeypatch):
    table = open_table(data)
    recipe = recipe_of(data, *ARROWS)
    split = p.assign(table, recipe.split, 0)
    seen: dict[str, list] = {"texts": [], "items": []}
    real_text, real_image = p.TextCodec.train, p.ImageCodec.train

    def text(texts, size=0):
        seen["texts"] += texts
        return real_text(texts, size)

    def image(items, **words):
        seen["items"] += [len(items)]
        return real_image(items, **words)

    monkeypatch.setattr(p.TextCodec, "train", text)
    monkeypatch.setattr(p.ImageCodec, "train", image)
    p.prepare(recipe, table)
    assert seen["texts"] == ["low pitch", "high pitch"], "each text once"
    assert seen["items"] == [sum(split[:60] == "train") - 1], "the broken picture apart, every training picture"


def test_minutes_bound_a_codec_and_steps_do_not(data):
    table = open_table(data)
    recipe = replace(recipe_of(data, *ARROWS))
    calls: list[int] = []

    def slow(items, steps):
        calls.append(steps)
        import time

        time.sleep(0.12)

    items = [np.zeros((16, 16, 3), np.uint8)] * 4
    assert p.affordable(replace(recipe, train=replace(recipe.train, steps=5)), items, slow, 500) == 500 and not calls
    some = p.affordable(replace(recipe, train=replace(recipe.train, minutes=0.5)), items, slow, 500)
    assert p.PROBE <= some < 300 and calls == [p.PROBE], "ten milliseconds a step, 2.4 seconds"
    assert p.affordable(replace(recipe, train=replace(recipe.train, minutes=1e-6)), items, slow, 500) == p.PROBE
    del table


def test_what_was_decided_is_written_into_the_recipe(data):
    recipe = replace(recipe_of(data, *ARROWS), image=replace(recipe_of(data, *ARROWS).image, codec_steps=0))
    recipe = replace(recipe, train=replace(recipe.train, steps=1))
    found = p.prepare(recipe, open_table(data), quick=True)
    new = p.resolved(recipe, found)
    assert new.image.codec_steps == p.PROBE and new.types["word"] == "text" and new.types["colour"] == "label"
    assert new.text.vocabulary == found.renderer.text.size > 256
    assert isinstance(found.types["colour"], Label)


def test_an_arrow_over_a_column_that_is_not_there_offers_the_nearest(data):
    with pytest.raises(ArrowError, match="Did you mean 'colour'"):
        p.understand(recipe_of(data, "image -> color"), open_table(data))
    with pytest.raises(RecipeError, match="weft"):
        p.understand(
            replace(recipe_of(data, "image -> colour"), model=replace(Recipe().model, family="wef")), open_table(data)
        )


def test_a_table_without_training_rows_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,split\n1,2,test\n3,4,test\n")
    with pytest.raises(DataError, match="no training rows"):
        p.prepare(Recipe(data="t", arrows=("a:text -> b:text",)), open_table(tmp_path / "t.csv"))


def test_media_that_can_not_be_decoded_at_all_is_said_and_not_hidden(tmp_path):
    rows = ["image,word"]
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(b"\x89PNG broken")
        rows.append(f"{i}.png,w{i}")
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    with pytest.raises(DataError, match=r"\.png"):
        p.prepare(recipe_of(tmp_path / "t.csv", "word:text -> image"), open_table(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    ("family", "arrow", "side"),
    [
        ("clip", "caption <-> image", "right"),
        ("siglip", "image <-> caption", "left"),
        ("vit", "image -> kind:label", ""),
    ],
)
def test_the_side_and_the_opening_of_media_follow_from_the_arrow(family: str, arrow: str, side: str) -> None:
    rows = [
        {"image": np.full((8, 8, 3), i * 20, np.uint8), "caption": f"picture {i}", "kind": "ab"[i % 2]}
        for i in range(10)
    ]
    recipe = Recipe(arrows=(arrow,))
    recipe = replace(recipe, model=replace(recipe.model, family=family, dim=32, depth=1, heads=2))
    prepared = p.prepare(recipe, open_table(rows), quick=True)
    topology = prepared.config.topology
    tower = getattr(topology, side) if side else topology
    assert set(tower.input.stems) == {"image"}
    assert tower.input.opening == (prepared.renderer.vocabulary.marker("image"),)
