"""A run is described by a recipe: TOML in, a tree of small frozen dataclasses out.

The same tree is what the command line's `key=value` overrides change (`train.lr=0.01`), what is saved, resolved, as
`recipe.toml` in the run directory, and what a resume reads. An unknown key is an error that names the nearest one.

    recipe.toml --load--> Recipe --override--> Recipe --save--> recipe.toml      load(save(recipe)) == recipe
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from weft.errors import RecipeError, nearest


@dataclass(frozen=True)
class LoraRecipe:
    """Adapters in place of the weights themselves: Hu et al. 2021; with `dora`, Liu et al. 2024."""

    rank: int = 0  # 0: none, the weights themselves are trained
    alpha: float = 0.0  # their product is multiplied with alpha / rank; 0: twice the rank
    target: tuple[str, ...] = ("all",)  # patterns of linear parts: "attn.qkv", "stack.*.ffn.*"; "all": the stacks'
    dropout: float = 0.0
    dora: bool = False


@dataclass(frozen=True)
class GuideRecipe:
    """The frozen model that training is held against: a teacher to learn from, or the start as DPO's reference."""

    teacher: str = ""  # a run whose answers are learned as well (Hinton et al. 2015)
    temperature: float = 2.0  # of both sides' logits
    share: float = 0.5  # of the teacher in the loss; the rest is the rows' own
    hidden: float = 0.0  # weight of the distance between the last hidden states
    beta: float = 0.1  # of `a -> b > c`: how far from the reference (Rafailov et al. 2023)


@dataclass(frozen=True)
class ModelRecipe:
    """Which family, how large. 0 means: decided by the family's defaults and the forecast."""

    family: str = "weft"
    dim: int = 0
    depth: int = 0
    heads: int = 0
    options: dict[str, object] = field(default_factory=dict)  # passed to the family's function; unknown: named error
    embeddings: str = ""  # word vectors that its table starts with: a .txt or .vec file (.gz too), or glove
    source: str = ""  # weights that it starts from: a run, a model directory, a weight file or a pretrained name
    lora: LoraRecipe = field(default_factory=LoraRecipe)
    guide: GuideRecipe = field(default_factory=GuideRecipe)
    parts: dict[str, str] = field(default_factory=dict)  # image | audio -> the source whose encoder takes it in
    fusion: str = "early"  # of the parts: early (in place) | concat (in front) | cross (looked across to)
    bridge: str = "mlp"  # from a part to the language model: mlp | resample (learned queries)


@dataclass(frozen=True)
class TextRecipe:
    vocabulary: int = 0  # size of the byte-level BPE, bytes included; 0: decided from the amount of text


@dataclass(frozen=True)
class ImageRecipe:
    size: int = 64  # longest side in pixels after resizing; the aspect is kept
    patch: int = 8  # pixels per side of one token
    codes: int = 64  # tokens of one drawn image (a square number)
    codebook: int = 512
    codec_steps: int = 0  # training steps of the codec; 0: as many as its share of the minutes allows, then saved here
    augment: float = 0.0  # random shift of training inputs, as a share of the size
    warp: float = 0.0  # they are also turned, zoomed, stretched and slanted, each by up to this share of the size
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # taken from red, green, blue in [0,1]; of a model's part: its own
    std: tuple[float, ...] = (0.5, 0.5, 0.5)  # what they are then divided by


@dataclass(frozen=True)
class AudioRecipe:
    mels: int = 80  # log-mel bands at 16 kHz, one frame every 10 ms
    stack: int = 8  # frames per input token
    hop: int = 4  # frames per output code
    codebook: int = 512
    codec_steps: int = 0  # as above
    augment: float = 0.0  # random shift of training inputs along the bands, as a share of them
    mask: float = 0.0  # two runs of up to this share of the bands, and one of half the share of frames, are blanked
    seconds: float = 30.0  # longest sound; longer ones are listed, not cut
    scale: str = "fixed"  # of the log-mel: fixed | whisper (by the loudest frame); of a model's part: its own


@dataclass(frozen=True)
class SplitRecipe:
    """Used where the table has no `split` column: a seeded hash of the row decides."""

    validation: float = 0.05
    test: float = 0.1
    by: str = ""  # hash this column instead of the whole row, so that e.g. one speaker is never on both sides


