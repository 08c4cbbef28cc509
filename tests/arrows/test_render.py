"""The renderer: what is trained and shared, lengths without decoding, and a text never becomes more than text."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arrows_world import ARROWS, TYPES, WORDS, StandIn, picture, record, renderer, sound
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from weft.arrows.grammar import parse
from weft.arrows.render import APART, Renderer
from weft.arrows.sample import Sample, Span
from weft.arrows.types import Label
from weft.arrows.vocabulary import Vocabulary
from weft.data import pack
from weft.errors import ArrowError, DataError, RunError
from weft.modalities.codes import AudioCodec, ImageCodec
from weft.modalities.text import TextCodec
from weft.recipe import Recipe

RENDERER = renderer()
WORD = RENDERER.vocabulary
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(lambda t: not t.isspace())


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A row with a value in every column; its files stay for the module."""
    return record(tmp_path_factory.mktemp("media"))


def outline(sample: Sample) -> list[tuple[str, str | None, str, bool]]:
    return [(span.kind, span.column, span.role, span.loss) for span in sample.spans]


def ids(span: Span) -> list[int]:
    return span.ids.tolist()  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------ what is rendered


def test_a_question_about_a_picture(row: dict[str, Any]) -> None:
    sample = RENDERER.render(row, 0, row=7)
    assert (sample.row, sample.arrow) == (7, 0)
    assert outline(sample) == [
        ("ids", "image", "input", False), ("image", "image", "input", False),
        ("ids", "question", "input", False), ("ids", "question", "input", False),
        ("ids", "answer", "output", False), ("ids", "answer", "output", True),
    ]  # fmt: skip
    assert [ids(sample.spans[i]) for i in (0, 2, 4)] == [[WORD.marker(c)] for c in ("image", "question", "answer")]
    assert ids(sample.spans[5]) == [WORD.block("label:answer").start], "the first of the sorted values is 'blue'"
    assert RENDERER.text.decode(sample.spans[3].ids - WORD.block("text").start) == row["question"]
    shown = sample.spans[1]
    assert shown.values.shape == (6 * 8, 3 * 64) and shown.values.dtype == np.float16
    assert shown.positions.shape == (48, 3) and shown.positions[-1].tolist() == [0, 5, 7] and shown.advance == 8
    assert sample.trained == 1 and len(sample) == 3 + 48 + len(sample.spans[3]) + 1


def test_a_sound_that_is_heard(row: dict[str, Any]) -> None:
    sample = RENDERER.render(row, 1)
    heard = sample.spans[1]
    assert heard.kind == "audio" and heard.values.shape == (math.ceil(math.ceil(12345 / 160) / 8), 8 * 80)
    assert heard.positions[:3].tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]] and heard.advance == len(heard)
    assert sample.spans[3].loss and ids(sample.spans[3])[-1] == WORD.end


def test_positions_follow_the_seconds_whatever_the_stack(row: dict[str, Any]) -> None:
    recipe = replace(Recipe(), audio=replace(Recipe().audio, stack=3))
    heard = renderer(recipe).render(row, 1).spans[1]
    seconds = np.arange(len(heard)) * 3 * 0.01
    np.testing.assert_allclose(heard.positions[:, 0], seconds * 12.5, rtol=1e-6)
    assert heard.advance == np.ceil(len(heard) * 3 * 0.01 * 12.5)


def test_a_picture_that_is_drawn(row: dict[str, Any]) -> None:
    sample = RENDERER.render(row, 2)
    drawn = sample.spans[-1]
    assert drawn.loss and drawn.role == "output" and len(drawn) == 64
    assert set(ids(drawn)) <= set(WORD.block("codes:image")), "codes only, and no end: their number is known"


def test_a_sound_that_is_spoken(row: dict[str, Any]) -> None:
    spoken = RENDERER.render(row, 3).spans[-1]
    assert len(spoken) == math.ceil(math.ceil(12345 / 160) / 4) + 1
    assert ids(spoken)[-1] == WORD.end and set(ids(spoken)[:-1]) <= set(WORD.block("codes:audio"))


@pytest.mark.parametrize("arrow", ["-> question", "~question"])
def test_a_text_by_itself(row: dict[str, Any], arrow: str) -> None:
    sample = RENDERER.render(row, ARROWS.index(arrow))
    assert outline(sample) == [("ids", "question", "output", False), ("ids", "question", "output", True)]
    assert ids(sample.spans[0]) == [WORD.marker("question")] and ids(sample.spans[1])[-1] == WORD.end


