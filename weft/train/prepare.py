"""From a recipe and a table to everything that a model needs before its first step.

table ─ types ─ split ─┬─ text codec        from the training rows' texts only
                       ├─ image, audio codec    only for columns that an arrow produces; training rows only
                       └─ vocabulary ─ renderer ─ model config
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from weft import families
from weft.adapt.join import joined
from weft.adapt.source import Source, open_source, suited
from weft.adapt.start import Start, grow, grow_config, known_stems, longest
from weft.adapt.start import rows as rows_of
from weft.adapt.start import width as outlet_width
from weft.arrows.chat import Message, Template
from weft.arrows.chat import read as read_messages
from weft.arrows.grammar import Arrow, check_columns, parse_all, said_types
from weft.arrows.render import LAYOUT, Renderer
from weft.arrows.resolve import Resolution, resolve
from weft.arrows.types import ColumnType, Label, Text, as_text, blank, guess
from weft.arrows.vocabulary import ROLES, Layer, Vocabulary
from weft.core.config import Classify, DualEncoderConfig, Language, MlpStem, ModelConfig, TextInput, TowerConfig
from weft.data.mix import mix_of
from weft.data.sources import Table
from weft.data.split import assign, kept_together
from weft.errors import DataError, RecipeError
from weft.modalities.audio import log_mel, open_audio, to_wav, to_wave
from weft.modalities.codes import AudioCodec, ImageCodec
from weft.modalities.image import open_image, square, to_png
from weft.modalities.text import TextCodec
from weft.recipe import Recipe

Say = Callable[[str], None]
ITEMS = 3000  # pictures or sounds that a codec is trained on: more do not make it better in the time it has
SHARE = 0.08  # of the run's minutes, at most, for each codec
FEW = 64  # of them, where a codec is only begun
PROBE = 12  # steps that tell how long a codec's step takes
PAIRS = 6  # originals and reconstructions kept for the report


@dataclass(frozen=True)
class Prepared:
    """What follows from recipe and table, ready to build a model and a loader from. split (rows,) names."""

    table: Table
    split: np.ndarray
    types: dict[str, ColumnType]
    arrows: list[Arrow]
    resolutions: list[Resolution]
    renderer: Renderer
    config: ModelConfig
    codec_steps: dict[str, int] = field(default_factory=dict)
    base: Mapping[str, Tensor] | None = None  # weights that it starts from
    start: Start | None = None


def understand(
    recipe: Recipe, table: Table, kind: str = "", known: Mapping[str, ColumnType] | None = None
) -> tuple[list[Arrow], dict[str, ColumnType], list[Resolution]]:
    """The cheap part, which reads no media: arrows, column types with their reasons, what each arrow resolves to.

    kind   of a model that is there already; "": the recipe's family says it
    known  types of columns as the source of a run knew them
    """
    arrows = parse_all(recipe.arrows)
    check_columns(arrows, table.columns)
    columns = list(dict.fromkeys(name for arrow in arrows for name in arrow.columns))
    before = {name: kind.name for name, kind in (known or {}).items() if name in columns}
    types = guess(table, {**before, **recipe.types, **said_types(arrows)}, columns)
    types |= {name: same for name, kind in types.items() if (same := as_before(kind, (known or {}).get(name)))}
    answers = [column.name for arrow in arrows if arrow.kind == "prefer" for column in arrow.outputs]
    types |= {name: Text("answers to choose between") for name in answers if types[name].name == "label"}
    kind = kind or families.FAMILIES[families.known(recipe.model.family)].kind
    mix_of(recipe, arrows, table)  # what is wrong with it is said before anything is made
    return arrows, types, [resolve(arrow, types, kind) for arrow in arrows]


def as_before(kind: ColumnType, known: ColumnType | None) -> ColumnType | None:
    """The labels that a source knew, where they are all that the rows hold: their ids stay."""
    if isinstance(kind, Label) and isinstance(known, Label) and set(kind.values) <= set(known.values):
        return known
    return None


def prepare(
    recipe: Recipe, table: Table, folder: Path | None = None, say: Say = lambda text: None, *, quick: bool = False
) -> Prepared:
    """Train the codecs and put everything together. With `folder` (a run directory) it is all written there.

    quick  only begin with codecs: every size is right, what a code looks like is not
    """
    source = open_source(recipe.model.source) if recipe.model.source and not recipe.model.parts else None
    if recipe.model.parts:
        recipe, source = joined(recipe)
    known = source or (open_source(recipe.model.guide.teacher) if recipe.model.guide.teacher else None)
    if known is not None and not recipe.model.parts:
        recipe = suited(recipe, known, ["image", "audio"], say)
    arrows, types, resolutions = understand(
        recipe, table, source.kind if source else "", known.columns if known else None
    )
    split = assign(table, recipe.split, recipe.seed)
    if together := kept_together(table, recipe.split):
        say(f"split: {together}")
    rows = np.flatnonzero(split == "train")
    if not len(rows):
        raise DataError(f"{table.name} has no training rows: the column `split` gives them all away.")
    text = known.text if known else None
    if text is None and (text := text_codec(recipe, table, rows, types)) is not None:
        say(f"text: {text.size} byte pairs from the training rows")
    codecs, told = media_codecs(recipe, table, rows, arrows, types, say, quick, known.codecs if known else {})
    layer = Layer(
        tuple(types),
        text=text.size if text else 0,
        labels={name: len(t.values) for name, t in types.items() if isinstance(t, Label)},
        codes={kind: codec.size for kind, codec in codecs.items()},
        roles=len(ROLES) if any(t.name == "messages" for t in types.values()) and not template_of(known) else 0,
    )
    vocabulary = known.vocabulary.grown(layer) if known else Vocabulary.of(layer)
    layout = known.layout if known else LAYOUT
    renderer = Renderer(recipe, types, arrows, vocabulary, text, codecs, template=template_of(known), layout=layout)
    media = wanted_media(recipe, types, arrows)
    config = (
        model_config(recipe, types, arrows, resolutions, vocabulary, media) if source is None
        else from_source(source, recipe, types, arrows, resolutions, vocabulary, media)
    )  # fmt: skip
    base, start = begun(source, config, recipe, folder)
    if folder is not None:
        renderer.save(folder)
        show_codecs(folder / "codecs", codecs, told, samples(recipe, table, split, arrows, types, codecs))
    steps = {kind: t["steps"] for kind, t in told.items() if "steps" in t}
    return Prepared(table, split, types, arrows, resolutions, renderer, config, steps, base, start)


def begun(
    source: Source | None, config: ModelConfig, recipe: Recipe, folder: Path | None
) -> tuple[dict[str, Tensor] | None, Start | None]:
    """The source's weights in the grown model, and what is said of them; kept in the run where there is one."""
    if source is None:
        return None, None
    base, new = grow(source.state, source.config, config, seed=recipe.seed, words=source.text is not None,
                     fresh=source.fresh)  # fmt: skip
    if folder is not None:
        return base, source.keep(folder, base, new)
    return base, Start(source.name, "", rows_of(source.config), new)