@dataclass(frozen=True)
class TrainRecipe:
    minutes: float = 10.0  # turned into steps by the forecast, once, and saved
    steps: int = 0  # 0: from minutes
    tokens: int = 8192  # tokens per optimiser step, padding included
    length: int = 256  # tokens per packed row: the context
    micro: int = 0  # rows per micro-batch; 0: all of the step at once if memory allows
    optimizer: str = "muon"  # muon (matrices by Muon, the rest by AdamW) | adamw
    lr: float = 0.02  # Muon's rate for muon; AdamW's for adamw
    adam_lr: float = 0.003  # the rest's rate under muon
    schedule: str = "wsd"  # wsd (warm-up, stable, decay) | cosine | constant
    freeze: tuple[str, ...] = ()  # patterns of parts that stay as they are: "body.input", "blocks.0"
    parts: dict[str, float] = field(default_factory=dict)  # pattern of parts -> factor on their learning rate
    options: TrainOptions = field(default_factory=lambda: TrainOptions())


@dataclass(frozen=True)
class TrainOptions:
    """What is seldom changed."""

    warmup: float = 0.02  # share of the steps
    decay: float = 0.4  # share of the steps, for wsd
    weight_decay: float = 0.01
    clip: float = 1.0
    dtype: str = "auto"  # auto | float32 | bfloat16
    compile: str = "auto"  # auto (by the length of the run) | on | off
    save_every: int = 0  # steps; 0: about every two minutes
    keep: int = 2  # checkpoints kept
    evaluate_every: int = 0  # steps; 0: twenty times a run
    check: bool = True  # run `weft check` before training
    skip_share: float = 0.01  # allowed share of undecodable rows
    condition_dropout: float = 0.0  # share of drawn and spoken samples that train without their inputs, for guidance
    keep_text: str = ""  # a plain text file: the language model's loss on it is measured before and after


@dataclass(frozen=True)
class Recipe:
    """One run. `data` is a path or the name of a built-in table; `types` says column types outright."""

    data: str = ""
    arrows: tuple[str, ...] = ()
    out: str = ""
    seed: int = 0
    types: dict[str, str] = field(default_factory=dict)  # column -> image | audio | text | label | messages
    # arrow -> how often its rows are drawn per epoch (0.5: half), or the column that says it of each row
    mix: dict[str, float | str] = field(default_factory=dict)
    model: ModelRecipe = field(default_factory=ModelRecipe)
    text: TextRecipe = field(default_factory=TextRecipe)
    image: ImageRecipe = field(default_factory=ImageRecipe)
    audio: AudioRecipe = field(default_factory=AudioRecipe)
    split: SplitRecipe = field(default_factory=SplitRecipe)
    train: TrainRecipe = field(default_factory=TrainRecipe)


# ------------------------------------------------------------------------------------------------ what values may be


class Rule(typing.NamedTuple):
    """A test of a value, and what it expects in words."""

    holds: typing.Callable[[Any], bool]
    expected: str


def _at_least(least: float) -> Rule:
    return Rule(lambda v: v >= least, f"{least:g} or more")


def _one_of(*names: str) -> Rule:
    return Rule(lambda v: v in names, f"one of {', '.join(names)}")


