"""A language model, eyes and ears of tiny random parts, joined: what is frozen stays, what is new learns."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import weft
from weft import families
from weft.adapt.start import make
from weft.core.config import ModelConfig, to_tree
from weft.core.view import Tokens
from weft.data import pack
from weft.data.sources import open_table
from weft.errors import RecipeError
from weft.modalities.audio import open_audio, whisper_mel
from weft.modalities.text import TextCodec
from weft.model import Model, build
from weft.recipe import ModelRecipe, Recipe
from weft.run import Run
from weft.train.forecast import compilable
from weft.train.once import Once, resting
from weft.train.prepare import Prepared, prepare
from weft.train.session import loader_of, make_recipe

WORDS = ["a red square", "a blue square", "a green square", "one", "two", "what colour is it?"]
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


def part(folder: Path, config: ModelConfig, told: dict, codec: TextCodec | None = None) -> str:
    """A run directory as `weft import` leaves one."""
    run = Run.create(folder, Recipe(out=str(folder), model=ModelRecipe(family=config.family, source="x")))
    (folder / "config.json").write_text(json.dumps(to_tree(config)))
    (folder / "source.json").write_text(json.dumps(told))
    save_file(
        {n: p.detach().contiguous() for n, p in build(config, seed=1).named_parameters()}, folder / "model.safetensors"
    )
    if codec is not None:
        codec.save(folder / "tokenizer.json")
    return str(run.path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts, and a table of pictures and sounds."""
    root = tmp_path_factory.mktemp("joined")
    codec = TextCodec.train(WORDS * 3, size=280)
    part(root / "words", families.make("llama", vocab=codec.size, length=64, dim=32, depth=2, heads=2), {}, codec)
    size = {"dim": 16, "depth": 2, "heads": 2}
    grid = {"positions": "grid"}
    eyes = families.make("vit", vocab=2, length=17, **size, stems={"image": 3 * 4 * 4}, language=False, options=grid)
    part(root / "eyes", eyes, {"preprocessing": {"image_mean": MEAN, "image_std": STD}})
    ears = families.make("whisper", vocab=40, length=16, **size, stems={"audio": 2 * 20}, options={"heard": True})
    part(root / "ears", ears, {"preprocessing": {"feature_extractor_type": "WhisperFeatureExtractor"}})
    table(root)
    return root


def table(root: Path) -> None:
    random, lines = np.random.default_rng(0), ["image,caption,question,colour,audio,text,split"]
    colours = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 200, 30)}
    for i in range(30):
        name = list(colours)[i % 3]
        pixels = np.clip(np.array(colours[name]) + random.integers(-20, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.png")
        tone = np.sin(np.arange(3200) * (0.1 if i % 2 else 0.4)).astype(np.float32) * 0.3
        soundfile.write(root / f"{i}.wav", tone, 16_000)
        split = "test" if i >= 24 else "validation" if i >= 20 else "train"
        said = "two" if i % 2 else "one"
        lines.append(f"{i}.png,a {name} square,what colour is it?,a {name} one,{i}.wav,{said},{split}")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")


ARROWS = ("image -> caption:text", "image, question -> colour:text", "audio -> text:text")


def words_of(world: Path, fusion: str = "early", bridge: str = "mlp", **more: object) -> list[str]:
    said = {
        "model.source": str(world / "words"), "model.parts.image": str(world / "eyes"),
        "model.parts.audio": str(world / "ears"), "model.fusion": fusion, "model.bridge": bridge,
        "model.lora.rank": 4, "image.size": 16, "image.patch": 8,
        "audio.mels": 20, "audio.stack": 4, "audio.seconds": 1, "train.length": 64, "train.tokens": 512,
        "train.options.check": False, "train.options.compile": "off",
        "train.options.dtype": "float32", **more,
    }  # fmt: skip
    return [f"{key}={json.dumps(value)}" for key, value in said.items()]


@pytest.mark.parametrize("bridge", ["mlp", "resample"])
@pytest.mark.parametrize("fusion", ["early", "concat", "cross"])
def test_it_trains_goes_on_and_answers(world: Path, tmp_path: Path, fusion: str, bridge: str) -> None:
    run = weft.train(
        world / "metadata.csv", *ARROWS, out=tmp_path / "run", steps=3, overrides=words_of(world, fusion, bridge)
    )
    model = run.model()
    answers = weft.predict(run.path, "image -> caption", image=str(world / "0.png"))
    assert len(answers) == 1
    assert torch.isfinite(next(p for n, p in model.named_parameters() if ".bridge." in n)).all()
    state = load_file(world / "eyes" / "model.safetensors")
    for name, tensor in state.items():
        assert torch.equal(model.get_parameter(name.replace("body.", "body.encoders.image.tower.")), tensor), name
    first = run.start()
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, first.get_parameter(n))]
    assert any(".bridge." in name for name in moved) and any(".adapters." in name for name in moved)
    assert all(any(part in n for part in (".bridge.", ".across.", ".adapters.", "rows")) for n in moved), (
        "the rest froze"
    )


