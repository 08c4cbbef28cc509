"""The demo's table, made from installed packages: shapes with questions, handwritten digits, and spoken sentences.

    rows                 filled columns                       source
    questions            image question answer speech         easy-vqa; every question is also spoken, by many voices
    captions             image caption times                  what the questions tell of an image; scikit-learn's digits
    speaking             text speech times                    one voice reads sentences about shapes, colours and digits

A blank cell means that the row takes no part in arrows over that column. What is held out:

    images     easy-vqa's own test split; 5 % of its other images (by a seeded hash) for validation; a quarter of the
               digits for the test, 5 % for validation
    voices     a voice of the test (or validation) rows is heard nowhere else
    sentences  15 % of the speaking rows' sentences, by a seeded hash of the text, are test rows (10 % validation), so
               the one voice is not heard saying them in training. Those that are questions are still heard there in
               the question rows, by other voices. About 2,000 more sentences of the same words are for training only:
               without them a model knows its few hundred by heart before it can say a new one.

`build` writes `metadata.csv`, `images/`, `speech/` and `table.json` (facts about the table, which any table
may have beside it: the report shows them).
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations, product
from pathlib import Path

import numpy as np

from weft.data import built
from weft.data.built import draw, share
from weft.data.espeak import Clip, Voice, speak_all
from weft.errors import MissingExtra

VERSION = 3  # of what is built; a table with another version is made anew
COLUMNS = ("image", "question", "answer", "speech", "caption", "text", "split", "times")
SHAPE_TIMES, DIGIT_TIMES = 3, 4  # in the column `times`: digits are few, and each is written in a way of its own
SENTENCE_TIMES, PRACTICE_TIMES = 4, 0.5
VALIDATION, SENTENCES_TEST, SENTENCES_VALIDATION, DIGITS_TEST = 0.05, 0.15, 0.1, 0.25
CLIPS_PER_QUESTION = 40  # of the training voices: each asks each of the 107 questions once

COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

SPEAKER = Voice("en-us", speed=175)  # the one voice of the speaking rows
_ACCENTS = ("en-us", "en", "en-gb-scotland", "en-029", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
_TWICE = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5")  # each with two accents
_ONCE = (
    "Alex",
    "Andrea",
    "Gene",
    "Lee",
    "Nguyen",
    "Reed",
    "adam",
    "aunty",
    "belinda",
    "david",
    "grandma",
    "marcelo",
    "robert",
    "victor",
)
# Held-out voices differ from all training voices in their variant: another throat, not only another accent. Left out
# altogether are the engine's effects (whisper, croak, echo, robots).
_HELD_OUT = {
    "validation": ("en-us+Alicia", "en+max", "en-029+pablo"),
    "test": (
        "en-us+Annie",
        "en-us+Michael",
        "en-us+paul",
        "en+shelby",
        "en+edward",
        "en-gb-scotland+steph",
        "en-029+Andy",
        "en-gb-x-rp+Mike",
    ),
}


def voices() -> dict[str, list[Voice]]:
    """Who asks the questions, by split: 40 voices for training, 3 for validation, 8 for the test, no variant in two."""
    names = [f"{_ACCENTS[(i + 3 * turn) % len(_ACCENTS)]}+{name}" for turn in range(2) for i, name in enumerate(_TWICE)]
    names += [f"{_ACCENTS[i % len(_ACCENTS)]}+{name}" for i, name in enumerate(_ONCE)]
    by_split = {"train": names, **{split: list(held) for split, held in _HELD_OUT.items()}}
    return {  # speed and pitch differ from voice to voice too; training clips are varied further (`varied`)
        split: [
            Voice(name, speed=155 + draw(name, 0, "speed") % 46, pitch=40 + draw(name, 0, "pitch") % 21)
            for name in names
        ]
        for split, names in by_split.items()
    }


_OF_SHAPES = """
a {c} {s}; the {s} is {c}; the {s} is not {c}; is the {s} {c}?; yes, the {s} is {c}; no, the {s} is not {c};
there is a {c} {s} in the image; there is no {c} {s} in the image; is there a {c} {s} in the image?; this is a {c} {s};
the image contains a {c} {s}; the image does not contain a {c} {s}; a {c} {s} is present; no {c} {s} is present;
is a {c} {s} present?; the color of the {s} is {c}; what is the {c} {s}?; the {c} shape is a {s}; is there a {c} {s}?
"""
_OF_DIGITS = """
a handwritten {d}; the digit is a handwritten {d}; the image contains a handwritten {d}; this is {a} {d};
is there {a} {d} in the image?; there is a handwritten {d} in the image; is the digit {a} {d}?; the digit is {d}
"""


def sentences() -> list[str]:
    """What the speaking rows say, questions apart: captions, and sentences of the same words in ever new company."""
    patterns = lambda text: [part.strip() for part in text.split(";")]
    shapes, digits = list(product(COLOURS, SHAPES)), [("an" if d == "eight" else "a", d) for d in DIGITS]
    made = [pattern.format(c=c, s=s) for c, s in shapes for pattern in patterns(_OF_SHAPES)]
    made += [pattern.format(a=a, d=d) for a, d in digits for pattern in patterns(_OF_DIGITS)]
    for c, other in permutations(COLOURS, 2):
        made += [f"{c} and {other}", f"the shape is {c}, not {other}"]
    made += [f"{a} and {b}" for a, b in permutations(DIGITS, 2)]
    made += [
        f"a {c} {s} and a {other} {second}"
        for (c, s), (other, second) in product(shapes, repeat=2)
        if s != second and c != other and draw(f"{c}{s}{other}{second}", 0, "pair") % 4 == 0
    ]
    return sorted(set(made))


def practice() -> list[str]:
    """What the one voice reads for training only: the same words in other company than in `sentences`."""
    shapes = list(product(COLOURS, SHAPES))
    made = [f"a {c} {s} and a {o} {t}" for (c, s), (o, t) in product(shapes, repeat=2) if s != t and c != o]
    for (s, t), (c, o) in product(permutations(SHAPES, 2), permutations(COLOURS, 2)):
        made += [f"the {s} is {c}, the {t} is {o}", f"is the {s} {c} or {o}?"]
    made += [f"{a}, {b} and {c}" for words in (COLOURS, DIGITS) for a, b, c in permutations(words, 3)]
    made += [f"a handwritten {a} and a handwritten {b}" for a, b in permutations(DIGITS, 2)]
    made += [f"there are {d} {c} {s}s in the image" for d in DIGITS[2:] for c, s in shapes]
    return sorted(set(made) - set(sentences()))


def build(out: Path, seed: int = 0, processes: int = 2) -> Path:
    """Make the table below `out` and return the path of its `metadata.csv`; a complete one is reused.

    Complete means: of this version and seed. Everything is written to a folder beside `out` and renamed at the end, so
    an interrupted build leaves nothing half done.
    Raises MissingExtra when a package is missing, DataError when `out` holds something that is not a demo table.
    """
    out = Path(out)
    before = out / "demo.json"  # what table.json was called at first
    if before.is_file() and not (out / "table.json").is_file():
        shutil.copy(before, out / "table.json")
    return built.build(out, partial(_write, seed=seed, processes=processes), VERSION, seed)


def is_complete(out: Path, seed: int = 0) -> bool:
    """Whether `out` holds the whole table of this version and seed."""
    return built.is_complete(out, VERSION, seed)


def _write(out: Path, seed: int, processes: int) -> None:
    asked, colourless = _questions(out, seed)
    rows, clips = _speak_questions(asked, seed)
    captions = _captions(asked) + _digits(out, seed)
    questions = sorted({row["question"] for row in asked})
    speaking, spoken = _speaking(questions, seed)
    speak_all(clips + spoken, out, processes)
    facts = _facts(rows, captions, speaking, clips, colourless)
    built.finish(out, COLUMNS, rows + captions + speaking, facts, VERSION, seed)


def _facts(rows: list, captions: list, speaking: list, clips: list[Clip], undetermined: list[str]) -> dict:
    """The numbers that the report tells of the table."""
    by_split: dict[str, dict[str, object]] = {}
    for split in ("train", "validation", "test"):
        mine, mine_captions = ([row for row in part if row["split"] == split] for part in (rows, captions))
        by_split[split] = {
            "questions": len(mine),
            "question_images": len({row["image"] for row in mine}),
            "captions": len(mine_captions),
            "digits": sum("digit" in row["image"] for row in mine_captions),
            "question_clips": len({row["speech"] for row in mine}),
            "voices": sorted(voice.name for voice in voices()[split]),
            "spoken_sentences": sum(row["split"] == split for row in speaking),
        }
    return {
        "splits": by_split,
        "clips": len(clips) + len(speaking),
        "speaker": SPEAKER.name,
        "images_without_caption": undetermined,  # their questions do not determine both shape and colour
    }


def _questions(out: Path, seed: int) -> tuple[list[dict], list[str]]:
    """easy-vqa: copies its images; rows of image, question, answer, split, `_caption`; images without caption."""
    try:
        import easy_vqa
    except ImportError as error:
        raise MissingExtra("The demo's table of shapes (package easy-vqa)", "demo") from error
    source = Path(easy_vqa.__file__).parent / "data"
    rows, undetermined = [], []
    for part in ("train", "test"):
        folder = out / "images" / part
        shutil.copytree(source / part / "images", folder, ignore=shutil.ignore_patterns(".*"))
        told = defaultdict(list)
        for question, answer, image in json.loads((source / part / "questions.json").read_text(encoding="utf-8")):
            told[image].append((question, answer))
        for image in sorted(told):
            path = f"images/{part}/{image}.png"
            held = part == "train" and share(path, seed, "validation") < VALIDATION
            caption = caption_of(told[image])
            if caption is None:
                undetermined.append(path)
            rows += [
                {
                    "image": path,
                    "question": q,
                    "answer": a,
                    "split": "validation" if held else part,
                    "_caption": caption,
                }
                for q, a in told[image]
            ]
    return rows, undetermined


def caption_of(told: Iterable[tuple[str, str]]) -> str | None:
    """'a blue triangle', from the questions and answers about one image; None where they do not tell both for certain.

    A word of the question is a fact when the answer affirms it ('is there a red shape?' yes; 'is there not a red
    shape?' no), when the question presupposes it ('what is the red shape?'), and when all its alternatives are denied.
    """
    facts: dict[tuple[str, ...], set[str]] = {COLOURS: set(), SHAPES: set()}
    denied: dict[tuple[str, ...], set[str]] = {COLOURS: set(), SHAPES: set()}
    for question, answer in told:
        words = question.rstrip("?").split()
        truth = (answer == "yes") != bool({"not", "no"} & set(words)) if answer in ("yes", "no") else True
        for known in (COLOURS, SHAPES):
            (facts if truth else denied)[known].update(set(words) & set(known))
            facts[known].update({answer} & set(known))
    found = []
    for known in (COLOURS, SHAPES):
        possible = facts[known] or set(known) - denied[known]
        if len(possible) != 1:
            return None
        found.append(possible.pop())
    return f"a {found[0]} {found[1]}"


def _captions(asked: Sequence[dict]) -> list[dict]:
    first = {row["image"]: row for row in asked if row["_caption"]}
    return [
        {"image": image, "caption": row["_caption"], "split": row["split"], "times": SHAPE_TIMES}
        for image, row in first.items()
    ]


def _digits(out: Path, seed: int) -> list[dict]:
    """scikit-learn's digits as 64x64 grey pictures, black on white; a quarter of each digit is test, 5 % validation."""
    try:
        from PIL import Image
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra(f"The demo's handwritten digits (package {error.name})", "demo") from error
    pixels_of, targets = load_digits(return_X_y=True)
    folder = out / "images" / "digits"
    folder.mkdir(parents=True)
    split = np.full(len(targets), "train", dtype=object)
    for digit in range(10):
        mine = np.flatnonzero(targets == digit)
        mine = mine[np.argsort([draw(str(i), seed, "digits") for i in mine])]
        test, validation = round(DIGITS_TEST * len(mine)), round(VALIDATION * len(mine))
        split[mine[:test]], split[mine[test : test + validation]] = "test", "validation"
    rows = []
    for i, (pixels, digit) in enumerate(zip(pixels_of.reshape(-1, 8, 8), targets, strict=True)):
        small = Image.fromarray((255 - np.minimum(pixels * 16, 255)).astype(np.uint8))
        small.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        caption = f"a handwritten {DIGITS[digit]}"
        rows.append(
            {"image": f"images/digits/{i}.png", "caption": caption, "split": split[i], "times": DIGIT_TIMES}
        )
    return rows


def _speak_questions(asked: Sequence[dict], seed: int) -> tuple[list[dict], list[Clip]]:
    """Give every row a clip of its question by a voice of its split, and the clips that this needs, each once."""
    questions = sorted({row["question"] for row in asked})
    cast: dict[tuple[str, str], list[Voice]] = {}
    for split, speakers in voices().items():
        for number, question in enumerate(questions):
            count = min(len(speakers), CLIPS_PER_QUESTION)
            # a window that moves on through the voices (17 steps at a time: 40 has no part in it): all read as many
            cast[split, question] = [speakers[17 * (count * number + k) % len(speakers)] for k in range(count)]
    rows, clips = [], {}
    for row in asked:
        speakers = cast[row["split"], row["question"]]
        voice = speakers[draw(row["image"] + row["question"], seed, "voice") % len(speakers)]
        path = f"speech/{row['split']}/{_slug(voice.name)}/{questions.index(row['question']):03d}.flac"
        if row["split"] == "train":  # nobody says everything alike
            voice = varied(voice, row["question"])
        clips[path] = Clip(path, row["question"], voice)
        rows.append({name: row[name] for name in ("image", "question", "answer", "split")} | {"speech": path})
    return rows, list(clips.values())


def varied(voice: Voice, text: str) -> Voice:
    """The voice at a speed and a pitch of its own for this text, within wider bounds than those of the voices."""
    return replace(
        voice,
        speed=145 + draw(f"{voice.name} {text}", 0, "speed") % 66,
        pitch=30 + draw(f"{voice.name} {text}", 0, "pitch") % 41,
    )


def _speaking(questions: Sequence[str], seed: int) -> tuple[list[dict], list[Clip]]:
    """One voice, every text once."""
    rows, clips = [], []
    texts = [*questions, *sentences()]
    for number, text in enumerate(texts + [text for text in practice() if text not in questions]):
        drawn = 1.0 if number >= len(texts) else share(text, seed, "sentence")
        seen = drawn >= SENTENCES_TEST + SENTENCES_VALIDATION
        held = "train" if seen else "test" if drawn < SENTENCES_TEST else "validation"
        path = f"speech/speaker/{number:04d}.flac"
        times = SENTENCE_TIMES if number < len(texts) else PRACTICE_TIMES
        rows.append({"text": text, "speech": path, "split": held, "times": times})
        clips.append(Clip(path, text, SPEAKER))
    return rows, clips


def _slug(name: str) -> str:
    return name.replace("+", "-")
