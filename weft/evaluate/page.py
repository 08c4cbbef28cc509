"""The report as HTML: one function for each section, each from the facts alone. Every text from the run is escaped."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from weft.evaluate.chart import Series, curves, interval, short, smooth
from weft.evaluate.report import Facts

MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg"}
LOWER_IS_BETTER = ("error", "bits", "loss", "perplexity")
# the woven mark: two threads over, two threads under
MARK = (
    '<svg viewBox="0 0 34 34" aria-hidden="true" fill="none" stroke-width="5" stroke-linecap="round">'
    '<path d="M11 3v28" style="stroke:var(--image)"/><path d="M23 3v28" style="stroke:var(--audio)"/>'
    '<path d="M3 11h3.5M15.5 11H31M3 23h15.5M27.5 23H31" style="stroke:var(--text)"/></svg>'
)


def page(facts: Facts) -> str:
    """The whole document."""
    parts = [(title, section(facts)) for title, section in SECTIONS]
    parts = [(title, body) for title, body in parts if body]
    links = "".join(f'<a href="#{slug(title)}">{title}</a>' for title, _ in parts)
    bodies = "".join(f'<section id="{slug(title)}"><h2>{title}</h2>{body}</section>' for title, body in parts)
    css = files("weft.evaluate").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(facts.path.name)} · weft</title><style>{css}</style></head><body>"
        f"{head(facts)}<nav><div>{links}</div></nav><main>{bodies}{foot(facts)}</main></body></html>\n"
    )


def slug(title: str) -> str:
    return title.lower().replace(" ", "-")


# ------------------------------------------------------------------------------------------------ pieces


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A card with a table. Cells are HTML already; `numbers` are the columns to align right."""
    side = lambda i: ' class="num"' if i in numbers else ""
    top = "".join(f"<th{side(i)}>{title}</th>" for i, title in enumerate(titles))
    body = "".join(
        "<tr>" + "".join(f"<td{side(i)}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>" for row in rows
    )
    top = f"<thead><tr>{top}</tr></thead>" if any(titles) else ""
    return f'<div class="card"><table>{top}<tbody>{body}</tbody></table></div>'


def lead(text: str) -> str:
    return f'<p class="lead">{text}</p>'


def below(text: str) -> str:
    """A small second line in a cell; nothing where there is nothing to say."""
    return f'<span class="marks">{text}</span>' if text else ""


def arrow_text(arrow: Any) -> str:
    return f'<span class="arrow">{escape(str(arrow)).replace("-&gt;", "→").replace("&lt;→", "↔")}</span>'


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def size(amount: float) -> str:
    return f"{amount / 2**30:.2f} GB" if amount >= 2**29 else f"{amount / 2**20:.0f} MB"


def embedded(path: Path) -> str:
    """A file as a data URL."""
    return f"data:{MEDIA[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def media_file(value: Any, folder: Path) -> Path | None:
    """The file that `value` names inside `folder`, if it names one that a page can show."""
    if not isinstance(value, str) or Path(value).suffix.lower() not in MEDIA:
        return None
    path = (folder / value).resolve()
    return path if path.is_file() and path.is_relative_to(folder.resolve()) else None


def shown(value: Any, label: str, folder: Path) -> str:
    """A picture, a sound or a text with a label."""
    path = media_file(value, folder)
    if path is None:
        return f'<p><span class="label">{escape(label)}</span>{escape(str(value))}</p>'
    if MEDIA[path.suffix.lower()].startswith("image"):
        return f'<figure><img alt="{escape(label)}" src="{embedded(path)}">{escape(label)}</figure>'
    return (
        f'<div class="sound"><span class="label">{escape(label)}</span>'
        f'<audio controls preload="metadata" aria-label="{escape(label)}" src="{embedded(path)}"></audio></div>'
    )


# ------------------------------------------------------------------------------------------------ sections


def head(facts: Facts) -> str:
    start, end = facts.event("start"), facts.event("end") or facts.event("stop")
    arrows = facts.recipe.get("arrows", [])
    tiles: list[tuple[str, str]] = []
    if parameters := start.get("parameters"):
        tiles.append((short(parameters), "parameters"))
    if facts.steps:
        last = facts.steps[-1]
        tiles.append((f"{last['step']:,}", "steps"))
        tiles.append((duration(end.get("seconds") or last["time"]), "of training"))
        speeds = sorted(s["tokens_per_second"] for s in facts.steps if s.get("tokens_per_second"))
        if speeds:
            tiles.append((f"{speeds[len(speeds) // 2]:,.0f}", "tokens a second"))
        tiles.append((f"{last['loss']:.3f}", "last training loss"))
    if memory := end.get("memory"):
        tiles.append((size(memory), "peak memory"))
    boxes = "".join(f"<div><b>{value}</b><span>{label}</span></div>" for value, label in tiles)
    trained_on = "/".join(Path(str(facts.recipe.get("data") or "a table in memory")).parts[-2:])
    count = f"{len(arrows)} arrows" if len(arrows) != 1 else "one arrow"
    return (
        f'<header><div class="brand">{MARK}<span>weft report</span></div><h1>{escape(facts.path.name)}</h1>'
        f"<p>One model, {count}, trained on {escape(trained_on)}.</p>"
        + (f'<div class="tiles">{boxes}</div>' if boxes else "")
        + (f'<div class="command"><code>{escape(facts.command)}</code></div>' if facts.command else "")
        + "</header>"
    )


def results(facts: Facts) -> str:
    if not facts.results:
        return lead(f"Not measured yet: <code>weft eval {escape(str(facts.path))}</code>")
    first: dict[tuple[str, str], dict[str, Any]] = {}  # each arrow's headline metric stands first
    for r in facts.results:
        first.setdefault((r["arrow"], r.get("split", "test")), r)
    splits = ", ".join(dict.fromkeys(split for _, split in first))
    titles = ["arrow", "metric", "value", "from 0", "95 % interval", "rows", "hash"]
    out = lead(
        f"On rows the model has not seen (split: {escape(splits)}). The band is the 95 % interval; upright strokes are "
        "baselines on the same rows. Scores of different hashes are not comparable."
    ) + table(titles, [result_row(r) for r in first.values()], numbers=(2, 4, 5))
    rest = [r for r in facts.results if not any(r is headline for headline in first.values())]
    if rest:
        every = table(titles, [result_row(r) for r in rest], numbers=(2, 4, 5))
        out += f"<details><summary>all other metrics ({len(rest)})</summary>{every}</details>"
    return out


def result_row(r: dict[str, Any]) -> tuple[str, ...]:
    """A result as the cells of its row."""
    known = [(name, value) for name, cell in (r.get("baselines") or {}).items() if (value := number(cell)) is not None]
    top = max(1.0, r["high"], *(value for _, value in known)) if known else max(1.0, r["high"])
    metric = r["metric"].replace("_", " ")
    return (
        arrow_text(r["arrow"]) + below(escape(str(r.get("note") or ""))),
        escape(metric) + below("lower is better" if any(word in metric for word in LOWER_IS_BETTER) else ""),
        f"<b>{r['value']:.3f}</b>",
        interval(r["value"], r["low"], r["high"], known, top=top)
        + below(" · ".join(f"{escape(name)} {value:.3f}" for name, value in known)),
        f"{r['low']:.3f}–{r['high']:.3f}",
        f"{r['n']:,}",
        f'<code class="soft">{escape(str(r.get("hash", "")))}</code>',
    )


def number(value: Any) -> float | None:
    value = value.get("value") if isinstance(value, dict) else value
    return float(value) if isinstance(value, int | float) else None


def samples(facts: Facts) -> str:
    folder = facts.path / "samples"
    out = []
    for arrow in dict.fromkeys(s["arrow"] for s in facts.samples):
        cards = "".join(sample_card(s, folder) for s in facts.samples if s["arrow"] == arrow)
        out.append(f'<h3>{arrow_text(arrow)}</h3><div class="samples">{cards}</div>')
    if not out:
        return ""
    return lead("Held-out rows in even steps through the split, not picked.") + "".join(out)


def sample_card(sample: dict[str, Any], folder: Path) -> str:
    inputs = [shown(value, column, folder) for column, value in sample["inputs"].items()]
    expected, produced = sample.get("expected"), sample.get("produced")
    if media_file(produced, folder):
        result = (
            f'<div class="pictures">{shown(produced, "produced", folder)}{shown(expected, "the row has", folder)}</div>'
        )
    elif str(expected).strip() == str(produced).strip():
        result = f'<p><span class="label">produced</span><b class="good">{escape(str(produced))}</b> ✓</p>'
    else:
        result = (
            f'<p><span class="label">produced</span><b class="bad">{escape(str(produced))}</b></p>'
            f'<p><span class="label">the row has</span>{escape(str(expected))}</p>'
        )
    return f'<div class="sample">{"".join(inputs)}<div class="result">{result}</div></div>'


def training(facts: Facts) -> str:
    steps = facts.steps
    if not steps:
        return ""
    charts = [loss_chart(facts, "all arrows", lambda line: line.get("loss"))]
    for arrow in dict.fromkeys(a for line in steps for a in line.get("arrows", {})):
        charts.append(loss_chart(facts, arrow, lambda line, arrow=arrow: line.get("arrows", {}).get(arrow)))
    for key, title in (("tokens_per_second", "tokens a second"), ("lr", "learning rate"), ("norm", "gradient norm")):
        points = [(line["step"], line[key]) for line in steps if line.get(key) is not None]
        if points:
            charts.append(curves([Series(title, points, 3)], title=title))
    return lead("Loss in nats a token: training (a running mean over its points) and validation.") + (
        f'<div class="charts">{"".join(charts)}</div>'
    )


def loss_chart(facts: Facts, title: str, get: Callable[[dict[str, Any]], float | None]) -> str:
    points = [(line["step"], value) for line in facts.steps if (value := get(line)) is not None]
    held = [(line["step"], value) for line in facts.validations if (value := get(line)) is not None]
    series = [Series("raw", points, 2, faint=True), Series("training", smooth(points), 2)]
    if held:
        series.append(Series("validation", held, 1, dots=True))
    return curves(series, title=title.replace("<->", "↔").replace("->", "→"))


def arrows(facts: Facts) -> str:
    found = facts.event("start").get("resolutions") or []
    if not found:
        return ""
    rows = [
        (
            arrow_text(r["arrow"]),
            *(escape(str(r.get(key) or "–")) for key in ("objective", "head", "decoder", "metric")),
        )
        for r in found
    ]
    return lead("What each arrow came to mean with this family of model.") + table(
        ["arrow", "objective", "head", "decoder", "metric"], rows
    )


def forecast(facts: Facts) -> str:
    promised, end = facts.event("start").get("forecast") or {}, facts.event("end")
    rows = []
    for key, title, write in (("seconds", "time", duration), ("memory", "memory", size)):
        said, was = promised.get(key), end.get(key)
        if said and was:
            rows.append((title, write(said), write(was), f"{was / said - 1:+.0%}"))
    if not rows:
        return ""
    return lead("Said before the first step, from a few real micro-steps; and what it then was.") + table(
        ["", "forecast", "was", "off by"], rows, numbers=(1, 2, 3)
    )


def kept(facts: Facts) -> str:
    """What became of the language model on a plain text."""
    found = facts.all("keep")
    if not found:
        return ""
    rows = [
        ("before training" if e is found[0] else f"after step {e['step']:,}", f"{e['loss']:.3f}",
         f"{e['bits_per_byte']:.3f}", f"{e['loss'] - found[0]['loss']:+.3f}", f"{e['tokens']:,}")
        for e in found
    ]  # fmt: skip
    name = escape(Path(found[0]["text"]).name)
    return lead(f"Training on new things must not undo the old: the language model on a plain text, {name}.") + table(
        ["", "loss a token", "bits a byte", "change", "tokens"], rows, numbers=(1, 2, 3, 4)
    )


def blind(facts: Facts) -> str:
    found = {(e["arrow"], e["column"]): e for e in facts.all("blind") if "rows" in e}  # the last one of each
    order = list(facts.recipe.get("arrows", []))
    place = lambda key: (order.index(key[0]) if key[0] in order else len(order), key[1])
    rows = []
    for arrow, column in sorted(found, key=place):
        e = found[arrow, column]
        verdict = '<span class="good">used</span>' if e["low"] > 0 else "cannot be told from so few rows"
        if e["ignored"]:
            verdict = '<span class="bad">ignored</span>'
        rise = (f"{e['shuffled'] - e['loss']:+.3f}", f"{e['low']:+.3f} to {e['high']:+.3f}", f"{e['rows']:,}")
        rows.append((arrow_text(arrow), escape(column), f"{e['loss']:.3f}", f"{e['shuffled']:.3f}", *rise, verdict))
    if not rows:
        return ""
    titles = ["arrow", "input swapped", "loss", "loss when swapped", "rise", "95 % interval", "rows", ""]
    return lead(
        "An input that helps must hurt when it is swapped with another row's. The same rows are compared before and "
        "after: where no rise is seen, and none that matters fits into the interval, the model does not look."
    ) + table(titles, rows, numbers=(2, 3, 4, 5, 6))


def codecs(facts: Facts) -> str:
    out = []
    for kind, r in facts.codecs.items():
        use = [
            f"{title} {write(r[key])}"
            for key, title, write in (
                ("codebook", "codebook of", lambda v: f"{v:,}"),
                ("use", "in use", lambda v: f"{v:.0%}"),
                ("perplexity", "perplexity", lambda v: f"{v:.0f}"),
                ("error", "held-out error", lambda v: f"{v:.3g}"),
                ("baseline", "that of the mean item", lambda v: f"{v:.3g}"),
            )
            if r.get(key) is not None
        ]
        folder = facts.path / "codecs"
        pairs = "".join(
            f'<div class="pair">{shown(before, "original", folder)}{shown(after, "through the codes", folder)}</div>'
            for before, after in r.get("pairs", [])
        )
        out.append(f'<h3>{escape(kind)}: {", ".join(use)}</h3><div class="pairs">{pairs}</div>')
    if not out:
        return ""
    return lead(
        "Pictures and sounds are produced as codes. Nothing drawn or spoken can be better than what the codes can hold."
    ) + "".join(out)


def data(facts: Facts) -> str:
    out = ""
    if facts.table:
        rows = [(escape(str(key).replace("_", " ")), written(value)) for key, value in facts.table.items()]
        out += table(["", ""], rows)
    if facts.skipped:
        rows = [
            (str(s.get("row", "")), f"<code>{escape(str(s.get('file', '')))}</code>", escape(str(s.get("reason", ""))))
            for s in facts.skipped[:50]
        ]
        more = f"; the first 50 of {len(facts.skipped):,} are shown" if len(facts.skipped) > 50 else ""
        out += f"<h3>Rows left out: {len(facts.skipped):,}{more}</h3>" + table(["row", "file", "why"], rows)
    elif facts.steps:
        out += '<p class="soft">No row was left out.</p>'
    return out


def written(value: Any) -> str:
    """A fact as text: numbers grouped, lists and nested facts on one line."""
    if isinstance(value, dict):
        return " · ".join(f"{escape(str(k))} {written(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(written(v) for v in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else escape(str(value))


def recipe(facts: Facts) -> str:
    return lead("Resolved: every choice of this run. <code>weft train recipe.toml</code> repeats it.") + (
        f"<details><summary>recipe.toml</summary><pre>{escape(facts.recipe_text)}</pre></details>"
    )


def foot(facts: Facts) -> str:
    start = facts.event("start")
    said = [f"{key} {start[key]}" for key in ("weft", "torch", "machine") if start.get(key)]
    return f"<footer>Made by weft report{': ' if said else ''}{escape(', '.join(map(str, said)))}</footer>"


SECTIONS: tuple[tuple[str, Callable[[Facts], str]], ...] = (
    ("Results", results),
    ("Samples", samples),
    ("Training", training),
    ("Arrows", arrows),
    ("Forecast", forecast),
    ("Blind test", blind),
    ("Kept", kept),
    ("Codecs", codecs),
    ("Data", data),
    ("Recipe", recipe),
)
