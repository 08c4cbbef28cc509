"""Recipes: what is written is read back equal, overrides are typed, and nothing unknown passes in silence."""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft import recipe as module
from weft.errors import RecipeError
from weft.recipe import Recipe, TrainRecipe, from_tree, load, override, save, to_toml, to_tree, validate

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
plain = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Recipes of any values that are allowed."""
    small = st.floats(0.0, 0.45)
    size = draw(st.integers(1, 300))
    length = draw(st.integers(2, 4096))
    base = Recipe(
        data=draw(words), arrows=tuple(draw(st.lists(words, max_size=3))), out=draw(words),
        seed=draw(st.integers(0, 2**40)),
        types=draw(st.dictionaries(words, st.sampled_from(["image", "audio", "text", "label"]), max_size=3)),
        mix=draw(st.dictionaries(words, st.floats(0, 100) | words.filter(bool), max_size=3)),
    )  # fmt: skip
    options = dataclasses.replace(
        base.train.options, warmup=draw(st.floats(0, 1)), clip=draw(st.floats(1e-8, 1e8)), check=draw(st.booleans()),
        dtype=draw(st.sampled_from(["auto", "float32", "bfloat16"])), keep=draw(st.integers(1, 9)),
    )  # fmt: skip
    free = draw(st.dictionaries(words, plain, max_size=3))
    codes, patch = draw(st.integers(1, 40)) ** 2, draw(st.integers(1, size))
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, family=draw(words), options=free),
        image=dataclasses.replace(base.image, size=size, patch=patch, codes=codes),
        split=dataclasses.replace(base.split, validation=draw(small), test=draw(small), by=draw(words)),
        train=dataclasses.replace(
            base.train, length=length, tokens=draw(st.integers(length, 2**20)), lr=draw(st.floats(1e-12, 10)),
            schedule=draw(st.sampled_from(["wsd", "cosine", "constant"])), options=options,
        ),
    )  # fmt: skip


@given(recipes())
def test_what_is_written_is_read_back_equal(recipe: Recipe) -> None:
    text = to_toml(recipe)
    assert from_tree(tomllib.loads(text)) == recipe
    assert to_toml(from_tree(tomllib.loads(text))) == text


@given(recipes())
def test_the_tree_is_read_back_equal(recipe: Recipe) -> None:
    assert from_tree(to_tree(recipe)) == recipe


def test_a_file_is_saved_whole_and_loaded_with_overrides(tmp_path: Path) -> None:
    recipe = Recipe(data="photos/metadata.csv", arrows=("image, question -> answer", '"a \\"b\\"" <-> c'))
    save(recipe, tmp_path / "recipe.toml")
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.toml"]
    assert load(tmp_path / "recipe.toml") == recipe
    changed = load(tmp_path / "recipe.toml", ["train.lr=0.5", "seed=7"])
    assert (changed.train.lr, changed.seed) == (0.5, 7)
    assert changed.data == "photos/metadata.csv", "a relative path stays as it is written"


def test_every_field_is_written() -> None:
    written = tomllib.loads(to_toml(Recipe()))

    def count(kind: type) -> int:
        return sum(
            count(hint) if dataclasses.is_dataclass(hint) else typing.get_origin(hint) is not dict
            for hint in typing.get_type_hints(kind).values()
        )

    leaves = lambda tree: sum(leaves(v) if isinstance(v, dict) else 1 for v in tree.values())
    assert leaves(written) == count(Recipe)


@pytest.mark.parametrize(
    ("word", "path", "expected"),
    [
        ("train.lr=0.01", "train.lr", 0.01),
        ("train.lr=1", "train.lr", 1.0),
        ("train.lr=.5", "train.lr", 0.5),
        ("train.lr=1e-3", "train.lr", 0.001),
        (" train . lr = 0.25 ", "train.lr", 0.25),
        ("train.tokens=16_384", "train.tokens", 16384),
        ("train.options.check=false", "train.options.check", False),
        ("train.options.check=False", "train.options.check", False),
        ("train.optimizer=adamw", "train.optimizer", "adamw"),
        ("train.optimizer='adamw'", "train.optimizer", "adamw"),
        ('model.options.stem="conv"', "model.options", {"stem": "conv"}),
        ("model.options.stem=conv", "model.options", {"stem": "conv"}),
        ("model.options.dropout=.5", "model.options", {"dropout": 0.5}),
        ("model.options.tied=True", "model.options", {"tied": True}),
        ("model.options.scaling.factor=2.5", "model.options", {"scaling": {"factor": 2.5}}),
        ("model.options.layers=[1, 2]", "model.options", {"layers": [1, 2]}),
        ('arrows=["a -> b", "~c"]', "arrows", ("a -> b", "~c")),
        ("arrows=a -> b", "arrows", ("a -> b",)),
        ('mix."a -> b"=0.5', "mix", {"a -> b": 0.5}),
        ("mix={'a=1 -> b' = 2}", "mix", {"a=1 -> b": 2.0}),
        ("mix={'a -> b' = 'often'}", "mix", {"a -> b": "often"}),
        ('mix."a -> b"=.5', "mix", {"a -> b": 0.5}),
        ('mix."a -> b"=often', "mix", {"a -> b": "often"}),
        ("types.answer=label", "types", {"answer": "label"}),
        ("out=2024", "out", "2024"),
        ("out=true", "out", "true"),
        ("out=", "out", ""),
        ("data=a=b.csv", "data", "a=b.csv"),
        ("data=photos/été 1.csv", "data", "photos/été 1.csv"),
    ],
)
def test_overrides(word: str, path: str, expected: object) -> None:
    value: object = override(Recipe(), [word])
    for part in path.split("."):
        value = getattr(value, part)
    assert value == expected
    assert type(value) is type(expected)


def test_the_last_override_counts_and_the_rest_stays() -> None:
    changed = override(Recipe(seed=3), ["train.lr=0.1", "model.options.a=1", "train.lr=0.2", "model.options.b=2"])
    assert changed == dataclasses.replace(
        Recipe(seed=3),
        train=TrainRecipe(lr=0.2),
        model=dataclasses.replace(Recipe().model, options={"a": 1, "b": 2}),
    )


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("train.lrr=1", "train.lrr is no key of a recipe. Did you mean 'train.lr'?"),
        ("trian.lr=1", "Did you mean 'train'?"),
        ("warmup=0.1", "Did you mean 'train.options.warmup'?"),
        ("train.warmup=0.1", "Did you mean 'train.options.warmup'?"),
        ("codebook=9", "Did you mean 'image.codebook' or 'audio.codebook'?"),
        ("zzz=1", "There is: data, arrows, out"),
        ("train.lr=fast", "train.lr is 'fast' (a text); expected a number"),
        ("train.lr=true", "train.lr is True (a truth value); expected a number"),
        ("train.lr=nan", "a finite number"),
        ("train.steps=1.5", "train.steps is 1.5 (a number); expected a whole number"),
        ("train.options.check=1", "expected true or false"),
        ("seed=-1", "seed is -1; expected 0 or more"),
        ("image.size=-8", "image.size is -8; expected more than 0"),
        ("image.codes=60", "a square number"),
        ("image.patch=128", "image.patch is 128 and image.size 64"),
        ("train.optimizer=adam", "expected one of muon, adamw. Did you mean 'adamw'?"),
        ("train.schedule=cosin", "Did you mean 'cosine'?"),
        ("train.options.dtype=float16", "Did you mean 'bfloat16'?"),
        ("text.vocabulary=100", "0 (decided by the text) or at least 256"),
        ("types.a=imge", "expected one of image, audio, text, label, messages. Did you mean 'image'?"),
        ('mix."a -> b"=-1', 'mix."a -> b" is -1.0; expected 0 or more'),
        ('mix."a -> b"=true', "expected a number, or the name of a column in quotes"),
        ('mix."a -> b"=nan', "a finite number"),
        ('mix."a -> b"=""', "the name of a column"),
        ("split.test=0.99", "leave nothing to train on"),
        ("train.tokens=100", "less than one row of train.length=256"),
        ("train=3", "train is a group of keys; set one of them, such as train.minutes"),
        ("train.lr.x=3", "train.lr is a value and has no keys below it"),
        ("types=label", "expected a table"),
        ("arrows=[1]", "arrows[0] is 1 (a whole number); expected a text in quotes"),
        ("nonsense", "expected key=value, such as train.lr=0.01"),
        ("=3", "is no key"),
        ("model.options.day=2020-01-01", "expected a text, number"),
    ],
)
def test_what_means_nothing_is_refused(word: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        override(Recipe(), [word])
    assert told in str(caught.value)


def test_the_defaults_are_valid_and_every_rule_names_a_field() -> None:
    assert validate(Recipe()) == Recipe()
    keys = set(module._all_keys(Recipe))
    assert {key.removesuffix(".*") for key in module.RULES} <= keys


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    with pytest.raises(RecipeError, match="there is no such recipe"):
        load(path)
    path.write_text("train = [")
    with pytest.raises(RecipeError, match="not valid TOML"):
        load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="cannot be read"):
        load(path)
    path.write_text("[trian]\nlr = 1\n")
    with pytest.raises(RecipeError, match=r"recipe.toml: trian is no key of a recipe. Did you mean 'train'\?"):
        load(path)
    path.write_text("train = 3\n")
    with pytest.raises(RecipeError, match="expected keys below it"):
        load(path)


def test_half_a_surrogate_pair_cannot_be_written() -> None:
    with pytest.raises(RecipeError, match="surrogate"):
        to_toml(Recipe(out="\ud800"))
    with pytest.raises(RecipeError, match=r"model.*expected a text"):
        to_toml(override(Recipe(), []).__class__(model=dataclasses.replace(Recipe().model, options={"a": None})))
