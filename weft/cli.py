"""The command line: read the words, call the public function of the same name, print what it returns.

    weft plan | train | predict | eval | check | compare | report | import | export | chat | embed | search

Exit codes: 0 done; 2 the user's input is at fault (one message on stderr); 130 interrupted; 1 our own fault, with a
traceback.
Nothing here imports torch: `weft --help` answers at once.
"""

from __future__ import annotations

import errno
import functools
import inspect
import json as json_module
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

import weft
from weft.cli_text import register
from weft.errors import RecipeError, WeftError, nearest

if TYPE_CHECKING:
    from weft.arrows.grammar import Arrow

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # a full or read-only disk is nobody's bug


class Commands(TyperGroup):
    """Every subcommand, with one place that turns errors into exit codes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # "-> text" starts with a dash, but it is an arrow, not an option.
        return super().parse_args(ctx, [f" {word}" if word.startswith("->") else word for word in args])

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except WeftError as error:
            print(f"weft: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        except OSError as error:
            if error.errno not in DISK:
                raise
            where = f"{error.filename}: " if error.filename else ""
            print(f"weft: {where}{error.strerror}. What was saved before is intact.", file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            print("weft: interrupted", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="DATA ARROWS... [KEY=VALUE...]", show_default=False,
                   help="A table (folder, csv, jsonl, parquet, tar), then arrows; or a recipe.toml. "
                        "key=value changes the recipe: train.lr=0.01"),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="Machine-readable results on stdout, and nothing else there.")]
Family = Annotated[str | None, typer.Option(help="Model family; the default is weft's own.", show_default=False)]
Seed = Annotated[int | None, typer.Option(help="Same recipe, seed and machine: same bits.", show_default=False)]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="SOURCE",
        show_default=False,
        help="Start from these weights: a run, a model directory, a weight file or a pretrained name.",
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option(
        "--lora",
        metavar="r=8,alpha=16,target=attn+ffn,dora",
        show_default=False,
        help="Train adapters and leave the source's weights alone.",
    ),
]
Freeze = Annotated[
    list[str] | None,
    typer.Option(
        "--freeze",
        metavar="PATTERN",
        show_default=False,
        help="Parts that stay as they are, as 'body.input'; may be repeated.",
    ),
]
Keep = Annotated[
    str | None,
    typer.Option(
        "--keep",
        metavar="FILE",
        show_default=False,
        help="Plain text: the language model's loss on it is told before and after.",
    ),
]
Teacher = Annotated[
    str | None,
    typer.Option(
        "--teacher", metavar="RUN", show_default=False, help="Learn from this run's answers as well (distillation)."
    ),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)]
KEY = re.compile(r"""[A-Za-z_]\w*(\.([\w-]+|"[^"]*"|'[^']*'))*\s*=""")  # a dotted key and its =: no arrow starts so
Adapted = Sequence[str]  # the five options From ... Teacher as overrides of the recipe, by `adaptable`
PREDICT_WORDS = {"allow_extra_args": True, "ignore_unknown_options": True}  # --COLUMN is known only once the arrow is


