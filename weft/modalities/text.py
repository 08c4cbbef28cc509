"""Text <-> ids: a byte-level BPE trained on the user's own text.

Shape letters:  L ids of one text

Every byte has an id, so any text can be written and read back unchanged: Chinese, emoji, lone control characters. There
are no special tokens inside: the renderer owns those, so a user's text cannot smuggle one in ("<|end|>" is eight plain
characters). A pretrained tokenizer (weft/convert/tokenizer.py) has control tokens among its ids; no text becomes one.

    "naïve"  ->  bytes 6e 61 c3 af 76 65  ->  pre-split like GPT-2  ->  merges, most frequent pair first  ->  ids

Source: Radford et al. 2019 (GPT-2), section 2.2, byte-level byte pair encoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from weft.errors import DataError, RecipeError, RunError

BYTES = 256  # ids 0..255 are the bytes; merges follow
LARGEST = 16384  # of the sizes chosen for the user; a larger one can be asked for
SHOWN = 40  # characters of a text quoted in an error
BARRIER = "\ufdd0"  # a code point that is no character (Unicode 23.7): put into a text, and taken out of its ids
BARRIER_BYTES = [f"<0x{byte:02X}>" for byte in BARRIER.encode()]  # as tokenizers with byte pieces spell it


class TextCodec:
    """A tokenizer. One trained here is a byte-level BPE: `decode(encode(text)) == text` for every Unicode text.

    control  id -> text of the control tokens of a pretrained one; a user's text is never encoded as one of them
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.encode_special_tokens = True  # the text of a control token is text
        tokenizer.no_truncation()  # a saved tokenizer may cut texts at a length, and fill them up to one
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.control = {i: t.content for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}

    @classmethod
    def train(cls, texts: Iterable[str], size: int = 0) -> TextCodec:
        """Learn merges from `texts` until there are `size` ids, the 256 bytes included.

        `size` 0 is decided from the amount of text (`suggest`). Fewer ids come out where the texts hold fewer pairs
        that occur twice; `.size` says how many there are. The same texts give the same ids, on any number of threads.
        Raises RecipeError for a size under 256, DataError for what is not text.
        """
        texts = list(texts)
        for index, text in enumerate(texts):
            _check(text, f"text {index}")
        size = size or suggest(texts)
        if size < BYTES:
            raise RecipeError(
                f"text.vocabulary is {size}; it holds the {BYTES} bytes first, so give {BYTES} or more (or 0)"
            )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=2,
            special_tokens=[],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @property
    def size(self) -> int:
        """How many ids there are: 0 .. size - 1."""
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> np.ndarray:
        """`text` -> (L,) int64. Raises DataError for what is not text."""
        _check(text, "this")
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return np.array(ids if self.control.keys().isdisjoint(ids) else self._plain(text), dtype=np.int64)

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As `encode`, for many at once (several times quicker)."""
        for index, text in enumerate(texts):
            _check(text, f"text {index}")
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        found = [encoding.ids for encoding in encodings]
        for index, ids in enumerate(found):
            if not self.control.keys().isdisjoint(ids):
                found[index] = self._plain(texts[index])
        return [np.array(ids, dtype=np.int64) for ids in found]

    def _plain(self, text: str) -> list[int]:
        """Ids of a text that spells control tokens, which some models (unigram) find among their pieces.

        A barrier is put into each such spelling, and its ids are taken out again. The id of what is unknown stays: it
        is the model's word for a character that it does not have.
        """
        guarded = text.replace(BARRIER, "")
        for content in self.control.values():
            if len(content) > 1:
                guarded = guarded.replace(content, content[0] + BARRIER + content[1:])
        kept = unbarred(self.tokenizer, guarded)
        if smuggled := [i for i, under in kept if self.control.get(i) == under.strip()]:
            raise DataError(
                f"the text {text[:SHOWN]!r} spells the control token {self.control[smuggled[0]]!r}, and this tokenizer "
                "has no other way to write it; change the text"
            )
        return [i for i, _ in kept]

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """(L,) ids -> text. Bytes that form no character (a cut-off one, say) come out as U+FFFD, as in `bytes.decode`.

        Raises DataError for an id outside the vocabulary: the tokenizer itself would leave it out without a word.
        """
        ids = [int(i) for i in ids]
        if strange := [i for i in ids if not 0 <= i < self.size]:
            raise DataError(f"id {strange[0]} is no text id; text ids are 0 to {self.size - 1}")
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def save(self, path: str | Path) -> None:
        """Write one `tokenizer.json`, readable by the `tokenizers` library and what builds on it."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(path))

    @classmethod
    def load(cls, path: str | Path) -> TextCodec:
        """Read what `save` wrote. Raises RunError for a missing or damaged file."""
        if not Path(path).is_file():
            raise RunError(f"{path}: there is no such file; a tokenizer.json written by a run was expected")
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises plain Exception
            raise RunError(
                f"{path}: not a readable tokenizer.json ({error}); train again or restore the file"
            ) from error


def suggest(texts: Iterable[str]) -> int:
    """A vocabulary size for this much text: about one merge per 200 bytes, 512 to 16,384, a multiple of 64.

    More would leave most merges with a handful of examples each; fewer makes the sequences longer.
    """
    amount = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    return min(max(512, BYTES + amount // 200 // 64 * 64), LARGEST)


def unbarred(tokenizer: Tokenizer, text: str) -> list[tuple[int, str]]:
    """(id, the text under it) for each token of a `text` with barriers in it, those of the barriers left out."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    kept, skip = [], 0
    for n, (i, (a, b)) in enumerate(zip(encoding.ids, encoding.offsets, strict=True)):
        if skip:
            skip -= 1
        elif BARRIER in text[a:b] and encoding.tokens[n : n + 3] == BARRIER_BYTES:
            skip = 2  # spelled in bytes, under one offset with what stands beside it
        elif text[a:b] != BARRIER:
            kept.append((i, text[a:b]))
    return kept


def _check(text: object, name: str) -> None:
    if not isinstance(text, str):
        raise DataError(f"{name} is {type(text).__name__} {str(text)[:SHOWN]!r}; text (str) was expected")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{name} holds half a surrogate pair at character {error.start} ({text[error.start]!a}): "
            "that is no Unicode character and cannot be stored; read the file with errors='replace', or remove it"
        ) from error