def test_two_sides_brought_close(row: dict[str, Any]) -> None:
    sample = RENDERER.render(row, ARROWS.index("image <-> caption"))
    assert outline(sample) == [
        ("ids", "image", "input", False), ("image", "image", "input", False),
        ("ids", "caption", "output", False), ("ids", "caption", "output", False),
    ]  # fmt: skip
    assert sample.trained == 0 and WORD.end not in ids(sample.spans[3])


def test_labels_are_one_id_in_and_out_and_numbers_are_labels_too(row: dict[str, Any]) -> None:
    assert ids(RENDERER.render(row, 7).spans[1]) == [WORD.block("label:answer")[0]]
    assert ids(RENDERER.render(row, 8).spans[1]) == [WORD.block("label:answer")[0]]
    assert ids(RENDERER.render(row, 9).spans[-1]) == [WORD.block("label:number")[2]], (
        "10 is the third of '1', '2', '10'"
    )
    assert RENDERER.render({**row, "number": "10"}, 9).spans[-1] is RENDERER.render({**row, "number": 10}, 9).spans[-1]


def test_a_prompt_ends_with_the_marker_of_what_is_asked_for(row: dict[str, Any]) -> None:
    for index, arrow in enumerate(RENDERER.arrows):
        whole, prompt = RENDERER.render(row, index), RENDERER.prompt(row, index)
        if arrow.kind in ("align", "fill"):
            assert len(prompt) == len(whole)
            continue
        assert outline(prompt) == outline(whole)[:-1]
        assert [span.key for span in prompt.spans] == [span.key for span in whole.spans[:-1]]
        assert ids(prompt.spans[-1]) == [WORD.marker(arrow.output)] and prompt.trained == 0
        without = {name: value for name, value in row.items() if name != arrow.output}
        assert len(RENDERER.prompt(without, index)) == len(prompt), "the answer is not needed to ask"


# ------------------------------------------------------------------------------------------------ no smuggling


SPECIAL = ["<end>", "<|end|>", "<pad>", "[MASK]", "</s>", "<image>", "|answer|", "<extra_id_0>", "\0", "<|endoftext|>"]


@given(texts | st.sampled_from(SPECIAL) | st.lists(st.sampled_from([*SPECIAL, "a ", "b"]), min_size=1).map("".join))
@example("<end>")
@settings(max_examples=100)
def test_a_text_only_ever_becomes_text(words: str) -> None:
    sample = RENDERER.render({"question": words}, ARROWS.index("-> question"))
    content = sample.spans[1].ids
    assert content[-1] == WORD.end and all(token in WORD.block("text") for token in content[:-1])
    assert RENDERER.value("question", content) == words


# ------------------------------------------------------------------------------------------------ lengths


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_length_is_known_without_decoding(data: st.DataObject, tmp_path: Path) -> None:
    patch = data.draw(st.integers(1, 9), "patch")
    size = data.draw(st.integers(patch, 40), "size")
    stack, hop = data.draw(st.integers(1, 9), "stack"), data.draw(st.integers(1, 9), "hop")
    recipe = Recipe()
    pictures = replace(recipe.image, size=size, patch=patch, codes=data.draw(st.integers(1, 4), "rows") ** 2)
    recipe = replace(recipe, image=pictures, audio=replace(recipe.audio, stack=stack, hop=hop))
    height, width = data.draw(st.integers(1, 60), "height"), data.draw(st.integers(1, 60), "width")
    rate = data.draw(st.sampled_from([8000, 16000, 22050]), "rate")
    made = {
        "image": picture(tmp_path / "a.png", height, width),
        "speech": sound(tmp_path / "a.wav", data.draw(st.integers(3, 9000), "samples"), rate),
        "question": data.draw(texts), "caption": data.draw(texts), "answer": "no", "number": 2,
    }  # fmt: skip
    planner, maker = renderer(recipe), renderer(recipe)
    for index in range(len(ARROWS)):
        assert planner.length(made, index) == len(maker.render(made, index))
    assert not planner.reader.kept and not planner._codes and planner.codecs["image"].calls == 0, "nothing was decoded"
    assert len(maker.reader.kept) == 2


# ------------------------------------------------------------------------------------------------ sharing