POSITIVE = Rule(lambda v: v > 0, "more than 0")
SHARE = Rule(lambda v: 0 <= v <= 1, "a share from 0 to 1")
RULES: dict[str, Rule] = {
    "seed": _at_least(0),
    "types.*": _one_of("image", "audio", "text", "label", "messages"),
    "mix.*": Rule(lambda v: v != "" if isinstance(v, str) else v >= 0, "0 or more, or the name of a column"),
    "model.dim": _at_least(0),
    "model.depth": _at_least(0),
    "model.heads": _at_least(0),
    "model.lora.rank": _at_least(0),
    "model.lora.alpha": _at_least(0),
    "model.lora.dropout": Rule(lambda v: 0 <= v < 1, "a share from 0 to less than 1"),
    "model.guide.temperature": POSITIVE,
    "model.guide.share": SHARE,
    "model.guide.hidden": _at_least(0),
    "model.guide.beta": POSITIVE,
    "model.parts.*": Rule(lambda v: v != "", "a pretrained name, a run or a model directory"),
    "model.fusion": _one_of("early", "concat", "cross"),
    "model.bridge": _one_of("mlp", "resample"),
    "train.parts.*": Rule(lambda v: v > 0, "more than 0; what is not to be trained is named in train.freeze"),
    "text.vocabulary": Rule(lambda v: v == 0 or v >= 256, "0 (decided by the text) or at least 256, the bytes"),
    "image.size": POSITIVE,
    "image.patch": POSITIVE,
    "image.codes": Rule(lambda v: v > 0 and math.isqrt(v) ** 2 == v, "a square number, such as 16, 64 or 256"),
    "image.codebook": _at_least(2),
    "image.codec_steps": _at_least(0),
    "image.augment": Rule(lambda v: 0 <= v < 1, "a share from 0 to less than 1"),
    "image.warp": Rule(lambda v: 0 <= v < 0.5, "a share from 0 to less than 0.5"),
    "image.mean": Rule(lambda v: len(v) == 3, "three numbers, of red, green and blue"),
    "image.std": Rule(lambda v: len(v) == 3 and min(v) > 0, "three numbers over 0, of red, green and blue"),
    "audio.scale": _one_of("fixed", "whisper"),
    "audio.mels": Rule(lambda v: 1 <= v <= 201, "1 to 201"),
    "audio.stack": POSITIVE,
    "audio.hop": POSITIVE,
    "audio.codebook": _at_least(2),
    "audio.augment": Rule(lambda v: 0 <= v < 1, "a share from 0 to less than 1"),
    "audio.mask": Rule(lambda v: 0 <= v < 1, "a share from 0 to less than 1"),
    "audio.codec_steps": _at_least(0),
    "audio.seconds": POSITIVE,
    "split.validation": Rule(lambda v: 0 <= v < 1, "a share from 0 to less than 1"),
    "split.test": Rule(lambda v: 0 <= v < 1, "a share from 0 to less than 1"),
    "train.minutes": POSITIVE,
    "train.steps": _at_least(0),
    "train.tokens": POSITIVE,
    "train.length": _at_least(2),
    "train.micro": _at_least(0),
    "train.optimizer": _one_of("muon", "adamw"),
    "train.lr": POSITIVE,
    "train.adam_lr": POSITIVE,
    "train.schedule": _one_of("wsd", "cosine", "constant"),
    "train.options.warmup": SHARE,
    "train.options.decay": SHARE,
    "train.options.weight_decay": _at_least(0),
    "train.options.clip": POSITIVE,
    "train.options.dtype": _one_of("auto", "float32", "bfloat16"),
    "train.options.compile": _one_of("auto", "on", "off"),
    "train.options.save_every": _at_least(0),
    "train.options.keep": _at_least(1),
    "train.options.evaluate_every": _at_least(0),
    "train.options.skip_share": SHARE,
    "train.options.condition_dropout": Rule(lambda v: 0 <= v < 1, "a share from 0 to less than 1"),
}


def validate(recipe: Recipe) -> Recipe:
    """`recipe` itself, if every value means something.

    Raises RecipeError: what came, what was expected, the nearest name.
    """
    for key, rule in RULES.items():
        for name, value in _values(recipe, key):
            if not rule.holds(value):
                names = rule.expected.removeprefix("one of ").split(", ") if rule.expected.startswith("one of") else []
                near = f".{nearest(value, names)}" if names and "Did you" in nearest(value, names) else ""
                raise RecipeError(f"{name} is {value!r}; expected {rule.expected}{near}")
    if recipe.image.patch > recipe.image.size:
        raise RecipeError(
            f"image.patch is {recipe.image.patch} and image.size {recipe.image.size}: one patch at least has to fit"
        )
    for kind in recipe.model.parts:
        if kind not in ("image", "audio"):
            raise RecipeError(f"model.parts.{kind}: parts encode image or audio.{nearest(kind, ('image', 'audio'))}")
    if recipe.split.validation + recipe.split.test >= 1:
        raise RecipeError(
            f"split.validation {recipe.split.validation:g} and split.test {recipe.split.test:g} leave nothing to train "
            "on; together they have to be less than 1"
        )
    if recipe.train.tokens < recipe.train.length:
        raise RecipeError(
            f"train.tokens is {recipe.train.tokens}, less than one row of train.length={recipe.train.length}; raise it"
        )
    return recipe


def _values(recipe: Recipe, key: str) -> list[tuple[str, Any]]:
    """(name, value) of a dotted key; `mix.*` gives every entry."""
    value: Any = recipe
    *path, last = key.split(".")
    for part in path:
        value = getattr(value, part)
    if last == "*":
        return [(f"{'.'.join(path)}.{_key(name)}", entry) for name, entry in value.items()]
    return [(key, getattr(value, last))]


# ------------------------------------------------------------------------------------------------ trees <-> recipes


def from_tree(tree: Mapping[str, Any]) -> Recipe:
    """A tree of plain values, as TOML gives it -> a validated Recipe. Missing keys keep their defaults."""
    return validate(_build(Recipe, tree, ""))


def to_tree(recipe: Recipe) -> dict[str, Any]:
    """The way back: nested dicts of plain values, all fields."""
    return dataclasses.asdict(recipe)


