"""The grammar: what is printed is read back equal, and what cannot be read is shown with the place marked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.arrows.grammar import TYPES, Arrow, Column, check_columns, parse, parse_all, said_types
from weft.errors import ArrowError

names = st.from_regex(r"[\w./]+(-[\w./]+)*", fullmatch=True) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8
)


@st.composite
def arrows(draw: st.DrawFn) -> Arrow:
    """Every arrow that the grammar knows."""
    kind = draw(st.sampled_from(["produce", "model", "fill", "align"]))
    left = draw(st.integers(1, 3)) if kind in ("produce", "align") else 0
    right = draw(st.integers(1, 3)) if kind == "align" else 1
    drawn = draw(st.lists(names, min_size=left + right, max_size=left + right, unique=True))
    columns = tuple(Column(name, draw(st.sampled_from(["", *TYPES]))) for name in drawn)
    weight = draw(st.sampled_from([1.0, 2.0, 0.5]) | st.floats(1e-300, 1e300))
    return Arrow(columns[:left], columns[left:], kind, weight)


@given(arrows())
def test_what_is_printed_is_read_back_equal(arrow: Arrow) -> None:
    assert parse(str(arrow)) == arrow
    assert parse(arrow.task).task == arrow.task
    assert parse(arrow.task).types == {} and parse(arrow.task).weight == 1.0


@given(arrows(), st.sampled_from(["", " ", "  ", "\t", "\n"]))
def test_space_means_nothing(arrow: Arrow, space: str) -> None:
    named = lambda side, columns: tuple(Column(f"{side}{i}", column.type) for i, column in enumerate(columns))
    plain = Arrow(named("a", arrow.inputs), named("b", arrow.outputs), arrow.kind, arrow.weight)
    text = str(plain)
    for sign in ("<->", "->", ",", ":", "~", "* "):
        text = text.replace(sign, f"{space}{sign}{space}") if sign != "->" or "<->" not in text else text
    assert parse(space + text + space) == plain


@given(st.text(max_size=30) | st.text('ab,:*~<>-" 1.', max_size=20))
def test_any_text_is_an_arrow_or_an_arrow_error(text: str) -> None:
    try:
        arrow = parse(text)
    except ArrowError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert parse(str(arrow)) == arrow
    assert not refusal or refusal.splitlines()[-1].strip() == "^"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-> text", Arrow((), (Column("text"),), "model")),
        ("->text", Arrow((), (Column("text"),), "model")),
        ("~text", Arrow((), (Column("text"),), "fill")),
        ("a, b -> c", Arrow((Column("a"), Column("b")), (Column("c"),))),
        ("a,b→c", Arrow((Column("a"), Column("b")), (Column("c"),))),
        ("a <-> b, c", Arrow((Column("a"),), (Column("b"), Column("c")), "align")),
        ("en-zh->zh-en", Arrow((Column("en-zh"),), (Column("zh-en"),))),
        ("question -> answer:label", Arrow((Column("question"),), (Column("answer", "label"),))),
        ("2* image -> caption", Arrow((Column("image"),), (Column("caption"),), weight=2.0)),
        ("0.5 * ~text", Arrow((), (Column("text"),), "fill", 0.5)),
        ("1e-3*-> text", Arrow((), (Column("text"),), "model", 0.001)),
        ("2 -> 3", Arrow((Column("2"),), (Column("3"),))),
        ("图像, 问题 -> 答案", Arrow((Column("图像"), Column("问题")), (Column("答案"),))),
        ('"what is it?" -> "a, b"', Arrow((Column("what is it?"),), (Column("a, b"),))),
        ('"-> text" -> "say \\"hi\\""', Arrow((Column("-> text"),), (Column('say "hi"'),))),
    ],
)
def test_examples(text: str, expected: Arrow) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "told", "at"),
    [
        ("image question -> a", "a comma, '->' or '<->' was expected", 6),
        ("a => b", "the arrow is written '->'", 2),
        ("a - > b", "the arrow is written '->'", 2),
        ("a -> b, c", "'a -> b' and 'a -> ...'", 6),
        ("a -> b -> c", "write two arrows", 7),
        ("-> a, b", "write one arrow for each", 4),
        ("a, b ->", "a column name was expected after ->, and the arrow ends", 7),
        ("a,, b -> c", "a column name was expected after the comma, not ','", 2),
        ("a, -> c", "a column name was expected after the comma", 3),
        ("image -> a:lable", "'lable' is no column type. Did you mean 'label'?", 11),
        ("image -> a:boxes", "the column type 'boxes' is not there yet; there is: image, audio, text, label", 11),
        ("image -> a:", "a type was expected after ':'", 11),
        ("a, b -> a", "column 'a' stands twice", 8),
        ("a <-> a", "column 'a' stands twice", 6),
        ("0* a -> b", "a number over 0 was expected", 0),
        ("1e999* a -> b", "a number over 0 was expected", 0),
        ("* a -> b", "a weight stands before the *", 0),
        ('"a -> b', "no closing", 0),
        ('"" -> b', "is empty", 0),
        ('"a\\q" -> b', "cannot be read", 2),
        ("", "a column name was expected before the arrow, and the arrow ends", 0),
        ("a", "this one ends without", 1),
        ("what? -> b", "double quotes", 4),
    ],
)
def test_what_cannot_be_read_is_shown_with_the_place_marked(text: str, told: str, at: int) -> None:
    with pytest.raises(ArrowError) as caught:
        parse(text)
    message, line, caret = str(caught.value).splitlines()
    assert told in message
    assert line == "  " + text
    assert caret == "  " + " " * at + "^"


def test_the_caret_counts_what_a_terminal_shows() -> None:
    with pytest.raises(ArrowError) as caught:
        parse("图像 问题 -> b")
    assert str(caught.value).splitlines()[-1] == "  " + " " * 5 + "^", "wide characters take two columns"


def test_other_things_are_no_arrow() -> None:
    with pytest.raises(ArrowError, match="an arrow came as list"):
        parse(["a -> b"])  # type: ignore[arg-type]


def test_several_arrows() -> None:
    found = parse_all(["image, question -> answer:label", "image -> caption"])
    assert said_types(found) == {"answer": "label"}
    assert found[0].columns == ("image", "question", "answer") and found[0].output == "answer"
    with pytest.raises(ArrowError, match="there is no arrow"):
        parse_all([])
    with pytest.raises(ArrowError, match=r"stands twice; to count it double, weight it: '2\* a -> b'"):
        parse_all(["a -> b", "3* a -> b:label"])
    with pytest.raises(ArrowError, match=r"column 'b' is label in 'a -> b:label' and text in 'c -> b:text'"):
        parse_all(["a -> b:label", "c -> b:text"])
    assert len(parse_all(["a -> b", "b -> a"])) == 2


def test_columns_that_the_table_does_not_have() -> None:
    check_columns(parse_all(["image -> caption"]), ["caption", "image", "x"])
    with pytest.raises(ArrowError, match=r"'image -> caption' names a column 'caption' .* Did you mean 'captions'\?"):
        check_columns(parse_all(["image -> caption"]), ["image", "captions"])
    with pytest.raises(ArrowError, match=r"There is: a, b\."):
        check_columns(parse_all(["-> zebra"]), ["a", "b"])
