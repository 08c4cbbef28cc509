"""An arrow and a kind of model -> exactly one objective, one head, one decoder, one metric.

kind of model     -> text, a -> b          ~text            a -> b:label      a <-> b
decoder           next                     –                next              –
encoder           –                        masked           classify          –
encoder-decoder   seq2seq (with inputs)    seq2seq (spans)  seq2seq           –
dual              –                        –                –                 contrastive
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from weft.arrows.grammar import Arrow
from weft.arrows.types import ColumnType, Label
from weft.errors import ArrowError, nearest

KINDS = {  # kind of model -> families of it, for messages
    "decoder": "weft, gpt, llama, llava, smolvlm, dalle, rnn, ngram, hmm",
    "encoder": "bert, vit, longformer, cnn, birnn",
    "encoder-decoder": "t5, whisper",
    "dual": "clip, siglip",
}


@dataclass(frozen=True)
class Resolution:
    """What an arrow turns into.

    objective  "next", "masked", "seq2seq", "classify" or "contrastive"
    head       "language", "label:<column>" (a classification head) or "" (none)
    decoder    how its output is produced, in words
    metric     what it is measured by unless told otherwise
    """

    objective: str
    head: str
    decoder: str
    metric: str
    arrow: str = ""


def resolve(arrow: Arrow, types: Mapping[str, ColumnType], kind: str) -> Resolution:
    """The one meaning of `arrow` for a model of this kind (`Family.kind`).

    Raises ArrowError if there is none: why not, and which families would do.
    """
    if kind not in KINDS:
        raise ArrowError(f"{kind!r} is no kind of model.{nearest(kind, KINDS)}")
    output = types[arrow.output]
    if arrow.kind == "fill" and output.name != "text":
        raise ArrowError(f"'{arrow}': only text can be filled in, and column {arrow.output!r} is {output.name}")
    if arrow.kind == "prefer" and {types[c.name].name for c in arrow.outputs} not in ({"text"}, {"messages"}):
        raise ArrowError(f"'{arrow}': what is chosen and what is rejected are both text, or both messages")
    if (output.name == "messages") != (arrow.kind == "chat") and arrow.kind not in ("produce", "prefer"):
        raise ArrowError(
            f"'{arrow}': column {arrow.output!r} is {output.name}. A conversation is learned by '{arrow.output} ->', "
            "which takes messages."
        )
    objective = _objective(arrow, output, kind)
    if output.name == "messages" and kind != "decoder":
        raise ArrowError(f"'{arrow}' {_why(arrow, output, kind)}")
    head = {"classify": f"label:{arrow.output}", "contrastive": ""}.get(objective, "language")
    return Resolution(objective, head, _decoder(arrow, output, objective), _metric(arrow, types), str(arrow))


def _objective(arrow: Arrow, output: ColumnType, kind: str) -> str:
    label = isinstance(output, Label) and arrow.kind == "produce"
    found = {
        ("decoder", "produce"): "next",
        ("decoder", "model"): "next",
        ("decoder", "chat"): "next",
        ("decoder", "prefer"): "prefer",
        ("encoder", "fill"): "masked",
        ("encoder-decoder", "produce"): "seq2seq",
        ("encoder-decoder", "fill"): "seq2seq",
        ("dual", "align"): "contrastive",
    }.get((kind, arrow.kind), "classify" if kind == "encoder" and label else "")
    if not found:
        raise ArrowError(f"'{arrow}' {_why(arrow, output, kind)}")
    return found


def _why(arrow: Arrow, output: ColumnType, kind: str) -> str:
    """Why a kind of model cannot, and what could."""
    one = lambda name: f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    take = lambda *kinds: "Take " + " or ".join(f"{one(name)} model ({KINDS[name]})" for name in kinds)
    model = one(kind) + " model"
    if arrow.kind == "align":
        return f"brings two sides close, and {model} has one side. {take('dual')}"
    if arrow.kind == "fill":
        return f"fills in hidden tokens, and {model} is not made for that. {take('encoder', 'encoder-decoder')}"
    if arrow.kind == "prefer":
        return f"prefers one answer over another, and {model} does not. {take('decoder')}"
    if arrow.kind == "chat" or output.name == "messages":
        return f"answers in a conversation, and {model} does not. {take('decoder')}"
    if arrow.kind == "model":
        return f"writes a column from nothing, and {model} cannot. {take('decoder')}"
    if kind == "encoder":
        say = f", or say '{arrow.output}:label' if it has few values" if output.name == "text" else ""
        return f"writes {output.name}, and {model} writes labels only. {take('decoder', 'encoder-decoder')}{say}"
    return f"writes a column, and {model} writes none. {take('decoder', 'encoder-decoder')}"


def _decoder(arrow: Arrow, output: ColumnType, objective: str) -> str:
    if objective == "contrastive":
        return "nearest"
    if objective == "masked":
        return "likeliest token at each hidden place"
    if arrow.kind == "fill":
        return "hidden spans, until end"
    if output.name == "messages":
        return "a reply, until its end"
    if isinstance(output, Label):
        return f"one of {len(output.values)} labels"
    return {"text": "text, until end", "image": "image codes", "audio": "audio codes, until end"}[output.name]


def _metric(arrow: Arrow, types: Mapping[str, ColumnType]) -> str:
    if arrow.kind == "align":
        return "recall@1"
    if arrow.kind == "fill":
        return "accuracy"  # of the hidden tokens
    output = types[arrow.output].name
    if arrow.kind == "prefer":
        return "accuracy"  # how often the chosen one is the likelier
    if output == "messages":
        return "bits per token"  # of the replies
    if arrow.kind == "model":
        return "bits per byte" if output == "text" else "bits per token"
    heard = all(types[column.name].name == "audio" for column in arrow.inputs)
    return {"label": "accuracy", "text": "word error" if heard else "exact match", "image": "judge", "audio": "judge"}[
        output
    ]


def describe(resolutions: Sequence[Resolution]) -> list[dict[str, str]]:
    """Rows of the table that `weft plan` prints: arrow, objective, head, decoder, metric; "–" where there is none."""
    order = ("arrow", "objective", "head", "decoder", "metric")
    return [{name: asdict(resolution)[name] or "–" for name in order} for resolution in resolutions]