def test_spans_with_equal_keys_are_equal_and_outputs_have_none(row: dict[str, Any], tmp_path: Path) -> None:
    other = {**row, "image": picture(tmp_path / "other.png", 48, 64, seed=1), "question": "why?"}
    seen: dict[Any, Span] = {}
    for made in (row, other):
        for index in range(len(ARROWS)):
            for span in RENDERER.render(made, index).spans:
                assert (span.key is not None) == (span.role == "input")
                if span.key is not None:
                    first = seen.setdefault(span.key, span)
                    assert np.array_equal(first.ids if first.ids is not None else first.values,
                                          span.ids if span.ids is not None else span.values)  # fmt: skip
    assert {key for key in seen if key[0] == "image"} == {("image", str(row["image"])), ("image", str(other["image"]))}
    assert ("marker", "image") in seen and ("text", "why?") in seen


def test_equal_words_in_a_text_and_a_label_column_are_told_apart_by_their_marker() -> None:
    """Packing compares all leading keys, and a column's marker always comes first."""
    made = {"answer": "no", "question": "no"}
    label = RENDERER.render({**made, "caption": "x"}, 7).spans
    text = RENDERER.render({**made, "speech": (np.zeros(800, np.float32), 16000)}, 3).spans
    assert label[1].key == text[1].key and label[0].key != text[0].key


def test_the_second_time_nothing_is_made_anew(row: dict[str, Any]) -> None:
    made = renderer()
    for index in range(len(ARROWS)):
        first, second = made.render(row, index), made.render(row, index)
        for a, b in zip(first.spans, second.spans, strict=True):
            assert a is b or (a.values is b.values and a.values is not None)


# ------------------------------------------------------------------------------------------------ rows that do not fit


@pytest.mark.parametrize("value", [None, "", "  \n", float("nan")])
def test_blank_cells(row: dict[str, Any], value: Any) -> None:
    made = {**row, "question": value}
    for ask in (RENDERER.render, RENDERER.length):
        with pytest.raises(DataError, match=r"row 3, column 'question': there is no value"):
            ask(made, 0, row=3)
        with pytest.raises(DataError, match=r"^column 'image': there is no value"):
            ask({**row, "image": None}, 2)


