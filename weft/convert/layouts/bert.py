"""The config.json of BERT, RoBERTa, DistilBERT and ELECTRA, with each of their heads.

...Model                        {"pooler"} where the architecture has one
...ForMaskedLM                  {"language"}
...ForPreTraining               {"language", "order"} (BERT: next sentence), {"replaced"} (ELECTRA)
...ForSequenceClassification    {"label"}    ...ForTokenClassification  {"tag"}    ...ForQuestionAnswering  {"span"}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from weft.convert.layout import (
    Layout,
    Raw,
    activation,
    activation_name,
    natural,
    number,
    only,
    plain,
    shared,
    short,
    whole,
)
from weft.core import config as c
from weft.errors import ConvertError
from weft.families.bert import NAMES
from weft.families.names import Rule
from weft.model import key


@dataclass(frozen=True)
class Dialect:
    """What one of them says by its name.

    name, title   model_type, and how its architectures begin
    names         which table of names, and the prefix of its body
    keys          our words for sizes -> theirs
    vocab, eps    defaults of the config; DistilBERT's has no eps to say
    pooler        whether the bare model has one
    label         activation of the layer before a label
    offset        whether positions begin behind the padding's id
    """

    name: str
    title: str
    names: str
    keys: Mapping[str, str]
    vocab: int = 30522
    eps: float = 1e-12
    segments: int = 2
    pooler: bool = True
    label: str = "tanh"
    offset: bool = False


KEYS = {
    "dim": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads", "hidden": "intermediate_size",
    "activation": "hidden_act",
}  # fmt: skip
SHORT = {"dim": "dim", "depth": "n_layers", "heads": "n_heads", "hidden": "hidden_dim", "activation": "activation"}
BERT = Dialect("bert", "Bert", "bert", KEYS)
ROBERTA = Dialect("roberta", "Roberta", "roberta", KEYS, 50265, offset=True)
XLM = Dialect("xlm-roberta", "XLMRoberta", "roberta", KEYS, 30522, offset=True)
DISTIL = Dialect("distilbert", "DistilBert", "distilbert", SHORT, segments=0, pooler=False, label="relu")
ELECTRA = Dialect("electra", "Electra", "electra", KEYS, pooler=False, label="gelu")
DIALECTS = (BERT, ROBERTA, XLM, DISTIL, ELECTRA)
SIZES = {"dim": 768, "depth": 12, "heads": 12, "hidden": 3072}


def read(dialect: Dialect, raw: Raw) -> c.ModelConfig:
    """config.json -> our tree."""
    only(raw, "is_decoder", False)
    only(raw, "add_cross_attention", False)
    only(raw, "position_embedding_type", "absolute", None)
    only(raw, "sinusoidal_pos_embds", False)
    size = {name: whole(raw, dialect.keys[name], default=value) for name, value in SIZES.items()}
    vocab, length = whole(raw, "vocab_size", default=dialect.vocab), whole(raw, "max_position_embeddings", default=512)
    norm = c.LayerNorm(dialect.eps if dialect is DISTIL else number(raw, "layer_norm_eps", default=dialect.eps))
    offset = natural(raw, "pad_token_id", default=1) + 1 if dialect.offset else 0
    shared(size["dim"], size["heads"], "heads")
    if offset >= length:
        raise ConvertError(f"max_position_embeddings of the config.json is {length}; {offset} rows are for padding.")
    width = whole(raw, "embedding_size", default=128) if dialect is ELECTRA else 0
    segments = whole(raw, "type_vocab_size", default=dialect.segments) if dialect.segments else 0
    act = activation(raw, dialect.keys["activation"], default="gelu")
    return c.ModelConfig(
        c.TowerConfig(
            c.TextInput(
                vocab, c.Learned(length - offset, offset), segments, norm, width=0 if width == size["dim"] else width
            ),
            c.StackConfig(
                size["dim"],
                size["depth"],
                c.Attention(size["heads"], bias=True, pattern=c.Full()),
                c.FeedForward(size["hidden"], act, bias=True),
                norm,
                order="post",
            ),
        ),
        tops(dialect, raw, act, norm, size["dim"]),
        family="bert",
    )


def tops(dialect: Dialect, raw: Raw, act: str, norm: c.LayerNorm, dim: int) -> dict[str, c.Head]:
    """The heads of an architecture."""
    kind, classes = raw["architectures"][0].removeprefix(dialect.title), labels(raw)
    before = act if dialect in (BERT, DISTIL) else "gelu"  # the others' word head always has GELU
    words = c.Language(
        whole(raw, "vocab_size", default=dialect.vocab),
        tied=bool(raw.get("tie_word_embeddings", True)),
        bias=True,
        transform=norm,
        activation=before,
    )
    if dialect is ELECTRA and not words.tied and kind == "ForMaskedLM":
        raise ConvertError("ELECTRA's head over words is tied to its table; this config says that it is not.")
    if kind == "ForPreTraining":
        if dialect is ELECTRA:
            return {"replaced": c.Tag(1, hidden=dim, activation=act)}
        return {"language": words, "order": c.Classify(2, hidden=dim)}
    return {
        "Model": {"pooler": c.Pooler(dim)} if dialect.pooler else {},
        "ForMaskedLM": {"language": words},
        "ForSequenceClassification": {"label": c.Classify(classes, hidden=dim, activation=dialect.label)},
        "ForTokenClassification": {"tag": c.Tag(classes)},
        "ForQuestionAnswering": {"span": c.Span()},
    }[kind]


def labels(raw: Raw) -> int:
    """How many classes a config.json names; two unless it says so."""
    names = raw.get("id2label")
    if names and not isinstance(names, Mapping):
        raise ConvertError(f"id2label of the config.json is {short(names)}; a table was expected.")
    return len(names) if names else whole(raw, "num_labels", default=2)


def write(dialect: Dialect, config: c.ModelConfig, raw: Raw) -> dict[str, Any]:
    """Our tree -> config.json."""
    tower = config.topology
    if not isinstance(tower, c.TowerConfig) or not isinstance(tower.input.positions, c.Learned):
        raise ConvertError(f"{dialect.title}'s layout is that of one tower with learned positions.")
    source, positions = tower.input, tower.input.positions
    stack, feedforward, norm = plain(tower.stack, dialect.title, c.LayerNorm)
    size = {"dim": stack.dim, "depth": stack.depth, "heads": stack.attention.heads, "hidden": feedforward.hidden}
    act = dialect.keys["activation"]
    words = config.heads.get("language")
    tree = {
        **({"pad_token_id": positions.offset - 1} if dialect.offset else {}),
        **raw,
        "architectures": [dialect.title + architecture(config)],
        "model_type": dialect.name,
        "vocab_size": source.vocab,
        "max_position_embeddings": positions.length + positions.offset,
        **{dialect.keys[name]: value for name, value in size.items()},
        act: activation_name(feedforward.activation, raw.get(act)),
        "tie_word_embeddings": not isinstance(words, c.Language) or words.tied,
    }
    if dialect is not DISTIL:
        tree |= {"layer_norm_eps": norm.eps, "type_vocab_size": source.segments}
    if dialect is ELECTRA:
        tree["embedding_size"] = source.width or stack.dim
    classes = [head.classes for head in config.heads.values() if isinstance(head, c.Classify | c.Tag)]
    if classes and labels(tree) != classes[0] and "order" not in config.heads and "replaced" not in config.heads:
        tree["id2label"] = {str(i): f"LABEL_{i}" for i in range(classes[0])}
        tree["label2id"] = {f"LABEL_{i}": i for i in range(classes[0])}
    return tree


def architecture(config: c.ModelConfig) -> str:
    """What an architecture with these heads is called behind its title. Raises ConvertError if there is none."""
    kinds = sorted(type(head).__name__ for head in config.heads.values())
    if kinds == ["Classify", "Language"] or "replaced" in config.heads:
        return "ForPreTraining"
    known = {
        "": "Model", "Pooler": "Model", "Language": "ForMaskedLM", "Classify": "ForSequenceClassification",
        "Tag": "ForTokenClassification", "Span": "ForQuestionAnswering",
    }  # fmt: skip
    if "+".join(kinds) not in known:
        raise ConvertError(f"No architecture has these heads together: {', '.join(config.heads)}.")
    return known["+".join(kinds)]


def rules(dialect: Dialect, config: c.ModelConfig) -> tuple[Rule, ...]:
    """The table of names, with the config's own name for a classification head."""
    table = NAMES[dialect.names]
    words = config.heads.get("language")
    if isinstance(words, c.Language) and not words.tied:  # an untied head has a bias of its own beside the one unused
        table = tuple(replace(r, optional=False) for r in table if r.ours != "heads.language.bias" or r.optional)
    own = {"label": c.Classify, "tag": c.Tag, "span": c.Span}
    for ours, kind in own.items():
        named = [
            name for name, head in config.heads.items() if type(head) is kind and name not in ("order", "replaced")
        ]
        if named:
            old, new = f"heads.{ours}.", f"heads.{key(named[0])}."
            table = tuple(
                replace(r, ours=new + r.ours.removeprefix(old)) if r.ours.startswith(old) else r for r in table
            )
    return table


def layout(dialect: Dialect) -> Layout:
    """The layout of a dialect."""
    kinds = ("ForMaskedLM", "Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
    kinds += ("ForPreTraining",) if dialect in (BERT, ELECTRA) else ()
    prefix = dialect.names + "."
    return Layout(
        tuple(dialect.title + kind for kind in kinds),
        partial(read, dialect),
        partial(write, dialect),
        partial(rules, dialect),
        # Counted, not learned; heads of the pretraining that a published body still carries; the bias that an untied
        # head does not use.
        ignore=(
            prefix + "embeddings.position_ids",
            prefix + "embeddings.token_type_ids",
            "bert.pooler.*",
            "roberta.pooler.*",
            "cls.seq_relationship.*",
            "cls.predictions.bias",
            "lm_head.bias",
        ),
        family="bert",
        prefix=prefix,
        bare=(dialect.title + "Model",),
        older={".gamma": ".weight", ".beta": ".bias"},
    )


LAYOUTS = tuple(map(layout, DIALECTS))
