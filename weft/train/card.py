"""card.md: what a trained model is, for people. Only what is known of it; what was not measured is not claimed."""

from __future__ import annotations

from pathlib import Path

from weft.adapt.freeze import share
from weft.train.keep import told
from weft.train.loop import Session
from weft.train.prepare import Prepared


def card(session: Session, prepared: Prepared) -> str:
    """The card's text, from the run as it is."""
    run, state = session.run, session.state
    recipe = run.recipe
    parameters = sum(p.numel() for p in session.model.parameters())
    counted = {name: int((prepared.split == name).sum()) for name in ("train", "validation", "test")}
    done = "all" if state.step == recipe.train.steps else f"{state.step:,} of"
    lines = [
        f"# {run.path.name}",
        "",
        f"A `{recipe.model.family}` model of {parameters:,} parameters, trained from {began(session)} on "
        f"`{prepared.table.name}`, {done} {recipe.train.steps:,} steps, {state.tokens:,} tokens.",
        "",
        "| arrow | objective | decoder | metric |",
        "|---|---|---|---|",
        *(
            f"| `{a}` | {r.objective} | {r.decoder} | {r.metric} |"
            for a, r in zip(session.names, prepared.resolutions, strict=True)
        ),
        "",
        "| column | type | why |",
        "|---|---|---|",
        *(f"| {name} | {kind.name} | {kind.reason} |" for name, kind in prepared.types.items()),
        "",
        f"Rows: {counted['train']:,} for training, {counted['validation']:,} for validation, "
        f"{counted['test']:,} for the test. Left out: {len(session.loader.skipped):,} (skipped.jsonl).",
        "",
        "Held-out loss per token at the end:",
        "",
        *held_out(run.metrics("validation")),
        *([f"- {said}"] if (said := told(run.metrics("event"))) else []),
        "",
        "It knows what these rows show and nothing else; it has not been tested for any use beyond them.",
        f"Go on with `weft eval {run.path}` and `weft predict {run.path} ARROW`.",
    ]
    return "\n".join(lines) + "\n"


def began(session: Session) -> str:
    """What it started from, and how much of it was trained."""
    source = session.run.recipe.model.source
    trained, every = share(session.model)
    if not source:
        return "nothing" if trained == every else f"nothing, {trained / every:.1%} of them,"
    what = "adapters" if session.run.recipe.model.lora.rank else "weights"
    return f"`{Path(source).name}` ({what}: {trained:,} parameters trained, {trained / every:.1%})"


def held_out(validations: list[dict]) -> list[str]:
    """The last validation, as lines."""
    if not validations:
        return ["- no rows were held out"]
    return [f"- `{name}`: {loss:.3f}" for name, loss in validations[-1]["validation"]["arrows"].items()]