def _build(kind: type, tree: Any, path: str) -> Any:
    """A dataclass of `kind` from a mapping; `path` ("train.") is where it stands."""
    if not isinstance(tree, Mapping):
        raise RecipeError(
            f"{path.rstrip('.')} is {_shown(tree)}; expected keys below it, such as {path}{next(iter(_hints(kind)))}"
        )
    hints = _hints(kind)
    for name in tree:
        if name not in hints:
            raise RecipeError(f"{path}{name} is no key of a recipe.{_nearest_key(path, name, hints)}")
    return kind(**{name: _typed(hints[name], value, path + name) for name, value in tree.items()})


@cache
def _all_keys(kind: type, path: str = "") -> tuple[str, ...]:
    """Every dotted key below a dataclass."""
    keys: list[str] = []
    for name, hint in _hints(kind).items():
        keys += _all_keys(hint, f"{path}{name}.") if dataclasses.is_dataclass(hint) else [path + name]  # type: ignore[arg-type]
    return tuple(keys)


@cache  # the annotations are texts, and evaluating them takes most of the time of a load
def _hints(kind: type) -> Mapping[str, Any]:
    return typing.get_type_hints(kind)


def _nearest_key(path: str, name: str, hints: Mapping[str, Any]) -> str:
    """The key that was meant: one of that last name anywhere, else the nearest one here, else all keys here."""
    elsewhere = [key for key in _all_keys(Recipe) if key.rpartition(".")[2] == name]
    if elsewhere:
        return f" Did you mean {' or '.join(map(repr, elsewhere))}?"
    near = nearest(name, hints)
    if "Did you" in near:
        return nearest(path + name, [path + key for key in hints])
    anywhere = nearest(path + name, _all_keys(Recipe))
    return anywhere if "Did you" in anywhere else near


def _typed(hint: Any, value: Any, path: str) -> Any:
    """`value` as the annotation wants it. Raises RecipeError if it is of another type."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path + ".")  # type: ignore[arg-type]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_typed(inner[0], item, f"{path}[{index}]") for index, item in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        return {str(name): _typed(inner[1], item, f"{path}.{_key(str(name))}") for name, item in value.items()}
    if origin is types.UnionType:  # a number or a name
        if isinstance(value, str):
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RecipeError(f"{path} is {_shown(value)}; expected a number, or the name of a column in quotes")
        return _typed(float, value, path)
    if hint is object:
        return _plain(value, path)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise RecipeError(f"{path} is {value}; a finite number was expected")
        return float(value)
    if hint in (bool, int, str) and type(value) is hint:
        return value
    wanted = {
        bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes",
        tuple: 'a list, such as ["image -> caption"]', dict: f"a table, such as {path}.name = ...",
    }[origin or hint]  # fmt: skip
    raise RecipeError(f"{path} is {_shown(value)}; expected {wanted}")


def _plain(value: Any, path: str) -> Any:
    """A value of free form: what TOML can hold."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {str(name): _plain(item, f"{path}.{_key(str(name))}") for name, item in value.items()}
    raise RecipeError(f"{path} is {_shown(value)}; expected a text, number, true or false, a list or a table")


def _shown(value: Any) -> str:
    kinds = {
        bool: "a truth value",
        int: "a whole number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "a table",
    }
    return f"{value!r} ({kinds.get(type(value), type(value).__name__)})"


# ------------------------------------------------------------------------------------------------ TOML