def grouped(into: str, options: dict[str, tuple[Any, Any]], gather: Callable[..., Any] = dict) -> Callable:
    """A decorator: a command with options {name: (annotation, default)}, which it gets as one argument, `into`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            command(**{into: gather(**{name: given.pop(name) for name in options})}, **given)

        signature, only = inspect.signature(command, eval_str=True), inspect.Parameter.KEYWORD_ONLY
        own = [p.replace(kind=only) for p in signature.parameters.values() if p.name != into]
        more = [inspect.Parameter(n, only, default=usual, annotation=option) for n, (option, usual) in options.items()]
        run.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in [*own, *more]}
        return run

    return decorate


adaptable = grouped(
    "adapted",
    {
        "source": (From, None),
        "lora": (Adapter, None),
        "freeze": (Freeze, None),
        "keep": (Keep, None),
        "teacher": (Teacher, None),
    },
    lambda **given: adapting(**given),  # which stands below
)
DRAWN: dict[str, tuple[Any, Any]] = {
    "temperature": (Annotated[float | None, typer.Option(help="0: the likeliest token. Unless said: 0, for pictures 1.",
                                                         show_default=False)], None),
    "top_k": (Annotated[int, typer.Option(help="Only the k likeliest tokens; 0: all.")], 0),
    "top_p": (Annotated[float, typer.Option(help="Only the likeliest tokens that make up this share.")], 1.0),
    "guidance": (Annotated[float | None, typer.Option(help="How much of what the words change, where the run "
                                                      "learned it. Unless said: 1, for pictures 2.",
                                                      show_default=False)], None),
    "seed": (Annotated[int, typer.Option(help="For temperature > 0.")], 0),
}  # fmt: skip


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Weave text, images and sound into one language model: a table and a few arrows in, a proven model out."""
    if version:
        print(f"weft {weft.__version__}")
        raise typer.Exit


@app.command()
@adaptable
def plan(
    words: Words = None, family: Family = None, seed: Seed = None, json: Json = False, adapted: Adapted = ()
) -> None:
    """Say what a run would do: columns, arrows, which tokens are trained, size, memory and time."""
    data, arrows, overrides = split_words(words)
    overrides = [*adapted, *overrides]
    found = weft.plan(data, *arrows, family=family, overrides=with_seed(overrides, seed))
    print_json(found) if json else print(found)


@app.command()
@adaptable
def check(
    words: Words = None, family: Family = None, seed: Seed = None, json: Json = False, adapted: Adapted = ()
) -> None:
    """Prove on your own rows that training, packing, decoding and resuming are right. Under a minute."""
    data, arrows, overrides = split_words(words)
    overrides = [*adapted, *overrides]
    found = weft.check(data, *arrows, family=family, overrides=with_seed(overrides, seed))
    print_json(found) if json else print(found)


@app.command()
@adaptable
def train(
    words: Words = None,
    out: Annotated[Path | None, typer.Option(help="The run directory to make.", show_default=False)] = None,
    minutes: Annotated[float | None, typer.Option(help="Time to train; 10 unless said.", show_default=False)] = None,
    steps: Annotated[int | None, typer.Option(help="Steps to train, in place of minutes.", show_default=False)] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run, bit for bit.", show_default=False)] = None,
    family: Family = None,
    seed: Seed = None,
    no_check: Annotated[bool, typer.Option("--no-check", help="Leave out the proofs before training.")] = False,
    json: Json = False,
    adapted: Adapted = (),
) -> None:
    """Train one model on all arrows. Ctrl-C saves and leaves; --resume goes on as if nothing had happened."""
    if resume is not None:
        if words or out is not None or family or seed is not None or adapted or no_check:
            raise RecipeError(
                "--resume goes on with the run's own recipe: it takes no data, arrows, --out, --family, --seed, "
                "--from, --lora, --freeze, --keep, --teacher or --no-check (the proofs are done before the first step)."
            )
        run = weft.train(resume=resume, minutes=minutes, steps=steps, json=json)
    else:
        data, arrows, overrides = split_words(words)
        overrides = [*adapted, *with_seed(overrides, seed), *(["train.options.check=false"] if no_check else [])]
        run = weft.train(
            data, *arrows, out=out, minutes=minutes, steps=steps, family=family, overrides=overrides, json=json
        )
    if not json and any(event["event"] == "end" for event in run.metrics("event")):
        print(f"\n{run.path} is ready. Next: weft eval {run.path}")


