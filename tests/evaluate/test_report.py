"""The report: made from a run directory's files alone, self-contained, and true to them."""

from __future__ import annotations

import io
import json
import math
import wave
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from weft.errors import RunError
from weft.evaluate import chart
from weft.evaluate.page import LOWER_IS_BETTER
from weft.evaluate.report import lines, read, report

ARROWS = ["image, question -> answer", "speech -> question", "caption -> image", "text -> speech"]


RESOLUTION = {"objective": "next", "head": "language", "decoder": "codes", "metric": "judge"}


def wav(seconds: float) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(16000)
        f.writeframes((np.sin(np.arange(int(16000 * seconds)) / 20) * 9000).astype("<i2").tobytes())
    return out.getvalue()


def png(colour: tuple[int, int, int]) -> bytes:
    out = io.BytesIO()
    picture = np.full((64, 64, 3), 245, np.uint8)
    picture[18:46, 14:50] = colour
    Image.fromarray(picture).save(out, "png")
    return out.getvalue()


def sample(arrow: str, inputs: dict[str, str], expected: str, produced: str) -> dict:
    return {"arrow": arrow, "inputs": inputs, "expected": expected, "produced": produced}


def write_metrics(run: Path) -> None:
    start = {
        "event": "start",
        "parameters": 3_412_992,
        "forecast": {"seconds": 590, "memory": 2.1 * 2**30},
        "weft": "0.1.0",
        "torch": "2.13.0",
        "machine": "2 cores",
        "resolutions": [{"arrow": a, **RESOLUTION} for a in ARROWS],
    }
    rng = np.random.default_rng(0)
    rows: list[dict] = [start]
    for step in range(1, 601):
        loss = {
            a: (5 - k) * math.exp(-step / 120) + 0.1 * (k + 1) + 0.06 * rng.normal() ** 2 for k, a in enumerate(ARROWS)
        }
        lr = 0.02 * min(step / 12, 1, (601 - step) / 240)
        rows.append(
            {
                "step": step,
                "time": step * 0.98,
                "loss": sum(loss.values()) / 4,
                "arrows": loss,
                "lr": lr,
                "tokens_per_second": 21000 + 500 * rng.normal(),
            }
        )
        if step % 60 == 0:
            held = {a: value + 0.05 for a, value in loss.items()}
            rows.append({"step": step, "validation": {"loss": sum(held.values()) / 4, "arrows": held}})
    rows.append(
        {
            "event": "blind",
            "arrow": ARROWS[0],
            "column": "image",
            "loss": 0.11,
            "shuffled": 1.9,
            "low": 1.1,
            "high": 1.9,
            "rows": 40,
            "ignored": False,
        }
    )
    rows.append(
        {
            "event": "blind",
            "arrow": ARROWS[0],
            "column": "question",
            "loss": 0.11,
            "shuffled": 0.12,
            "low": -0.01,
            "high": 0.03,
            "rows": 40,
            "ignored": True,
        }
    )
    rows.append({"event": "end", "seconds": 601.5, "memory": 2.3 * 2**30})
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory as training and evaluation leave it."""
    run = tmp_path / "demo"
    (run / "samples").mkdir(parents=True)
    (run / "codecs").mkdir()
    (run / "recipe.toml").write_text(
        f'data = "demo"\narrows = {json.dumps(ARROWS)}\nseed = 0\n\n[train]\nlength = 256\n'
    )
    (run / "command.txt").write_text("weft train recipes/demo.toml --out runs/demo\n")
    write_metrics(run)
    base = {"split": "test", "n": 1000, "hash": "3f9a1c"}
    results = [
        base
        | {
            "arrow": ARROWS[0],
            "metric": "accuracy",
            "value": 0.962,
            "low": 0.951,
            "high": 0.972,
            "baselines": {"majority": 0.32, "blind": 0.641, "small CNN (published)": 0.9378},
        },
        base
        | {
            "arrow": ARROWS[1],
            "metric": "word_error",
            "value": 0.07,
            "low": 0.06,
            "high": 0.085,
            "baselines": {"majority": 0.8},
        },
        base
        | {
            "arrow": ARROWS[2],
            "metric": "judge",
            "value": 0.93,
            "low": 0.9,
            "high": 0.95,
            "baselines": {"random codes": 0.03},
        },
    ]
    (run / "results.json").write_text(json.dumps(results))
    for name, content in {"0.png": png((40, 90, 200)), "1.png": png((60, 80, 190)), "0.wav": wav(0.4)}.items():
        (run / "samples" / name).write_bytes(content)
        (run / "codecs" / name).write_bytes(content)
    samples = [
        sample(ARROWS[0], {"image": "0.png", "question": "what colour is the <b>shape</b>?"}, "blue", "blue"),
        sample(ARROWS[0], {"image": "0.png", "question": "is there a circle?"}, "no", "yes"),
        sample(ARROWS[1], {"speech": "0.wav"}, "is it red?", "is it red?"),
        sample(ARROWS[2], {"caption": "a blue rectangle"}, "0.png", "1.png"),
        sample(ARROWS[3], {"text": "is it red?"}, "0.wav", "0.wav"),
    ]
    (run / "samples" / "index.json").write_text(json.dumps(samples))
    codecs = {
        "image": {
            "codebook": 512,
            "use": 0.81,
            "perplexity": 240.1,
            "error": 4.1,
            "baseline": 38.0,
            "pairs": [["0.png", "1.png"]],
        },
        "audio": {"codebook": 512, "use": 0.93, "perplexity": 300.2, "error": 0.013, "pairs": [["0.wav", "0.wav"]]},
    }
    (run / "codecs" / "report.json").write_text(json.dumps(codecs))
    (run / "skipped.jsonl").write_text(
        json.dumps({"row": 17, "file": "images/17.png", "reason": "truncated file"}) + "\n"
    )
    (run / "table.json").write_text("[1]")
    with pytest.raises(RunError, match="a JSON object of facts about the table was expected"):
        report(run)
    (run / "table.json").write_text(json.dumps({"rows": 51_234, "voices": {"training": 6, "held out": 2}}))
    return run


class Page(HTMLParser):
    """Checks that tags close in order, and collects what a browser would fetch."""

    VOID = ("meta", "img", "br", "link", "line", "rect", "circle", "path")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open, f"unclosed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in self.VOID or (tag in ("line", "circle") and self.get_starttag_text()[-2] != "/"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        top = self.open.pop()
        assert top == tag, f"</{tag}> closes <{top}>"

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_asks_for_nothing_from_outside(run: Path) -> None:
    path = report(run)
    source = path.read_text()
    page = Page(source)
    assert path == run / "report.html"
    assert page.sources, "pictures and sounds were expected"
    assert all(s.startswith(("data:", "#")) for s in page.sources), [s[:60] for s in page.sources]
    for word in ("http://", "https://", "@import", "url(", "<script"):
        assert word not in source, word
    assert page.tags.count("audio") >= 4
    assert page.tags.count("img") >= 5


def test_the_page_says_what_the_files_say(run: Path) -> None:
    text = Page(report(run).read_text()).text
    for piece in (
        "weft train recipes/demo.toml",
        "0.962",
        "0.951–0.972",
        "blind 0.641",
        "lower is better",
        "3f9a1c",
        "51,234",
        "images/17.png",
        "truncated file",
        "in use 81%",
        "ignored",
        "used",
        "10 min 02 s",
        "+2%",
        "3.41M",
        "image, question → answer",
        "length = 256",
    ):
        assert piece in text, piece


def test_an_arrows_headline_stands_first_and_the_rest_below(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    results.insert(1, results[0] | {"metric": "macro F1", "value": 0.9, "low": 0.8, "high": 0.95, "baselines": {}})
    (run / "results.json").write_text(json.dumps(results))
    text = Page(report(run).read_text()).text
    assert text.index("0.962") < text.index("0.070") < text.index("all other metrics (1)") < text.index("macro F1")


def test_texts_from_the_run_are_escaped(run: Path) -> None:
    source = report(run).read_text()
    assert "&lt;b&gt;shape&lt;/b&gt;" in source
    assert "<b>shape</b>" not in source


def test_a_sample_cannot_show_a_file_from_elsewhere(run: Path) -> None:
    (run.parent / "private.png").write_bytes(png((1, 2, 3)))
    index = [{"arrow": ARROWS[0], "inputs": {"image": "../../private.png"}, "expected": "a", "produced": "b"}]
    (run / "samples" / "index.json").write_text(json.dumps(index))
    page = Page(report(run).read_text())
    assert "../../private.png" in page.text
    inside = [s for s in page.sources if s.startswith("data:image")]
    assert len(inside) == 2, "only the codec's pair"


def test_a_run_without_results_says_how_to_get_them(run: Path) -> None:
    (run / "results.json").unlink()
    assert "weft eval" in Page(report(run).read_text()).text


def test_a_bare_run_still_gives_a_page(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('data = "x.csv"\narrows = ["-> text"]\n')
    assert "x.csv" in Page(report(tmp_path).read_text()).text


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no recipe\.toml"):
        report(tmp_path)


def test_a_cut_last_line_is_left_out_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert lines(log) == [{"step": 1, "loss": 2.0}]
    log.write_text('{"step": 1, "lo\n{"step": 2, "loss": 1.0}\n')
    with pytest.raises(RunError, match="line 1"):
        lines(log)


def test_lines_are_told_apart(run: Path) -> None:
    facts = read(run)
    assert len(facts.steps) == 600
    assert len(facts.validations) == 10
    assert facts.event("end")["seconds"] == 601.5
    assert facts.event("never") == {}
    assert any(word in "word error" for word in LOWER_IS_BETTER)
    assert not any(word in "accuracy" for word in LOWER_IS_BETTER)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
@settings(max_examples=200, deadline=None)
def test_ticks_are_round_and_inside(low: float, span: float) -> None:
    high = low + span
    if not high > low:
        return
    found = chart.ticks(low, high)
    slack = 1e-6 * max(abs(low), abs(high), span)
    assert all(low - slack <= t <= high + slack for t in found)
    assert len(found) <= 8
    assert found == sorted(found)


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(-50, 50)), max_size=700))
@settings(max_examples=50, deadline=None)
def test_thinning_keeps_the_mean(points: list[tuple[float, float]]) -> None:
    thinned = chart.thin(points, most=40)
    assert len(thinned) <= 40
    if points and len(points) % math.ceil(len(points) / 40) == 0:
        assert np.mean([y for _, y in thinned]) == pytest.approx(np.mean([y for _, y in points]), abs=1e-6)


def test_thinning_leaves_out_what_is_not_finite() -> None:
    assert chart.thin([(1, math.nan), (2, 3.0), (3, math.inf)]) == [(2, 3.0)]


def test_smoothing_has_no_pull_towards_the_first_value() -> None:
    assert chart.smooth([(k, 2.0) for k in range(50)])[-1][1] == pytest.approx(2.0)
    assert chart.smooth([(k, 2.0) for k in range(50)])[0][1] == pytest.approx(2.0)
    assert chart.smooth([]) == []


def test_a_curve_enters_through_the_edge() -> None:
    assert chart.below([(0, 3.0), (2, 1.0), (3, 0.5)], top=2.0) == [[(1.0, 2.0), (2, 1.0), (3, 0.5)]]
    assert chart.below([(0, 1.0), (2, 3.0), (4, 1.0)], top=2.0) == [[(0, 1.0), (1.0, 2.0)], [(3.0, 2.0), (4, 1.0)]]
    assert chart.below([(0, 5.0), (1, 6.0)], top=2.0) == []


def test_an_interval_is_drawn_where_it_lies() -> None:
    source = chart.interval(0.5, 0.4, 0.6, [("majority", 0.25)])
    assert 'cx="120.0"' in source
    assert 'x="96.8"' in source
    assert 'width="46.4"' in source
    assert 'x1="62.0"' in source


def test_short_numbers() -> None:
    assert [chart.short(v) for v in (0, 0.05, 1.5, 12_000, 3.4e6, 0.00002)] == [
        "0",
        "0.05",
        "1.5",
        "12k",
        "3.4M",
        "2e-5",
    ]
