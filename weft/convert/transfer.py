"""`weft import` and `weft export`: a model of another layout as a run directory, and back.

runs/gpt2/
├── recipe.toml          data = "", model.source says where it came from
├── config.json          our tree
├── model.safetensors    our names
├── tokenizer.json       where there is one
├── source.json          config of the other layout, chat template, special tokens, preprocessing
└── companions/          its other files, as they were; the export writes them again
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer

from weft.convert.hf import Imported, chat_template, save_hf
from weft.convert.load import named, reached, read
from weft.convert.tokenizer import holds_tokenizer, of_folder
from weft.convert.weights import own
from weft.convert.whole import from_nothing, whole
from weft.core.config import to_tree
from weft.core.embed import Input
from weft.errors import ConvertError, nearest
from weft.model import Model
from weft.recipe import ModelRecipe, Recipe
from weft.run import CONFIG, WEIGHTS, Run

SOURCE, COMPANIONS, TOKENIZER = "source.json", "companions", "tokenizer.json"

PARTS = ("bos", "eos", "unk", "pad", "cls", "sep", "mask")  # that a tokenizer_config.json names
ENDS = ("bos", "eos", "pad", "decoder_start")  # that a generation_config.json names

# --to -> module:function that writes it, (Run, Path) -> Path of what was written.
TARGETS: dict[str, str] = {
    "hf": "weft.convert.transfer:export_hf",
    "gguf": "weft.convert.gguf.write:as_f16",
    "gguf-f32": "weft.convert.gguf.write:as_f32",
    "gguf-q8_0": "weft.convert.gguf.write:as_q8_0",
    "onnx": "weft.convert.export_onnx:export_onnx",
}


def import_model(source: str | Path, out: str | Path) -> Run:
    """Make a run directory of a model of another layout: `weft.import_model("models/gpt2", "runs/gpt2")`.

    Raises ConvertError for a source that cannot be read, RunError if a run is in `out` already.
    """
    return keep(read(source), out, str(source))


def keep(imported: Imported, out: str | Path, source: str) -> Run:
    """Write what was read as a run directory."""
    config, tokenizer = imported.config, tokenizer_of(imported, source)
    recipe = Recipe(out=str(out), model=ModelRecipe(family=config.family, source=source))
    model = imported.model()
    if tokenizer is not None:
        fits(tokenizer, model, source)
    run = Run.create(out, recipe)
    (run.path / CONFIG).write_text(json.dumps(to_tree(config), indent=1) + "\n", encoding="utf-8")
    save_file({name: t.cpu().contiguous() for name, t in own(model).items()}, run.path / WEIGHTS)
    for name, path in imported.files.items():
        target = run.path / COMPANIONS / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    if tokenizer is not None:
        tokenizer.save(str(run.path / TOKENIZER))
    told = {
        "source": source,
        "architecture": imported.raw.get("architectures", [""])[0],
        "config": imported.raw,
        "chat_template": imported.chat_template,
        "special": imported.special,
        "preprocessing": imported.preprocessing,
    }
    write_json(run.path / SOURCE, told)
    return run


def tokenizer_of(imported: Imported, source: str) -> Tokenizer | None:
    """What was read with the weights, else that of the directory, in whatever form it is there; None: there is none."""
    folder = named(source)
    if imported.tokenizer is None and folder.is_dir() and holds_tokenizer(folder):
        return of_folder(folder).codec.tokenizer
    return imported.tokenizer


def fits(tokenizer: Tokenizer, model: Model, source: str) -> None:
    """Raise ConvertError if the tokenizer gives ids that the model has no row for."""
    rows = max((m.config.vocab for m in model.modules() if isinstance(m, Input)), default=0)
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= rows:
        raise ConvertError(
            f"The tokenizer of {source} gives ids up to {largest:,}, but the model's table has {rows:,} rows. "
            "It belongs to another model."
        )


def told(run: Run) -> dict[str, Any]:
    """What the source of a run said, empty if it was trained from nothing."""
    path = run.path / SOURCE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConvertError(f"{path} cannot be read ({error}). Import the source again.") from error
    return found if isinstance(found, dict) else {}


def export(run: str | Path | Run, folder: str | Path, to: str = "hf", merge: bool = False) -> Path:
    """Write a run's model for other programs: `weft.export("runs/mine", "models/mine", to="hf")`.

    merge  of a run that trained an adapter: put it into the weights
    Raises ConvertError for a target that is not known, or one that cannot say all of the model.
    """
    if to not in TARGETS:
        raise ConvertError(f"weft cannot export to {to!r}.{nearest(to, TARGETS)}")
    run = run if isinstance(run, Run) else Run.open(run)
    if run.recipe.model.lora.rank and not merge:
        raise ConvertError(
            f"{run.path} holds an adapter beside its base. Merge them with --merge; the adapter by itself, as peft "
            f"reads it, lies in {run.path / 'adapter'}."
        )
    run = replace(run, merge=merge)
    return reached(TARGETS[to])(run, Path(folder))


def export_hf(run: Run, folder: Path) -> Path:
    """The run's model as a directory of the hub's form, with the companions that came with its source.

    What a source said elsewhere (a GGUF, in its header) is written in the files where a directory says it.
    """
    beside = run.path / COMPANIONS
    files = {str(p.relative_to(beside)): p for p in sorted(beside.rglob("*")) if p.is_file()} if beside.is_dir() else {}
    words = whole(run) if from_nothing(run) else None
    if TOKENIZER not in files and words is None and (run.path / TOKENIZER).is_file():
        files[TOKENIZER] = run.path / TOKENIZER
    said = told(run)
    model = run.model()
    save_hf(model, folder, said.get("config"), files=files)
    template, special = said.get("chat_template"), said.get("special") or {}
    if words is not None:
        files[TOKENIZER] = folder / TOKENIZER
        words.codec.tokenizer.save(str(files[TOKENIZER]))
        special = {role: [number] for role, number in words.roles.items()}
        if model.kind == "encoder-decoder":
            special["decoder_start"] = special["pad"]  # as it was trained (generate/prompt.py: lay)
    if template and not chat_template(files):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    if special and TOKENIZER in files and "tokenizer_config.json" not in files:
        control = Tokenizer.from_file(
            str(files[TOKENIZER])
        ).get_added_tokens_decoder()  # a config.json may name ids that are plain words here
        tokens = {
            f"{p}_token": control[ids[0]].content for p, ids in special.items() if p in PARTS and ids[0] in control
        }
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **tokens})
    if special and "generation_config.json" not in files and model.kind in ("decoder", "encoder-decoder"):
        ends = {f"{part}_token_id": ids if len(ids) > 1 else ids[0] for part, ids in special.items() if part in ENDS}
        write_json(folder / "generation_config.json", ends)
    return folder


def write_json(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