def test_media_that_cannot_be_decoded_name_row_column_and_file(row: dict[str, Any], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(row["image"].read_bytes()[:200])
    for index in (0, 2):
        with pytest.raises(DataError) as caught:
            RENDERER.render({**row, "image": broken}, index, row=12)
        assert str(caught.value).startswith(f"row 12, column 'image': {broken}: the PNG data is damaged or cut off")
    with pytest.raises(DataError, match=r"row 4, column 'speech': .*gone.wav: there is no such file"):
        RENDERER.length({**row, "speech": tmp_path / "gone.wav"}, 1, row=4)
    with pytest.raises(DataError, match=r"row 4, column 'speech': .*bytes"):
        RENDERER.render({**row, "speech": b"no sound at all"}, 1, row=4)


def test_labels_that_are_not_known(row: dict[str, Any]) -> None:
    for index in (0, 7):
        with pytest.raises(DataError, match=r"row 2, column 'answer': 'blu' is no known label. Did you mean 'blue'\?"):
            RENDERER.render({**row, "answer": "blu"}, index, row=2)
    with pytest.raises(DataError, match=r"^column 'answer': 'blu' is no known label"):
        RENDERER.length({**row, "answer": "blu"}, 0)


# ------------------------------------------------------------------------------------------------ the way back


def test_what_is_legal_for_each_column() -> None:
    for column, block, count, end in [
        ("question", "text", None, WORD.end), ("answer", "label:answer", 1, None),
        ("image", "codes:image", 64, None), ("speech", "codes:audio", None, WORD.end),
    ]:  # fmt: skip
        mask, exact, stop, places = RENDERER.legal(column)
        assert (exact, stop) == (count, end) and (places is None) == (column != "image")
        assert set(np.flatnonzero(mask)) == {*WORD.block(block), *([end] if end is not None else [])}
        assert mask.shape == (WORD.size,)
    with pytest.raises(ArrowError, match=r"no column 'anser'. Did you mean 'answer'\?"):
        RENDERER.legal("anser")


def test_every_output_is_legal_and_comes_back_as_its_value(row: dict[str, Any]) -> None:
    for index, arrow in enumerate(RENDERER.arrows):
        if arrow.kind in ("align", "fill"):
            continue
        made = RENDERER.render(row, index).spans[-1].ids
        mask, count, end, _ = RENDERER.legal(arrow.output)
        assert mask[made].all() and (len(made) == count if count else made[-1] == end)
        value = RENDERER.value(arrow.output, made)
        if isinstance(value, str):
            assert value == str(row[arrow.output])
    assert RENDERER.value("image", RENDERER.render(row, 2).spans[-1].ids).shape == (8, 8, 3)
    wave = RENDERER.value("speech", RENDERER.render(row, 3).spans[-1].ids)
    assert wave.dtype == np.float32 and len(wave) == 20 * 4 * 160


def test_values_of_many_at_once() -> None:
    start = WORD.block("codes:audio").start
    waves = RENDERER.values("speech", [[start] * 3, [WORD.end], [start, WORD.end, start], []])
    assert [len(wave) for wave in waves] == [3 * 640, 0, 640, 0], "what stands behind the end is left out"
    assert RENDERER.values("answer", [[token] for token in WORD.block("label:answer")]) == ["blue", "no", "yes"]
    assert RENDERER.value("question", [WORD.end]) == ""
    with pytest.raises(DataError, match="column 'question': id 0 is not one of its own"):
        RENDERER.value("question", [0])
    with pytest.raises(DataError, match="2 ids came; a label is one"):
        RENDERER.value("answer", [WORD.block("label:answer")[0]] * 2)
    with pytest.raises(DataError, match="column 'image': id"):
        RENDERER.value("image", [WORD.block("codes:audio")[0]] * 64)


def test_the_number_of_an_arrow() -> None:
    assert RENDERER.index("answer -> caption") == 7 and RENDERER.index(parse("2* image,question->answer:label")) == 0
    with pytest.raises(
        ArrowError, match=r"this run has no arrow 'image -> answer'\. It has: image, question -> answer;"
    ):
        RENDERER.index("image -> answer")


# ------------------------------------------------------------------------------------------------ codes ahead


def test_codes_made_ahead_are_the_codes_of_rendering(tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{i}.png", 20, 20, seed=i) for i in range(9)]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG")
    ahead, alone = renderer(), renderer()
    failed = ahead.precode("image", [*paths, None, "", broken, *paths])
    assert [(value, type(error)) for value, error in failed] == [(str(broken), DataError)]
    assert ahead.codecs["image"].calls == 1
    for path in paths:
        made = [r.render({"caption": "x", "image": path}, 2).spans[-1] for r in (ahead, alone)]
        assert ids(made[0]) == ids(made[1])
    assert ahead.codecs["image"].calls == 1 and alone.codecs["image"].calls == 9
    sounds = [sound(tmp_path / f"{i}.wav", 3000 + i, seed=i) for i in range(3)]
    assert ahead.precode("speech", sounds) == [] == ahead.precode("speech", sounds)
    assert ahead.codecs["audio"].calls == 1


# ------------------------------------------------------------------------------------------------ files


def test_it_is_saved_inside_the_run_and_renders_alike(row: dict[str, Any], tmp_path: Path) -> None:
    recipe = Recipe()
    recipe = replace(
        recipe, image=replace(recipe.image, size=32, codes=16, codebook=16), audio=replace(recipe.audio, codebook=16)
    )
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(8)]
    codecs = {
        "image": ImageCodec.train(images, recipe.image, steps=2)[0],
        "audio": AudioCodec.train([rng.uniform(-1, 1, (160, 80)).astype(np.float32)] * 4, recipe.audio, steps=2)[0],
    }
    text = TextCodec.train(WORDS, 280)
    labels = {name: len(kind.values) for name, kind in TYPES.items() if isinstance(kind, Label)}
    sizes = {kind: codec.size for kind, codec in codecs.items()}
    vocabulary = Vocabulary(list(TYPES), text.size, labels, sizes)
    before = Renderer(recipe, TYPES, [parse(a) for a in ARROWS], vocabulary, text, codecs)
    before.save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"renderer.json", "tokenizer.json", "codecs"}
    after = Renderer.load(tmp_path)
    assert after.to_tree() == before.to_tree() == json.loads((tmp_path / "renderer.json").read_text())
    for index, arrow in enumerate(after.arrows):
        assert before.length(row, index) == after.length(row, index) == len(after.render(row, index)), arrow
        for a, b in zip(before.render(row, index).spans, after.render(row, index).spans, strict=True):
            assert (a.kind, a.role, a.loss, a.column, a.key, a.advance) == (
                b.kind,
                b.role,
                b.loss,
                b.column,
                b.key,
                b.advance,
            )
            assert np.array_equal(a.ids, b.ids) if a.ids is not None else np.array_equal(a.values, b.values)
    assert after.value("image", after.render(row, 2).spans[-1].ids).shape == (32, 32, 3)