def test_a_resumed_run_has_the_same_bits(world: Path, tmp_path: Path) -> None:
    said = words_of(world, "cross", **{"train.options.save_every": 2, "train.options.keep": 5})
    whole = weft.train(world / "metadata.csv", *ARROWS, out=tmp_path / "whole", steps=4, overrides=said)
    shutil.copytree(whole.path, tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "step-000004")
    again = weft.train(resume=tmp_path / "half")
    one, other = (load_file(run.path / "model.safetensors") for run in (whole, again))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def made(world: Path) -> dict[str, tuple[Model, Prepared]]:
    """fusion -> a model of untrained weights, shaken so that nothing is shut, and what it was prepared with."""
    found = {}
    for fusion in ("early", "concat", "cross"):
        recipe, _ = make_recipe(str(world / "metadata.csv"), ARROWS, overrides=words_of(world, fusion))
        prepared = prepare(recipe, open_table(recipe.data))
        model = make(prepared.config, recipe, prepared.base, prepared.start).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("_gate") or ".adapters." in name:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3 + 0.3)
        found[fusion] = model, prepared
    return found


FUSIONS = pytest.mark.parametrize("fusion", ["early", "concat", "cross"])


@FUSIONS
@torch.no_grad()
def test_a_cache_and_company_change_nothing(made: dict, fusion: str) -> None:
    model, prepared = made[fusion]
    samples = [prepared.renderer.render(prepared.table.row(i), i % 3) for i in range(5)]
    pieces = [pack.flatten(sample.spans)[0] for sample in samples]
    alone = []
    for piece in pieces:
        tokens = pack.collate([[[pack.Part(piece)]]], 1, len(piece)).tokens
        alone.append(model.hidden(tokens)[0])
        cache, cut = model.cache(), len(piece) - 2  # media stand before: only ids are left
        first = pack.collate([[[pack.Part(pack.flatten(samples[len(alone) - 1].spans)[0])]]], 1, len(piece)).tokens
        head = replace(first, ids=first.ids[:, :cut], document=first.document[:, :cut], span=first.span[:, :cut],
                       branch=first.branch[:, :cut], positions=first.positions[:, :cut])  # fmt: skip
        model.hidden(head, None, cache)
        rest = Tokens(first.ids[:, cut:], first.document[:, cut:], positions=first.positions[:, cut:])
        assert torch.allclose(model.hidden(rest, None, cache)[0], alone[-1][cut:], atol=1e-5)
    length = sum(map(len, pieces)) + 3
    packed = model.hidden(pack.collate([[[pack.Part(piece)] for piece in pieces]], 1, length).tokens)[0]
    start = 0
    for piece, hidden in zip(pieces, alone, strict=True):
        words = torch.from_numpy(~np.isin(np.arange(len(piece)), [
            place for item in piece.items for place in range(item.start, item.start + len(item.values))
        ]))  # fmt: skip
        assert torch.allclose(packed[start : start + len(piece)][words], hidden[words], atol=1e-5)
        start += len(piece)


@FUSIONS
@torch.no_grad()
def test_what_is_computed_once_is_what_the_encoder_gives(made: dict, fusion: str) -> None:
    model, prepared = made[fusion]
    loader = loader_of(prepared, make_recipe_of(prepared))
    plain = loader.step(0)[0]
    encoders = resting(model, {})
    assert set(encoders) == {"image", "audio"} and not resting(model, {"image": 0.1, "audio": 0.1})
    once = Once(encoders, torch.device("cpu"), "float32")
    told = once(plain)
    assert torch.allclose(model.hidden(told.tokens), model.hidden(plain.tokens), atol=1e-5)
    count = once.count
    once(plain)
    assert once.count == count > 0, "known by then"