def text_codec(recipe: Recipe, table: Table, rows: np.ndarray, types: dict[str, ColumnType]) -> TextCodec | None:
    """Byte pairs of the distinct texts of the training rows; None where no arrow has a text column."""
    columns = [name for name, kind in types.items() if kind.name == "text"]
    talks = [name for name, kind in types.items() if kind.name == "messages"]
    if not columns and not talks:
        return None
    texts: dict[str, None] = {}
    for name in talks:
        cells = table.column(name)
        texts.update(dict.fromkeys(m.content for i in rows if not blank(cells[i]) for m in spoken(cells[i])))
    for name in columns:
        cells = table.column(name)
        texts.update(dict.fromkeys(as_text(cells[i], name) for i in rows if not blank(cells[i])))
    return TextCodec.train(list(texts), recipe.text.vocabulary)


def spoken(cell: Any) -> list[Message]:
    """The messages of a cell; a cell that holds none is listed when its row's turn comes."""
    try:
        return read_messages(cell)
    except DataError:
        return []


def template_of(source: Source | None) -> Template | None:
    """The chat template of a source, with the texts of its special tokens."""
    if source is None or not source.template or source.text is None:
        return None
    names = {f"{part}_token": ids[0] for part, ids in source.told.get("special", {}).items() if ids}
    text = source.text.tokenizer.id_to_token
    return Template(source.template, {name: word for name, i in names.items() if (word := text(i)) is not None})


