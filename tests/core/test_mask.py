"""What each token sees: little pictures, and a slow definition to compare with.

In the pictures a row is a query, a column a key, 1 is seen.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weft.core import config as c
from weft.core.mask import across, additive, look, visible
from weft.core.view import Layout, Tokens


def layout(length: int, **rows: list[int]) -> Layout:
    given = {name: torch.tensor([values], dtype=torch.int32) for name, values in rows.items()}
    return Layout.of(Tokens(torch.zeros(1, length, dtype=torch.long), **given))


def seen(pattern, here: Layout) -> Tensor:
    """(T,T) 0 or 1."""
    found = visible(pattern, here, here)
    return (torch.ones(len(here), len(here)) if found is None else found[0]).int()


def picture(text: str) -> Tensor:
    return torch.tensor([[int(cell) for cell in line.split()] for line in text.replace(".", "0").strip().splitlines()])


PICTURES = {
    "full": (
        c.Full(),
        layout(3),
        """
        1 1 1
        1 1 1
        1 1 1""",
    ),
    "causal": (
        c.Causal(),
        layout(4),
        """
        1 . . .
        1 1 . .
        1 1 1 .
        1 1 1 1""",
    ),
    "prefix: a span sees itself whole": (
        c.Prefix(),
        layout(6, span=[0, 0, 1, 1, 0, 0]),
        """
        1 . . . . .
        1 1 . . . .
        1 1 1 1 . .
        1 1 1 1 . .
        1 1 1 1 1 .
        1 1 1 1 1 1""",
    ),
    "prefix: two spans do not see each other ahead": (
        c.Prefix(),
        layout(4, span=[1, 1, 2, 2]),
        """
        1 1 . .
        1 1 . .
        1 1 1 1
        1 1 1 1""",
    ),
    "window back": (
        c.Window(2),
        layout(6),
        """
        1 . . . . .
        1 1 . . . .
        1 1 1 . . .
        . 1 1 1 . .
        . . 1 1 1 .
        . . . 1 1 1""",
    ),
    "window both ways, one global": (
        c.Window(1, 1, globals=1),
        layout(5),
        """
        1 1 1 1 1
        1 1 1 . .
        1 1 1 1 .
        1 . 1 1 1
        1 . . 1 1""",
    ),
    "window back, one global: nothing looks ahead": (
        c.Window(1, 0, globals=1),
        layout(5),
        """
        1 . . . .
        1 1 . . .
        1 1 1 . .
        1 . 1 1 .
        1 . . 1 1""",
    ),
    "two documents and padding": (
        c.Causal(),
        layout(6, document=[1, 1, 1, 2, 2, 0]),
        """
        1 . . . . .
        1 1 . . . .
        1 1 1 . . .
        . . . 1 . .
        . . . 1 1 .
        . . . . . 1""",
    ),
    "a window counts within its document, each with its own global": (
        c.Window(1, 0, globals=1),
        layout(6, document=[1, 1, 1, 2, 2, 2]),
        """
        1 . . . . .
        1 1 . . . .
        1 1 1 . . .
        . . . 1 . .
        . . . 1 1 .
        . . . 1 1 1""",
    ),
    "trunk and two branches": (
        c.Causal(),
        layout(6, document=[1] * 6, branch=[0, 0, 1, 1, 2, 2]),
        """
        1 . . . . .
        1 1 . . . .
        1 1 1 . . .
        1 1 1 1 . .
        1 1 . . 1 .
        1 1 . . 1 1""",
    ),
    "branches under full attention": (
        c.Full(),
        layout(4, document=[1] * 4, branch=[0, 1, 1, 2]),
        """
        1 . . .
        1 1 1 .
        1 1 1 .
        1 . . 1""",
    ),
    "a window follows a branch, over its sister": (
        c.Window(1),
        layout(5, document=[1] * 5, branch=[0, 0, 1, 2, 2]),
        """
        1 . . . .
        1 1 . . .
        . 1 1 . .
        . 1 . 1 .
        . . . 1 1""",
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_pattern_is_its_picture(name: str) -> None:
    pattern, here, drawn = PICTURES[name]
    assert torch.equal(seen(pattern, here), picture(drawn).int()), seen(pattern, here)


def slow(pattern, q: int, k: int, document: list[int], branch: list[int], span: list[int]) -> bool:
    """The definition, one pair at a time."""
    kin = lambda a, b: document[a] == document[b] and branch[b] in (0, branch[a])
    place = lambda token: sum(kin(token, other) for other in range(token))
    if not kin(q, k):
        return False
    if isinstance(pattern, c.Full):
        return True
    if isinstance(pattern, c.Causal):
        return k <= q
    if isinstance(pattern, c.Prefix):
        return k <= q or (span[q] == span[k] > 0)
    near = -pattern.right <= place(q) - place(k) <= pattern.left
    near = near or min(place(q), place(k)) < pattern.globals
    return near and (k <= q or pattern.right > 0)


@st.composite
def packed(draw) -> tuple[list[int], list[int], list[int]]:
    """Documents (each a trunk and branches), then padding; spans inside of them."""
    document, branch, span, number = [], [], [], 0
    for d in range(1, draw(st.integers(1, 3)) + 1):
        for b in range(draw(st.integers(1, 3))):
            size = draw(st.integers(1, 3))
            number += 1
            document += [d] * size
            branch += [b] * size
            span += [number if draw(st.booleans()) else 0] * size
    pad = draw(st.integers(0, 2))
    return document + [0] * pad, branch + [0] * pad, span + [0] * pad


PATTERNS = st.one_of(
    st.sampled_from([c.Full(), c.Causal(), c.Prefix()]),
    st.builds(c.Window, st.integers(0, 3), st.integers(0, 2), st.integers(0, 2)),
)


@settings(max_examples=80, deadline=None)
@given(packed(), PATTERNS)
def test_masks_follow_the_definition(rows, pattern) -> None:
    document, branch, span = rows
    found = seen(pattern, layout(len(document), document=document, branch=branch, span=span))
    size = range(len(document))
    wanted = torch.tensor([[int(slow(pattern, q, k, *rows)) for k in size] for q in size])
    assert torch.equal(found, wanted.int())


@settings(max_examples=40, deadline=None)
@given(packed(), PATTERNS)
def test_every_token_sees_itself(rows, pattern) -> None:
    document, branch, span = rows
    found = seen(pattern, layout(len(document), document=document, branch=branch, span=span))
    assert (found.diagonal() == 1).all(), "or its softmax would not be finite"


def test_the_plain_causal_case_takes_the_kernels_own_mask() -> None:
    view = look(c.Attention(2), layout(5), layout(5), width=8, dtype=torch.float32)
    assert view.causal and view.mask is None
    view = look(c.Attention(2), layout(5, document=[1] * 5), layout(5, document=[1] * 5), width=8, dtype=torch.float32)
    assert not view.causal and view.mask is not None


def test_an_additive_mask_is_zero_or_minus_infinity_in_the_dtype_of_the_queries() -> None:
    mask = additive(torch.tensor([[[True, False]]]), torch.bfloat16)
    assert mask.shape == (1, 1, 1, 2) and mask.dtype == torch.bfloat16
    assert mask.flatten().tolist() == [0.0, float("-inf")]


def test_across_sees_the_source_document_of_the_same_number_and_padding_stays_finite() -> None:
    target, source = layout(4, document=[1, 2, 2, 0]), layout(3, document=[1, 1, 2])
    mask = across(target, source, torch.zeros(1, 3, 4), dtype=torch.float32).mask
    assert mask is not None
    wanted = picture("1 1 .\n. . 1\n. . 1\n1 1 1")
    assert torch.equal((mask[0, 0] == 0).int(), wanted.int())
