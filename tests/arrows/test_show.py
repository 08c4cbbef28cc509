"""A sample shown to a person: every trained token is marked, nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
from arrows_world import ARROWS, record, renderer
from hypothesis import given
from hypothesis import strategies as st

from weft.arrows.sample import Sample, Span
from weft.arrows.show import plain, show

RENDERER = renderer()


@pytest.mark.parametrize(
    ("arrow", "expected"),
    [
        ("image, question -> answer", "|image| [image 48 tokens] |question| what colour is it? |answer| «blue»"),
        ("speech -> question", "|speech| [audio 10 tokens] |question| «what colour is it?» «|end|»"),
        ("caption -> image", "|caption| a red circle |image| «[image 64 codes]»"),
        ("question -> speech", "|question| what colour is it? |speech| «[audio 20 codes]» «|end|»"),
        ("-> question", "|question| «what colour is it?» «|end|»"),
        ("image <-> caption", "|image| [image 48 tokens] |caption| a red circle"),
        ("2* answer -> caption", "|answer| blue |caption| «a red circle» «|end|»"),
    ],
)
def test_what_is_shown(tmp_path: Path, arrow: str, expected: str) -> None:
    sample = RENDERER.render(record(tmp_path), ARROWS.index(arrow))
    assert show(sample, RENDERER, colour=False) == expected
    coloured = show(sample, RENDERER)
    assert coloured.plain == expected
    green = "".join(coloured.plain[s.start : s.end] for s in coloured.spans if "green" in str(s.style))
    marked = "".join(f"«{part.split('»')[0]}»" for part in expected.split("«")[1:])
    assert green == marked, "what is marked is green, and nothing else is"


def test_masks_and_hidden_spans_are_named() -> None:
    import numpy as np

    words = RENDERER.vocabulary
    span = Span("ids", np.array([words.mask, words.sentinel(3), words.pad, words.marker("image")]), loss=False)
    assert show(Sample(0, 0, (span,)), RENDERER, colour=False) == "|mask| |hidden 3| |pad| |image|"


@given(st.text())
def test_nothing_reaches_the_terminal_that_would_disturb_it(text: str) -> None:
    shown = plain(text)
    assert all(c.isprintable() for c in shown) and len(shown) <= 210
    if text.isprintable() and len(text) <= 200:
        assert shown == text


def test_escape_codes_and_line_breaks_are_made_visible() -> None:
    assert plain("a\nb\x1b[31m\u202ec") == "a⏎b␀[31m␀c"
    assert plain("x" * 1000) == "x" * 100 + " … " + "x" * 50