def test_a_run_without_text_or_codecs(tmp_path: Path) -> None:
    types = {"image": TYPES["image"], "answer": TYPES["answer"]}
    plain = Renderer(Recipe(), types, [parse("image -> answer")], Vocabulary(list(types), 0, {"answer": 3}))
    plain.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["renderer.json"]
    made = {"image": picture(tmp_path / "a.png", 8, 8), "answer": "yes"}
    assert Renderer.load(tmp_path).length(made, 0) == len(plain.render(made, 0)) == 64 + 3


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"image": {"sizes": 3}}', "{", '{"image": 3}'])
def test_damaged_files(tmp_path: Path, content: str) -> None:
    with pytest.raises(RunError, match=r"renderer.json: there is no such file"):
        Renderer.load(tmp_path)
    (tmp_path / "renderer.json").write_text(content)
    with pytest.raises(RunError, match="not a readable renderer"):
        Renderer.load(tmp_path)


def test_pieces_that_do_not_belong_together() -> None:
    text = TextCodec.train(WORDS, 280)
    with pytest.raises(DataError, match="has 200 ids for text, and there are 280"):
        Renderer(Recipe(), {"question": TYPES["question"]}, [parse("-> question")], Vocabulary(["question"], 200), text)
    with pytest.raises(ArrowError, match=r"names a column 'caption' without a type"):
        Renderer(
            Recipe(),
            {"question": TYPES["question"]},
            [parse("question -> caption")],
            Vocabulary(["question"], 280),
            text,
        )
    with pytest.raises(DataError, match="has 0 ids for codes:audio, and there are 89"):
        Renderer(Recipe(), {}, [], Vocabulary([]), None, {"audio": StandIn(89)})


def test_a_codec_that_is_missing_is_told(row: dict[str, Any]) -> None:
    types = {name: TYPES[name] for name in ("image", "caption")}
    text = TextCodec.train(WORDS, 280)
    without = Renderer(Recipe(), types, [parse("caption -> image")], Vocabulary(list(types), 280), text)
    assert without.length(row, 0) > 64, "lengths need no codec"
    with pytest.raises(DataError, match="this run has no image codec"):
        without.render(row, 0)


# ------------------------------------------------------------------------------------------------ where codes stand


def test_drawn_codes_stand_in_rows_and_columns_where_decoding_puts_them(row: dict[str, Any]) -> None:
    whole, prompt = (pack.flatten(make(row, 2).spans)[0] for make in (RENDERER.render, RENDERER.prompt))
    places = RENDERER.legal("image").places
    assert places is not None and whole.positions is not None
    assert places[:, 0].tolist() == list(range(64))
    assert places[9].tolist() == [9, APART, APART] and places[63].tolist() == [63, 7 * APART, 7 * APART]
    assert np.array_equal(whole.positions[len(prompt) :], prompt.advance + places)


def test_a_run_from_before_rows_and_columns_keeps_its_codes_in_a_line(row: dict[str, Any], tmp_path: Path) -> None:
    old = renderer(layout=1)
    assert old.legal("image").places is None
    assert pack.flatten(old.render(row, 2).spans)[0].positions is None
    for saved in (renderer(arrows=["question -> answer"]), renderer(arrows=["question -> answer"], layout=1)):
        saved.codecs = {}
        labels = {name: len(kind.values) for name, kind in TYPES.items() if isinstance(kind, Label)}
        saved.vocabulary = Vocabulary(list(TYPES), saved.text.size, labels)
        saved.save(tmp_path)
        tree = json.loads((tmp_path / "renderer.json").read_text())
        assert tree["layout"] == saved.layout
        if saved.layout == 1:
            del tree["layout"]  # as such runs have it
            (tmp_path / "renderer.json").write_text(json.dumps(tree))
        assert Renderer.load(tmp_path).layout == saved.layout
