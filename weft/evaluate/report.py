"""`weft report RUN`: everything a run left behind, on one self-contained page (RUN/report.html).

The page holds no script and asks for nothing from outside: styles, drawings, pictures and sounds are inside it. This
module reads the run directory's files; page.py turns them into HTML; chart.py draws. A missing file leaves its
section out, or says which command makes it.
"""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weft.errors import RunError


@dataclass
class Facts:
    """What was found in a run directory.

    steps      lines of metrics.jsonl that carry a training loss: step, time, loss, arrows, tokens_per_second, lr
    validations  lines that carry a `validation`: step, loss, arrows
    events     lines that carry an `event`: start, resume, end, blind, nonfinite, ...
    results    results.json: {arrow, split, metric, value, low, high, n, hash, baselines}
    samples    samples/index.json: {arrow, inputs: {column: text or file}, expected, produced}
    codecs     codecs/report.json: {kind: {codebook, use, perplexity, error, baseline, pairs: [[before, after], ...]}}
    skipped    skipped.jsonl: {row, file, reason}
    command    the words that started the run
    table      facts about the data: table.json beside the table (or in the run), as they are
    """

    path: Path
    recipe_text: str
    recipe: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)
    validations: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    codecs: dict[str, Any] = field(default_factory=dict)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    table: dict[str, Any] = field(default_factory=dict)
    command: str = ""

    def event(self, name: str) -> dict[str, Any]:
        """The last event of that name; {} where there is none."""
        return next((e for e in reversed(self.events) if e["event"] == name), {})

    def all(self, name: str) -> list[dict[str, Any]]:
        """Every event of that name, in order."""
        return [e for e in self.events if e["event"] == name]


def report(run: str | Path | Any) -> Path:
    """Write `report.html` into a run directory and return its path.

    `run` is a run directory or a `Run`. Raises RunError where there is no run.
    """
    from weft.evaluate.page import page

    folder = Path(getattr(run, "path", run))
    text = page(read(folder))
    out = folder / "report.html"
    staged = out.with_suffix(".html.part")
    staged.write_text(text, encoding="utf-8")
    os.replace(staged, out)  # a reader never sees half a page
    return out


def read(folder: Path) -> Facts:
    """Gather a run directory's facts."""
    recipe_file = folder / "recipe.toml"
    if not recipe_file.is_file():
        raise RunError(f"{folder} is no run: it holds no recipe.toml. `weft train ... --out {folder}` makes one.")
    recipe_text = recipe_file.read_text(encoding="utf-8")
    facts = Facts(folder, recipe_text, tomllib.loads(recipe_text))
    for line in lines(folder / "metrics.jsonl"):
        if "event" in line:
            facts.events.append(line)
        elif "validation" in line:
            facts.validations.append({"step": line["step"], **line["validation"]})
        elif "loss" in line:
            facts.steps.append(line)
    facts.results = document(folder / "results.json", [])
    facts.samples = document(folder / "samples" / "index.json", [])
    facts.codecs = document(folder / "codecs" / "report.json", {})
    facts.skipped = lines(folder / "skipped.jsonl")
    command = folder / "command.txt"
    facts.command = command.read_text(encoding="utf-8").strip() if command.is_file() else ""
    facts.table = table_facts(folder, facts.recipe)
    return facts


def table_facts(folder: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """What `table.json` says, in the run or beside its table: a JSON object of facts about the data, for the report.

    Anyone may write one: {"source": "our own photographs", "licence": "CC BY 4.0", "voices": {"train": 40, "test": 6}}
    """
    data = Path(str(recipe.get("data") or ""))
    beside = data if data.is_dir() else data.parent
    place = next((p for p in (folder / "table.json", beside / "table.json") if p.is_file()), None)
    if place is None:
        return {}
    facts = document(place, {})
    if not isinstance(facts, dict):
        raise RunError(f"{place} holds {type(facts).__name__}; a JSON object of facts about the table was expected.")
    return facts


def document(path: Path, missing: Any) -> Any:
    """A JSON file's content; `missing` where there is no file. Raises RunError naming a file that cannot be read."""
    if not path.is_file():
        return missing
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}. Remove it and make it again.") from error


def lines(path: Path) -> list[dict[str, Any]]:
    """A JSONL file's records. A last line cut off by a kill is left out; a damaged line before it is an error."""
    if not path.is_file():
        return []
    rows = path.read_text(encoding="utf-8").splitlines()
    out = []
    for number, row in enumerate(rows, start=1):
        try:
            out.append(json.loads(row))
        except ValueError as error:
            if number < len(rows):
                raise RunError(f"{path}, line {number} is damaged: {error}.") from error
    return out