def load(path: str | Path, overrides: Sequence[str] | None = None) -> Recipe:
    """Read `path` and apply `key=value` overrides.

    A relative `data` stays relative to the current folder, as on the command line.
    Raises RecipeError: a missing file, TOML that cannot be read, unknown keys, wrong types, values that mean nothing.
    """
    path = Path(path)
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: there is no such recipe") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not valid TOML: {error}") from error
    try:
        recipe = _build(Recipe, tree, "")
        return override(recipe, overrides) if overrides else validate(recipe)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def override(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """Apply `key=value` words, as `train.lr=0.01`, `model.options.stem=conv`, `arrows=["a -> b"]`, `mix."a -> b"=0.5`.

    Values are TOML; what is not is taken as a text, so quotes may be left out. Raises RecipeError.
    """
    tree = to_tree(recipe)
    for word in overrides:
        keys, raw = _split(word)
        here = tree
        for depth, key in enumerate(keys[:-1]):
            inner = here.setdefault(key, {})
            if not isinstance(inner, dict):
                raise RecipeError(f"{word}: {'.'.join(keys[: depth + 1])} is a value and has no keys below it")
            here = inner
        if isinstance(here.get(keys[-1]), dict) and not _free(keys):
            name, first = ".".join(keys), next(iter(here[keys[-1]]))
            raise RecipeError(f"{word}: {name} is a group of keys; set one of them, such as {name}.{first}")
        here[keys[-1]] = _value(keys, raw)
    return from_tree(tree)


def _split(word: str) -> tuple[list[str], str]:
    """`a.b."c d"=value` -> (["a", "b", "c d"], "value")."""
    found = re.match(r"""((?:"(?:[^"\\]|\\.)*"|'[^']*'|[^="'])*)=(.*)""", word, re.DOTALL)
    if not found:
        raise RecipeError(f"{word!r} is no override; expected key=value, such as train.lr=0.01")
    try:
        inner: Any = tomllib.loads(f"{found[1]} = 0")
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(
            f"{word!r}: {found[1].strip()!r} is no key; expected names with dots, others in quotes"
        ) from error
    keys = []
    while isinstance(inner, dict):
        key, inner = next(iter(inner.items()))
        keys.append(key)
    return keys, found[2].strip()


def _hint(keys: Sequence[str]) -> Any:
    """The annotation of a key, or None if there is none of that name."""
    hint: Any = Recipe
    for key in keys:
        if dataclasses.is_dataclass(hint):
            hint = _hints(hint).get(key)  # type: ignore[arg-type]
        else:
            hint = typing.get_args(hint)[1] if typing.get_origin(hint) is dict else object if hint is object else None
    return hint


def _free(keys: Sequence[str]) -> bool:
    """Whether a key holds a table of free names, which may be set as a whole."""
    hint = _hint(keys)
    return hint is object or typing.get_origin(hint) is dict


def _value(keys: Sequence[str], raw: str) -> Any:
    """The text behind `=` as a value for the key."""
    try:
        tree = tomllib.loads(f"x = {raw}")
        value = tree["x"] if len(tree) == 1 else raw
    except tomllib.TOMLDecodeError:
        return _loose(_hint(keys), raw)
    return raw if _hint(keys) is str and not isinstance(value, str) else value  # out=2024 is a name


def _loose(hint: Any, raw: str) -> Any:
    """What is not TOML, but can be understood: `.5`, `True`, a text or one item of a list without quotes."""
    if typing.get_origin(hint) is tuple:
        return [raw]
    if hint in (bool, object) and raw in ("True", "False"):
        return raw == "True"
    if hint is object and re.fullmatch(r"[+-]?(\d*\.\d+|\d+\.)([eE][+-]?\d+)?", raw):
        return float(raw)  # an option of the family's, which knows its type
    if hint is float or float in typing.get_args(hint):
        try:
            return float(raw)
        except ValueError:
            return raw  # a column's name, or `_typed` says what was expected
    return raw


def save(recipe: Recipe, path: str | Path) -> None:
    """Write `path`, whole or not at all."""
    path = Path(path)
    staged = path.with_name(path.name + ".part")
    staged.write_text(to_toml(recipe), encoding="utf-8")
    os.replace(staged, path)


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML, every field written out; `load` gives it back equal.

    Raises RecipeError for what TOML cannot hold.
    """
    tree = {name: _plain(value, name) for name, value in to_tree(recipe).items()}
    lines: list[str] = []
    _write(tree, Recipe, "", lines)
    return "\n".join(lines) + "\n"


def _write(tree: Mapping[str, Any], kind: Any, path: str, lines: list[str]) -> None:
    """Plain keys first, then a [table] for each group of keys."""
    hints = _hints(kind) if dataclasses.is_dataclass(kind) else {}  # type: ignore[arg-type]
    tables = [n for n in tree if isinstance(tree[n], Mapping) and (n in hints)]
    lines += [f"{_key(name)} = {_toml(value, path + name)}" for name, value in tree.items() if name not in tables]
    for name in tables:
        if tree[name] or dataclasses.is_dataclass(hints[name]):
            lines += ["", f"[{path}{name}]"]
            _write(tree[name], hints[name], f"{path}{name}.", lines)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name, name)


def _text(value: str, path: str) -> str:
    """A TOML basic string: JSON's, but that DEL is escaped too and half a surrogate pair cannot be written."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecipeError(f"{path} holds half a surrogate pair ({value!a}), which is no Unicode character") from error
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml(value: Any, path: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value, path)
    if isinstance(value, list):
        return f"[{', '.join(_toml(item, path) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(name)} = {_toml(item, path)}" for name, item in value.items()) + "}"
    return repr(value)
