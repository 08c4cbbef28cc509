"""A text model with its tokenizer, from any source: what chat, embeddings and search open."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weft.convert.hf import Imported
from weft.convert.load import named, read
from weft.convert.tokenizer import SavedTokenizer, holds_tokenizer, load_file, of_folder
from weft.convert.whole import from_nothing, whole
from weft.errors import ConvertError
from weft.modalities.text import TextCodec
from weft.model import Model
from weft.run import RECIPE, Run

ANY_LENGTH = 1 << 20  # tokens, where nothing says how many a model can look at


@dataclass(frozen=True, eq=False)
class TextModel:
    """model      ready to predict
    tokenizer  of the same vocabulary
    context    tokens that the model was made for
    raw        config.json of the layout that it came from ({}: none)
    path       where it lies
    """

    model: Model
    tokenizer: SavedTokenizer
    context: int
    raw: dict[str, Any] = field(default_factory=dict)
    path: Path = Path()


def open_text(source: str | Path) -> TextModel:
    """The text model of a run, a model directory, a .gguf or a pretrained name.

    Raises ConvertError for a source without a tokenizer, or one whose vocabulary is larger than the model's.
    """
    path = named(source)
    if (path / RECIPE).is_file():
        run = Run.open(path)
        model, (tokenizer, raw) = run.model(), of_run(run)
    else:
        imported = read(path)
        model, tokenizer, raw = imported.model(), of_imported(imported, path), imported.raw
    if "language" in model.config.heads and tokenizer.codec.size > model.classes():
        raise ConvertError(f"{source}: the tokenizer has {tokenizer.codec.size} ids, the model {model.classes()}.")
    context = raw.get("max_position_embeddings") or raw.get("n_positions")
    return TextModel(model, tokenizer, context if isinstance(context, int) else ANY_LENGTH, raw, path)


def of_imported(imported: Imported, path: Path) -> SavedTokenizer:
    """The tokenizer of a model of another layout."""
    if imported.tokenizer is None:
        return of_folder(path)
    return saved(TextCodec(imported.tokenizer), imported.special, imported.chat_template)


def of_run(run: Run) -> tuple[SavedTokenizer, dict[str, Any]]:
    """The tokenizer of a run, and the config of what it was imported from.

    Of one that was trained from nothing it has all ids, those of weft's own as control tokens (whole.py).
    """
    from weft.convert.transfer import COMPANIONS, TOKENIZER, told

    said = told(run)
    if holds_tokenizer(run.path / COMPANIONS):
        return of_folder(run.path / COMPANIONS), said.get("config", {})
    if not (run.path / TOKENIZER).is_file():
        raise ConvertError(f"{run.path} has no {TOKENIZER}: it is no model of texts.")
    if from_nothing(run):
        return whole(run), {}
    codec = TextCodec(load_file(run.path / TOKENIZER))
    return saved(codec, said.get("special", {}), said.get("chat_template", "")), said.get("config", {})


def saved(codec: TextCodec, special: dict[str, list[int]], template: str) -> SavedTokenizer:
    """A tokenizer with what is said about it."""
    roles = {role: numbers[0] for role, numbers in special.items() if numbers}
    return SavedTokenizer(codec, roles, tuple(special.get("eos", ())), template)