@app.command(context_settings=PREDICT_WORDS)
@grouped("drawn", DRAWN)
def predict(
    ctx: typer.Context,
    run: RunPath,
    arrow: Annotated[str, typer.Argument(metavar="ARROW [--COLUMN VALUE]...", show_default=False,
                     help="One of the run's arrows, then its inputs: --image cat.png --question 'what colour is it?'. "
                          "With a pretrained Whisper in place of a run: 'audio -> text', then sound files.")],
    table: Annotated[str | None, typer.Option(help="Many rows at once, from this table.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for pictures and sounds (RUN/predictions unless said), or "
                                            "the file of a single one; for texts a file, one on each line.",
                   show_default=False)] = None,
    adapter: Annotated[str, typer.Option(metavar="NAME", help="One of RUN/adapters, or a path; none: the base alone.",
                       show_default=False)] = "",
    format: Annotated[str, typer.Option(help="Of speech written down: text, srt, vtt or json.")] = "text",
    json: Json = False, drawn: Mapping[str, Any] = types.MappingProxyType({}),
) -> None:  # fmt: skip
    """Produce an arrow's output. Text is printed; pictures and sounds become files, whose paths are printed."""
    from weft.arrows.grammar import parse
    from weft.cli_out import checked, present
    from weft.convert.load import foreign

    parsed = parse(arrow)
    if foreign(run):
        return write_down(run, arrow, ctx.args, "json" if json else format, out)
    given = column_words(ctx.args)
    if table is not None:
        if given:
            raise RecipeError(f"--table gives the inputs; leave out {', '.join('--' + name for name in given)}.")
        rows = table_rows(table, parsed)
    else:
        rows = [check_inputs(parsed, given)]
    out = checked(out) if out else None  # before the work is done
    values = weft.predict(run, arrow, rows, adapter=adapter, **drawn)
    shown = present(values, out, run / "predictions", parsed.outputs[0].name)
    if json:
        print_json(
            [{"arrow": str(parsed), "inputs": row, "output": text} for row, text in zip(rows, shown, strict=True)]
        )
    else:
        print("\n".join(shown))


