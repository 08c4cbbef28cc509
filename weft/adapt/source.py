"""What training can start from: a run of weft's, an imported one, or weights of another layout.

runs/mine        a vocabulary, codecs and column types of its own: all stay, and grow
runs/imported    text ids of its own tokenizer, a chat template
anything else    is read as `weft import` reads it
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from weft.adapt.merge import plain
from weft.adapt.start import BASE, START, Start, digest, known_stems, rows
from weft.arrows.render import LAYOUT
from weft.arrows.vocabulary import Vocabulary
from weft.convert.hf import Imported
from weft.convert.load import read
from weft.convert.transfer import COMPANIONS, SOURCE, TOKENIZER, told
from weft.core.config import ModelConfig
from weft.errors import RecipeError
from weft.modalities.text import TextCodec
from weft.model import kind
from weft.recipe import Recipe
from weft.run import RECIPE, WEIGHTS, Run

SCALES = {"WhisperFeatureExtractor": "whisper"}  # what a source says of its sounds -> audio.scale


@dataclass(frozen=True, eq=False)
class Source:
    """Weights to start from, and what belongs to them.

    name        as it was given
    config      of the model
    text        its tokenizer; None: it reads no text, or none came with it
    vocabulary  all of its ids: of a run as its renderer has them, else the ids of its text
    columns     column -> type, as a run of weft's knew them
    codecs      of a run of weft's
    template    Jinja text of its chat template, or ""
    told, files what an export needs to write it back
    fresh       parameters of the config that are in no weights and start anew (bridges between joined parts)
    layout      of what its renderer makes: where the weights know the codes of a picture to stand
    media       "image", "audio" -> what the recipe has to say of them, so that they are made ready as the weights know
    """

    name: str
    config: ModelConfig
    weights: Callable[[], dict[str, Tensor]]
    text: TextCodec | None
    vocabulary: Vocabulary
    columns: dict[str, Any] = field(default_factory=dict)
    codecs: dict[str, Any] = field(default_factory=dict)
    template: str = ""
    told: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    layout: int = LAYOUT
    media: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """decoder | encoder | encoder-decoder | dual."""
        return kind(self.config.topology)

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """Its weights by weft's names."""
        return self.weights()

    def keep(self, folder: Path, state: dict[str, Tensor], new: tuple[str, ...]) -> Start:
        """Write into a run what it starts from: the weights at its first step, and what an export needs."""
        start = Start(self.name, digest(self.state), rows(self.config), new)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / BASE)
        (folder / START).write_text(json.dumps(asdict(start), indent=1) + "\n", encoding="utf-8")
        if self.told:
            (folder / SOURCE).write_text(json.dumps(self.told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for name, path in self.files.items():
            target = folder / COMPANIONS / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        return start


def open_source(name: str) -> Source:
    """What `name` means: a run, a model directory, a weight file, or a pretrained name.

    Raises RunError or ConvertError: what is wrong with it.
    """
    path = Path(name)
    return of_run(name, Run.open(path)) if (path / RECIPE).is_file() else of_import(name, read(name))


def of_run(name: str, run: Run) -> Source:
    """A run of weft's, trained or imported. An adapter in it is merged."""
    said = told(run)
    text = TextCodec.load(run.path / TOKENIZER) if (run.path / TOKENIZER).is_file() else None
    beside = run.path / COMPANIONS
    files = {str(p.relative_to(beside)): p for p in sorted(beside.rglob("*")) if p.is_file()} if beside.is_dir() else {}
    template = str(said.get("chat_template") or "")
    if not (run.path / "renderer.json").is_file():
        if not (run.path / WEIGHTS).is_file():
            raise RecipeError(f"{name} was never trained to its first save: there is nothing in it to start from.")
        vocabulary = of_text(run.config, said.get("special", {}))
        weights = lambda: load_file(run.path / WEIGHTS)
        media = ready(said.get("preprocessing") or {})
        return Source(name, run.config, weights, text, vocabulary, {}, {}, template, said, files, media=media)
    renderer = run.renderer
    ways = {
        "image": {"mean": renderer.image.mean, "std": renderer.image.std}, "audio": {"scale": renderer.audio.scale}
    }  # fmt: skip
    media = {name: way for name, way in ways.items() if name in known_stems(run.config)}
    return Source(
        name, run.config, lambda: merged(run), renderer.text, renderer.vocabulary, dict(renderer.columns),
        dict(renderer.codecs), template, said, files, layout=renderer.layout if "image" in renderer.codecs else LAYOUT,
        media=media,
    )  # fmt: skip


def of_import(name: str, imported: Imported) -> Source:
    """Weights of another layout, as they were read."""
    said = {
        "source": name,
        "architecture": imported.raw.get("architectures", [""])[0],
        "config": imported.raw,
        "chat_template": imported.chat_template,
        "special": imported.special,
        "preprocessing": imported.preprocessing,
    }
    text = None if imported.tokenizer is None else TextCodec(imported.tokenizer)
    if text is None and TOKENIZER in imported.files:
        text = TextCodec.load(imported.files[TOKENIZER])
    vocabulary = of_text(imported.config, imported.special)
    template, files = imported.chat_template, dict(imported.files)
    return Source(
        name, imported.config, lambda: dict(imported.state), text, vocabulary, {}, {}, template, said, files,
        media=ready(imported.preprocessing),
    )  # fmt: skip


def ready(said: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """`Source.media` from what another library's files say of how media are made ready. Raises RecipeError for what is
    no such thing."""
    media: dict[str, dict[str, Any]] = {}
    if "image_mean" in said or "image_std" in said:
        media["image"] = {own: three(said, f"image_{own}") for own in ("mean", "std")}
        if said.get("do_normalize") is False:
            media["image"] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if scale := SCALES.get(said.get("feature_extractor_type", "")):
        media["audio"] = {"scale": scale}
    return media


def three(said: dict[str, Any], key: str) -> tuple[float, ...]:
    """A number for each of red, green and blue; one for all is three equal ones."""
    found = said.get(key)
    numbers: list[Any] = list(found) if isinstance(found, list | tuple) else [found]
    if len(numbers) not in (1, 3) or not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise RecipeError(
            f"{key} of the source's preprocessor_config.json is {found!r}; three numbers were expected, of red, green "
            "and blue."
        )
    return tuple(float(n) for n in numbers) * (3 // len(numbers))


def suited(recipe: Recipe, source: Source, kinds: Sequence[str], say: Callable[[str], None] | None = None) -> Recipe:
    """The recipe with the source's own way of making media of these kinds ready; `say` is told where the recipe said
    another."""
    for name in kinds:
        before, usual = getattr(recipe, name), getattr(Recipe(), name)
        for key, value in source.media.get(name, {}).items():
            wanted = getattr(before, key)
            if say and wanted not in (value, getattr(usual, key)):
                say(f"{name}.{key} is {value}, as {source.name} knows it, not {wanted} as the recipe says")
        recipe = replace(recipe, **{name: replace(before, **source.media.get(name, {}))})
    return recipe


def of_text(config: ModelConfig, special: dict[str, list[int]]) -> Vocabulary:
    """The vocabulary of pretrained weights: as many ids as its table has rows."""
    ends = special.get("eos") or [None]
    return Vocabulary.pretrained(rows(config), ends[0])


def merged(run: Run) -> dict[str, Tensor]:
    """The weights of a run under plain names: adapters and new rows put where they belong."""
    model = plain(run.model())
    return {name: parameter.detach() for name, parameter in model.named_parameters()}