def produced(arrows: Sequence[Arrow], types: dict[str, ColumnType]) -> dict[str, list[str]]:
    """ "image", "audio" -> the columns of that type which some arrow produces."""
    columns = dict.fromkeys(arrow.output for arrow in arrows if arrow.kind in ("produce", "model"))
    found: dict[str, list[str]] = {}
    for name in columns:
        if types[name].name in ("image", "audio"):
            found.setdefault(types[name].name, []).append(name)
    return found


def media_codecs(
    recipe: Recipe, table: Table, rows: np.ndarray, arrows: Sequence[Arrow], types: dict[str, ColumnType], say: Say,
    quick: bool, known: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """A trained codec for each kind of media that is produced, and what is to be told of it. Known ones stay."""
    codecs: dict[str, Any] = dict(known)
    told: dict[str, Any] = {}
    for kind, columns in produced(arrows, types).items():
        if kind in known:
            continue
        rows_of = producing(table, rows, arrows, columns)
        items = [item for item, _ in distinct(recipe, table, rows_of, kind, FEW if quick else ITEMS)]
        maker: Any = ImageCodec if kind == "image" else AudioCodec
        settings = recipe.image if kind == "image" else recipe.audio
        train = partial(maker.train, settings=settings, seed=recipe.seed)
        count = PROBE if quick else settings.codec_steps or affordable(recipe, items, train, maker.STEPS)
        codec, report = train(items, steps=count)
        codecs[kind], told[kind] = codec, {"codebook": codec.size, "use": report.used, "steps": count, **asdict(report)}
        say(
            f"{kind} codes: {report.used:.0%} of {codec.size} in use, error {report.error:.3g} (the mean {kind}: "
            f"{report.baseline:.3g}), {report.seconds:.0f} s"
        )
    return codecs, told


def affordable(recipe: Recipe, items: Sequence[np.ndarray], train: Callable[..., Any], most: int) -> int:
    """Steps of a codec: `most`, or fewer where the run is bounded by minutes and its share of them is not enough."""
    if recipe.train.steps:
        return most
    began = time.perf_counter()
    train(items[:FEW], steps=PROBE)
    return min(most, max(PROBE, int(SHARE * 60 * recipe.train.minutes * PROBE / (time.perf_counter() - began))))


def producing(table: Table, rows: np.ndarray, arrows: Sequence[Arrow], columns: Sequence[str]) -> dict[str, np.ndarray]:
    """For each of `columns`, those rows under which some arrow produces it: none of the arrow's cells is blank."""
    found: dict[str, np.ndarray] = {}
    for name in columns:
        taken = np.zeros(len(table), bool)
        for arrow in arrows:
            if arrow.output == name:
                taken |= np.all([table.filled(column) for column in arrow.columns], axis=0)
        found[name] = rows[taken[rows]]
    return found


def distinct(
    recipe: Recipe, table: Table, rows_of: dict[str, np.ndarray], kind: str, limit: int
) -> Iterator[tuple[np.ndarray, Any]]:
    """Decoded pictures (H,W,3) or log-mels (frames,mels) of distinct cells, with their sources, in a seeded order.

    A cell that cannot be decoded is passed over here; the loader lists it when its row's turn comes.
    """
    sources: dict[Any, Any] = {}
    for name, rows in rows_of.items():
        cells = table.column(name)
        for i in rows:
            cell = cells[i]
            sources.setdefault(cell if isinstance(cell, str | bytes | Path) else id(cell), (name, int(i)))
    places = list(sources.values())
    order = np.random.default_rng(recipe.seed).permutation(len(places))
    given, last = 0, None
    for index in order:
        if given == limit:
            return
        name, row = places[index]
        source = table.row(row)[name]
        try:
            item = open_image(source) if kind == "image" else log_mel(open_audio(source), recipe.audio.mels)
        except DataError as error:
            last = error
            continue
        given += 1
        yield item, source
    if not given and last is not None:
        raise last


def wanted_media(recipe: Recipe, types: dict[str, ColumnType], arrows: Sequence[Arrow]) -> dict[str, int]:
    """Kinds of media that the model is shown -> features of one token."""
    inputs = {types[c.name].name for arrow in arrows for c in arrow.inputs}
    inputs |= {types[c.name].name for arrow in arrows if arrow.kind == "align" for c in arrow.outputs}
    features = {"image": 3 * recipe.image.patch**2, "audio": recipe.audio.stack * recipe.audio.mels}
    return {kind: n for kind, n in features.items() if kind in inputs}


def label_heads(types: dict[str, ColumnType], arrows: Sequence[Arrow], resolutions: Sequence[Resolution]):
    """Name of each classification head -> its number of labels."""
    return {
        r.head: len(types[arrow.output].values)  # type: ignore[union-attr]
        for arrow, r in zip(arrows, resolutions, strict=True)
        if r.objective == "classify"
    }


def from_source(
    source: Source, recipe: Recipe, types: dict[str, ColumnType], arrows: Sequence[Arrow],
    resolutions: Sequence[Resolution], vocabulary: Vocabulary, media: dict[str, int],
) -> ModelConfig:  # fmt: skip
    """The source's config with the rows, stems and heads that this run needs. Raises RecipeError where it cannot be."""
    model, config = recipe.model, source.config
    if model.dim or model.depth or model.heads or model.options:
        raise RecipeError(
            "The model's size comes from its source: leave out model.dim, model.depth, model.heads and model.options."
        )
    if 0 < (reach := longest(config)) < recipe.train.length:
        raise RecipeError(
            f"train.length is {recipe.train.length}, and the positions of {source.name} end at {reach}. Lower it."
        )
    known = known_stems(config)
    for kind, features in media.items():
        if kind in known and known[kind].features != features:
            raise RecipeError(
                f"{source.name} takes {kind} tokens of {known[kind].features} features, and the recipe makes "
                f"{features}. {fitting(kind, known[kind].features)}"
            )
    width = outlet_width(config)
    stems = {kind: MlpStem(features, 2 * width) for kind, features in media.items() if kind not in known}
    heads: dict[str, Any] = {}
    if any(r.head == "language" for r in resolutions):
        before = config.heads.get("language", Language(vocabulary.size))
        heads["language"] = replace(before, vocab=vocabulary.size)
    for name, classes in label_heads(types, arrows, resolutions).items():
        before = config.heads.get(name)
        heads[name] = before if isinstance(before, Classify) and before.classes == classes else Classify(classes)
    return grow_config(config, vocabulary.size, stems, heads)


def fitting(kind: str, features: int) -> str:
    """What to say in a recipe so that a token has so many features."""
    if kind == "image":
        return f"Set image.patch={round((features / 3) ** 0.5)}."
    return f"Set audio.mels and audio.stack so that their product is {features}."


def model_config(
    recipe: Recipe,
    types: dict[str, ColumnType],
    arrows: Sequence[Arrow],
    resolutions: Sequence[Resolution],
    vocabulary: Vocabulary,
    media: dict[str, int],
) -> ModelConfig:
    """The family's config for this vocabulary, these inputs, these heads."""
    model, options = recipe.model, dict(recipe.model.options)
    sides = media_sides(types, arrows)
    if families.FAMILIES[families.known(model.family)].kind == "dual" and media and any(sides):
        options.setdefault("media", "both" if all(sides) else "left" if sides[0] else "right")
    config = families.make(
        model.family, vocab=vocabulary.size, length=recipe.train.length,
        dim=model.dim, depth=model.depth, heads=model.heads,
        stems=media, labels=label_heads(types, arrows, resolutions),
        language=any(r.head == "language" for r in resolutions), codes=drawn(recipe, vocabulary),
        options=options, frames=recipe.audio.stack,
    )  # fmt: skip
    return replace(config, topology=opened(config.topology, [side and vocabulary.marker(side) for side in sides]))


def media_sides(types: dict[str, ColumnType], arrows: Sequence[Arrow]) -> tuple[str, str]:
    """The first column of pictures or sounds that the arrows show a model, on their left side and right of a <->."""
    shown = [[c.name for arrow in arrows for c in arrow.inputs]]
    shown += [[c.name for arrow in arrows if arrow.kind == "align" for c in arrow.outputs]]
    left, right = (next((n for n in names if types[n].name in ("image", "audio")), "") for names in shown)
    return left, right


def opened(topology: Any, markers: Sequence[Any]) -> Any:
    """The topology with the markers of `media_sides` as what stands before media that come without ids."""
    if isinstance(topology, DualEncoderConfig):
        towers = {
            side: opened(getattr(topology, side), [m]) for side, m in zip(("left", "right"), markers, strict=True)
        }
        return replace(topology, **towers)
    marker = next((m for m in markers if m not in ("", None)), None)
    if marker is None:
        return topology
    for name in ("input", "encoder", "tower", "source"):
        part = getattr(topology, name, None)
        if isinstance(part, TextInput):
            return replace(topology, **{name: replace(part, opening=(marker,))})
        if isinstance(part, TowerConfig):
            return replace(topology, **{name: opened(part, markers)})
    return topology


def drawn(recipe: Recipe, vocabulary: Vocabulary) -> dict[str, tuple[int, int, int]]:
    """Kind of media that is drawn -> its first id, how many codes there are, how many make an item (0: any)."""
    blocks = {kind: vocabulary.blocks.get(f"codes:{kind}", range(0)) for kind in ("image", "audio")}
    each = {"image": recipe.image.codes, "audio": 0}
    return {kind: (ids.start, len(ids), each[kind]) for kind, ids in blocks.items() if ids}


def samples(
    recipe: Recipe, table: Table, split: np.ndarray, arrows: Sequence[Arrow], types: dict[str, ColumnType],
    codecs: dict[str, Any],
) -> dict[str, list[np.ndarray]]:  # fmt: skip
    """A few held-out items of each kind that has a codec; of the training rows where none is held out."""
    found = {}
    for kind, columns in produced(arrows, types).items():
        for names in (("validation", "test"), ("train",)):
            rows_of = producing(table, np.flatnonzero(np.isin(split, names)), arrows, columns)
            if any(len(rows) for rows in rows_of.values()):
                break
        found[kind] = [item for item, _ in distinct(recipe, table, rows_of, kind, PAIRS)]
    return {kind: items for kind, items in found.items() if kind in codecs}


def show_codecs(folder: Path, codecs: dict[str, Any], told: dict[str, Any], items: dict[str, list[np.ndarray]]) -> None:
    """Write codecs/report.json, and originals beside what their codes give back."""
    for kind, codec in codecs.items():
        originals = items.get(kind)
        if not originals:  # a source's codec that no arrow of this run needs
            continue
        if kind == "image":
            originals = [square(item, codec.settings["size"]) for item in originals]
        back = codec.decode(codec.encode(originals))
        write, ending = (to_png, "png") if kind == "image" else (lambda mel: to_wav(to_wave(mel)), "wav")
        pairs = []
        for number, pair in enumerate(zip(originals, back, strict=True)):
            names = [f"{kind}-{number}-{side}.{ending}" for side in ("original", "codes")]
            for name, item in zip(names, pair, strict=True):
                (folder / name).write_bytes(write(item))
            pairs.append(names)
        told.setdefault(kind, {"codebook": codec.size})["pairs"] = pairs  # of a source's codec nothing else is known
    if codecs:
        (folder / "report.json").write_text(json.dumps(told, indent=1), encoding="utf-8")


def resolved(recipe: Recipe, prepared: Prepared) -> Recipe:
    """The recipe with what preparation decided written in: types, size of the vocabulary, steps of the codecs."""
    text, steps = prepared.renderer.text, prepared.codec_steps
    family = prepared.config.family if recipe.model.source else recipe.model.family
    return replace(
        recipe,
        model=replace(recipe.model, family=family),
        image=replace(prepared.renderer.image, codec_steps=steps.get("image", recipe.image.codec_steps)),
        audio=replace(prepared.renderer.audio, codec_steps=steps.get("audio", recipe.audio.codec_steps)),
        types={name: kind.name for name, kind in prepared.types.items()},
        text=replace(recipe.text, vocabulary=text.size if text else 0),
    )
