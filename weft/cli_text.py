"""The commands of text models: weft chat, weft embed, weft search. Registered by cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import weft

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        show_default=False,
        help="A pretrained name (smollm2, minilm), a run, a model directory, or a .gguf file.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable results on stdout, and nothing else there.")]
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition", "seed")


def chat(
    source: Source,
    system: Annotated[str, typer.Option(help="What the assistant is to be.", show_default=False)] = "",
    tokens: Annotated[int, typer.Option(help="Tokens of an answer, at most.")] = 512,
    stop: Annotated[list[str] | None, typer.Option(help="End an answer here; may be repeated.",
                    show_default=False)] = None,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Only the k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Only the likeliest tokens that make up this share.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Only tokens at least this share as likely as the likeliest.")] = 0.0,
    repetition: Annotated[float, typer.Option(help="Above 1: what was said becomes less likely.")] = 1.0,
    seed: Annotated[int, typer.Option(help="For temperature > 0.")] = 0,
    json: Json = False,
) -> None:  # fmt: skip
    """Talk with a model in the terminal, or answer each line of standard input. /help lists what it understands."""
    chosen = (temperature, top_k, top_p, min_p, repetition, seed)
    weft.chat(
        source,
        system=system,
        tokens=tokens,
        stop=stop or (),
        sampling=dict(zip(SAMPLING, chosen, strict=True)),
        json=json,
    )


def embed(
    source: Source,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="One text on each line.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="An .npy or .jsonl; FILE's name with .npy unless said.",
                   show_default=False)] = None,
    cut: Annotated[bool, typer.Option("--cut", help="Read only the beginning of texts that are too long.")] = False,
    json: Json = False,
) -> None:  # fmt: skip
    """Turn each line of a file into a vector: near in meaning, near in space."""
    from weft.cli import print_json

    path, shape = weft.embed_file(source, file, out or "", cut=cut)
    print_json({"embeddings": str(path), "shape": shape}) if json else print(f"{path}  {shape[0]:,} x {shape[1]:,}")


def search(
    source: Source,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What is looked for.", show_default=False)],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of texts, or one.", show_default=False)],
    top: Annotated[int, typer.Option(help="How many passages.")] = 5,
    index: Annotated[Path | None, typer.Option(help="Where vectors are kept; the user's cache unless said.",
                     show_default=False)] = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Find the passages of a folder of texts that are nearest in meaning. What was embedded once is kept."""
    from weft.cli import print_json

    found = weft.search(source, query, folder, top=top, index=index or "")
    print_json(found) if json else print(found)


def register(app: typer.Typer) -> None:
    """Add the commands to `weft`."""
    for command in (chat, embed, search):
        app.command()(command)
