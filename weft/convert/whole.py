"""The vocabulary of a run that was trained from nothing, as one tokenizer that other programs read.

    ids     0      1      2       3 ...          35 ...     40 ...       331 ...
    tokens  <|pad|> <|end|> <|mask|> <|hidden_0|>  <|text|>   byte pairs   <|answer=yes|>   <|codes_image_0|>

The run's own tokenizer.json knows its texts alone, from id 0 on; the model's ids begin with weft's own. What is no text
is a control token here. A run of one arrow `-> text` begins each text with its marker, as it was trained, and one of
`~text` ends it as well; for others what stands before an answer is the arrow's own: column by column its marker and its
value.

Within weft a text that spells a control token stays a text. Other programs read the token, as they do with any model,
unless they are told not to: `split_special_tokens=True` in transformers, `parse_special=false` in llama.cpp.
"""

from __future__ import annotations

import json
import re

from tokenizers import AddedToken, Tokenizer, processors

from weft.convert.tokenizer import SavedTokenizer
from weft.modalities.text import TextCodec
from weft.run import Run

ODD = re.compile(r"[^\w=-]+")  # where tokenizers' templates part


def from_nothing(run: Run) -> bool:
    """Whether weft's own ids stand before those of the text."""
    if not (run.path / "renderer.json").is_file() or run.renderer.text is None:
        return False
    return run.renderer.vocabulary.block("text").start > 0


def whole(run: Run) -> SavedTokenizer:
    """The tokenizer of all ids of a run that was trained from nothing."""
    renderer = run.renderer
    vocabulary, start = renderer.vocabulary, renderer.vocabulary.block("text").start
    tree = json.loads(renderer.text.tokenizer.to_str())  # type: ignore[union-attr]
    pieces = {piece: number + start for piece, number in tree["model"]["vocab"].items()}
    control: dict[str, int] = {}
    for number, name in renderer.named():
        token = f"<|{ODD.sub('_', name)}|>"
        while token in pieces or token in control:  # as a merge of the user's texts, or of another column
            token = f"{token[:-2]}'|>"
        control[token] = number
    tree["model"]["vocab"] = pieces | control
    tokenizer = Tokenizer.from_str(json.dumps(tree))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    texts = {number: token for token, number in control.items()}
    roles = {"eos": vocabulary.end, "pad": vocabulary.pad, "mask": vocabulary.mask}
    kind = renderer.arrows[0].kind if len(renderer.arrows) == 1 else ""
    begins = kind in ("model", "fill") and renderer.columns[renderer.arrows[0].output].name == "text"
    if begins:
        roles["bos"] = vocabulary.marker(renderer.arrows[0].output)
        first, last = texts[roles["bos"]], texts[vocabulary.end]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}" if kind == "fill" else f"{first} $A",
            special_tokens=[(first, roles["bos"]), (last, vocabulary.end)],
        )
    return SavedTokenizer(TextCodec(tokenizer), roles, (vocabulary.end,), begins=begins)