@app.command("eval")
def evaluate(
    run: RunPath,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    arrow: Annotated[
        list[str] | None, typer.Option(help="Only this arrow; may be repeated.", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many rows per arrow.", show_default=False)] = None,
    before: Annotated[bool, typer.Option("--before", help="Beside it, the model before its first step.")] = False,
    json: Json = False,
) -> None:
    """Measure every arrow on held-out rows, with 95 % intervals, beside baselines on the same rows."""
    results = weft.evaluate(run, split=split, arrows=arrow, limit=limit, before=before)
    print_json(results) if json else print_results(results)


@app.command()
def compare(
    run: RunPath,
    other: Annotated[Path, typer.Argument(metavar="OTHER", help="Another run directory.", show_default=False)],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    json: Json = False,
) -> None:
    """Compare two runs row by row. Scores that were not measured alike are refused."""
    found = weft.compare(run, other, split=split)
    print_json(found) if json else print(found)


@app.command()
def report(run: RunPath, json: Json = False) -> None:
    """Write RUN/report.html: one self-contained page with curves, results, samples and what went wrong."""
    path = weft.report(run)
    print_json({"report": str(path)}) if json else print(path)


@app.command("import")
def import_model(
    source: Annotated[str, typer.Argument(metavar="SOURCE", show_default=False,
                      help="A model directory of the Hugging Face hub's form, or a weight file.")],
    out: Annotated[Path, typer.Option(help="The run directory to make.", show_default=False)],
    json: Json = False,
) -> None:  # fmt: skip
    """Make a run directory of a model of another layout, every tensor accounted for by name."""
    run = weft.import_model(source, out)
    print_json({"run": str(run.path)}) if json else print(f"{run.path} is ready.")


@app.command()
def export(
    run: RunPath,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; new.", show_default=False)],
    to: Annotated[str, typer.Option(help="hf: a model directory of the Hugging Face hub's form; gguf; onnx.")] = "hf",
    merge: Annotated[bool, typer.Option("--merge", help="Put the adapter that was trained into the weights.")] = False,
    json: Json = False,
) -> None:
    """Write a run's model for other programs."""
    path = weft.export(run, folder, to=to, merge=merge)
    print_json({"export": str(path)}) if json else print(path)


register(app)  # chat, embed, search


# ------------------------------------------------------------------------------------------------ reading the words


def split_words(words: Sequence[str] | None) -> tuple[str, list[str], list[str]]:
    """`DATA ARROWS... key=value...` -> (data, arrows, overrides). An arrow holds `->`, `<->` or starts with `~`.

    A key may hold an arrow in quotes: `mix."a -> b"=0.5`; so may a value: `arrows=["a -> b"]`.
    """
    data, arrows, overrides = "", [], []
    for word in words or ():
        if KEY.match(word) and not Path(word).exists():
            overrides.append(word)
        elif "->" in word or word.lstrip().startswith("~"):
            arrows.append(word.strip())
        elif "=" in word and not Path(word).exists():
            overrides.append(word)
        elif not data:
            data = word
        else:
            raise RecipeError(
                f"{word!r} is neither an arrow (a -> b, -> a, ~a, a <-> b) nor key=value; the data is {data!r} already."
            )
    if not data:
        raise RecipeError(
            "Name the data first: weft train photos/metadata.csv 'image -> caption', or weft train recipe.toml"
        )
    return data, arrows, overrides


def adapting(
    source: str | None, lora: str | None = None, freeze: Sequence[str] | None = None, keep: str | None = None,
    teacher: str | None = None,
) -> list[str]:  # fmt: skip
    """The options of training from weights as overrides of the recipe. Raises RecipeError for an unknown word."""
    quote = json_module.dumps
    found = [f"model.source={quote(source)}"] if source else []
    names = {"r": "rank", "rank": "rank", "alpha": "alpha", "dropout": "dropout", "target": "target", "dora": "dora"}
    for word in lora.split(",") if lora else ():
        key, equals, value = (part.strip() for part in word.partition("="))
        if key not in names or (not equals and key != "dora"):
            raise RecipeError(
                f"--lora: {word!r} means nothing.{nearest(key, names)} As r=8,alpha=16,target=attn+ffn,dora"
            )
        value = quote(value.split("+")) if key == "target" else value or "true"
        found.append(f"model.lora.{names[key]}={value}")
    if lora and not any(word.startswith("model.lora.rank") for word in found):
        found.append("model.lora.rank=8")
    found += [f"train.freeze={quote(list(freeze))}"] if freeze else []
    found += [f"train.options.keep_text={quote(keep)}"] if keep else []
    return found + ([f"model.guide.teacher={quote(teacher)}"] if teacher else [])


def with_seed(overrides: list[str], seed: int | None) -> list[str]:
    return overrides if seed is None else [*overrides, f"seed={seed}"]


def column_words(words: Sequence[str]) -> dict[str, str]:
    """`--image cat.png --question=why? out=...` -> {column: value}. The last form: a column named like an option."""
    given: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            if not word.startswith("--"):
                raise RecipeError(f"What is {word!r}? Inputs are given as --COLUMN VALUE or COLUMN=VALUE.")
            if not rest:
                raise RecipeError(f"--{name} needs a value.")
            value = rest.pop(0)
        if name in given:
            raise RecipeError(f"Column {name!r} is given twice.")
        given[name] = value
    return given


def write_down(run: Path, arrow: str, words: Sequence[str], format: str, out: Path | None) -> None:
    """Speech to text by a pretrained model: printed, or a file for each sound in the folder `out`."""
    from weft.generate.transcribe import sound_column

    column, files, rest = sound_column(arrow), [], list(words)
    while rest and not rest[0].startswith("--"):
        files.append(rest.pop(0))
    files += [value for name, value in column_words(rest).items() if check_inputs_of(column, name)]
    if not files:
        raise RecipeError(f"No sound was given. Name files, or --{column} FILE.")
    if format not in ("text", "srt", "vtt", "json"):
        raise RecipeError(f"The text of speech is written as text, srt, vtt or json, not {format!r}.")
    if format in ("srt", "vtt") and len(files) > 1 and out is None:
        raise RecipeError("Several sounds give several subtitle files. Name a folder for them: --out FOLDER.")
    found = weft.transcribe(run, files, times=format != "text")
    if format == "json":
        print_json([{"file": file, **one.as_dict()} for file, one in zip(files, found, strict=True)])
        return
    for file, one in zip(files, found, strict=True):
        text = one.text + "\n" if format == "text" else one.srt() if format == "srt" else one.vtt()
        if out is None:
            print(text, end="")
        else:
            out.mkdir(parents=True, exist_ok=True)
            path = out / f"{Path(file).stem}.{'txt' if format == 'text' else format}"
            path.write_text(text, encoding="utf-8")
            print(path)


def check_inputs_of(column: str, name: str) -> bool:
    """That an option names the column of the sound."""
    if name != column:
        raise RecipeError(f"The arrow has no input {name!r}.{nearest(name, [column])}")
    return True


def check_inputs(arrow: Arrow, given: dict[str, str]) -> dict[str, str]:
    """`given`, if it is just what the arrow takes; else an error that names the nearest column, or the missing ones.

    `-> text` may be given a beginning to go on from: --text "Once upon a time".
    """
    names = [column.name for column in arrow.inputs] or ([arrow.output] if arrow.kind == "chat" else [])
    known = [arrow.output] if arrow.kind == "model" else names
    for name in given:
        if name not in known:
            raise RecipeError(f"The arrow {str(arrow)!r} has no input {name!r}.{nearest(name, known)}")
    missing = [name for name in names if name not in given]
    if missing:
        wanted = " ".join(f"--{name} ..." for name in missing)
        raise RecipeError(f"The arrow {str(arrow)!r} needs {', '.join(missing)} as well: {wanted}")
    return given


def table_rows(source: str, arrow: Arrow) -> list[dict[str, Any]]:
    """The arrow's inputs from every row of a table."""
    from weft.data.sources import open_table

    table = open_table(source)
    names = [column.name for column in arrow.inputs]
    for name in names:
        if name not in table.columns:
            raise RecipeError(f"{source} has no column {name!r}.{nearest(name, table.columns)}")
    return [{name: row[name] for name in names} for row in (table.row(i) for i in range(len(table)))]


# ------------------------------------------------------------------------------------------------ printing


def print_json(value: Any) -> None:
    """Results for a machine; dataclasses by their fields, paths as text."""
    print(json_module.dumps(value, indent=2, ensure_ascii=False, default=plain))


def plain(value: Any) -> Any:
    if hasattr(value, "as_dict"):
        return value.as_dict()
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    if hasattr(value, "item"):  # a numpy or torch number
        return value.item()
    return str(value)


def print_results(results: Iterable[dict[str, Any]]) -> None:
    """A block for each arrow: its headline metric with the baselines on the same rows, then its other metrics."""
    seen: set[tuple[str, str]] = set()
    for r in results:
        line = f"  {r['metric']:<22}{number(r['value']):>7}   {number(r['low'])} - {number(r['high'])}"
        if (r["arrow"], r["split"]) in seen:
            print(line)
            continue
        seen.add((r["arrow"], r["split"]))
        print(f"\n{r['arrow']}  ({r['n']:,} {r['split']} rows, {r['hash']})\n{line}")
        for name, value in r["baselines"].items():
            print(f"    {name:<20}{number(value):>7}")


def number(value: Any) -> str:
    """Three decimals; a baseline may be a number, or a result of its own with a `value`."""
    value = value.get("value") if isinstance(value, dict) else value
    return "-" if value is None else f"{value:.3f}"


def main() -> None:
    """The entry point `weft`."""
    app()