def test_encoders_that_are_asked_once_are_not_compiled(made: dict) -> None:
    """Their states may be made before compiling or, by a resumed run, after: the bits are to be the same."""
    model, prepared = made["early"]
    loader = loader_of(prepared, make_recipe_of(prepared))
    session = SimpleNamespace(model=model, loader=loader)
    towers = {id(m) for e in model.body.encoders.values() for m in e.modules()}
    assert any(id(stack) in towers for stack in compilable(session)), "encoders that train are compiled"
    loader.encode = Once(resting(model, {}), torch.device("cpu"), "float32")
    found = compilable(session)
    assert found and not any(id(stack) in towers for stack in found), "the language model's stack alone"


def make_recipe_of(prepared: Prepared) -> Recipe:
    train = replace(Recipe().train, tokens=512, length=64, micro=8)
    return replace(Recipe(), train=train, image=prepared.renderer.image, audio=prepared.renderer.audio)


@torch.no_grad()
def test_shut_gates_leave_the_language_model_as_it_was(world: Path, made: dict) -> None:
    model, prepared = made["cross"]
    words = weft.load(world / "words")
    ids = torch.arange(3, 20)[None]
    fresh = make(prepared.config, replace(Recipe(), seed=0), prepared.base, prepared.start).eval()
    sample = pack.flatten(prepared.renderer.render(prepared.table.row(0), 0).spans)[0]
    tokens = pack.collate([[[pack.Part(sample)]]], 1, len(sample)).tokens
    other = replace(tokens, media=tuple(replace(m, values=m.values + 1) for m in tokens.media))
    assert torch.allclose(fresh.hidden(Tokens(ids)), words.hidden(Tokens(ids)), atol=1e-6)
    assert torch.allclose(fresh.hidden(tokens), fresh.hidden(other), atol=1e-6), "at first the picture is not seen"
    assert not torch.allclose(model.hidden(tokens), model.hidden(other), atol=1e-3), "through open gates it is"


def test_three_ways_train_about_as_many_parameters(made: dict) -> None:
    sizes = {fusion: sum(p.numel() for n, p in model.named_parameters() if ".bridge." in n or ".across." in n)
             for fusion, (model, _) in made.items()}  # fmt: skip
    assert sizes["early"] == sizes["concat"]
    assert abs(sizes["cross"] / sizes["early"] - 1) < 0.1


def test_media_are_made_ready_as_the_encoder_was_taught(world: Path, made: dict) -> None:
    renderer = made["early"][1].renderer
    assert renderer.image.mean == tuple(MEAN) and renderer.audio.scale == "whisper"
    path = str(world / "0.png")
    pixels = np.asarray(Image.open(path)).astype(np.float32) / 255
    expected = (pixels - np.float32(MEAN)) / np.float32(STD)
    got = renderer.reader.read("image", path, path).values.reshape(2, 2, 3, 8, 8)  # rows, columns, C, P, P
    assert np.allclose(got.transpose(0, 3, 1, 4, 2).reshape(16, 16, 3), expected, atol=2e-3)
    sound = str(world / "0.wav")
    mel = whisper_mel(open_audio(sound), 20)
    assert np.allclose(renderer.reader.read("audio", sound, sound).values.reshape(-1, 20)[: len(mel)], mel, atol=2e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image.patch": 6}, r"image.patch is 6: take a multiple of its patch, 4"),
        ({"audio.mels": 10, "audio.stack": 5}, r"audio.stack x audio.mels is 50: take a multiple of 40"),
        ({"model.parts.image": "WORLD/ears"}, r"encodes no image; it takes audio"),
        ({"model.source": "WORLD/eyes"}, r"has to be a decoder that writes text"),
        ({"model.fusion": "late"}, r"model.fusion is 'late'; expected one of early, concat, cross"),
        ({"model.parts.smell": "x"}, r"parts encode image or audio"),
    ],
)
def test_what_does_not_fit_is_said(world: Path, change: dict[str, object], message: str) -> None:
    said = {key: v.replace("WORLD", str(world)) if isinstance(v, str) else v for key, v in change.items()}
    words = words_of(world, **said)

    def begin() -> None:
        recipe, _ = make_recipe(str(world / "metadata.csv"), ARROWS, overrides=words)
        prepare(recipe, open_table(recipe.data))

    with pytest.raises(RecipeError, match=message):
        begin()
