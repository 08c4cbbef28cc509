"""BERT, RoBERTa, DistilBERT, ELECTRA, and MiniLM's sentence encoders.

ids ── table ─(+)─ positions ─(+)─ segments ── norm ── [ norm(x + attention(x)) ; norm(x + ffn(x)) ] x depth
          hidden places ── dense, GELU, norm ── table^T        first token ── dense, tanh ── label
          each token ── tag                                    each token ── first, last (span)

    RoBERTa      positions from row 2 of their table; a dense layer of its own before a label
    DistilBERT   half the layers, no segments
    ELECTRA      a narrow table and a matrix to the stack's width; each token: was it replaced?
"""

from __future__ import annotations

from weft.core import config as c
from weft.errors import RecipeError, nearest
from weft.families.family import SIZES, Family, Wanted, published
from weft.families.names import Rule

PRETRAINING = ("words", "replaced", "pooler")


def bert(
    want: Wanted,
    *,
    segments: int = 2,
    offset: int = 0,
    width: int = 0,
    hidden: int = 0,
    activation: str = "gelu",
    pretraining: str = "words",
    stem: str = "linear",
    dropout: float = 0.0,
) -> c.ModelConfig:
    """Devlin et al. 2018. Against GPT-2: sees both ways, norm after the residual, segment table, a dense layer before
    the table's product, and a tanh layer before each label.

    offset: rows of the position table before the first place (RoBERTa: 2); width: of the table (ELECTRA); pretraining:
    words (hidden ones are told), replaced (ELECTRA's discriminator) or pooler (a vector for the row).
    """
    if pretraining not in PRETRAINING:
        raise RecipeError(f"pretraining is {pretraining!r}.{nearest(pretraining, PRETRAINING)}")
    norm = c.LayerNorm(1e-12)
    heads = want.tops(c.Language(want.vocab, bias=True, transform=norm), hidden=want.dim)
    if want.language and pretraining != "words":
        del heads["language"]
        replaced = c.Tag(1, hidden=want.dim, activation="gelu")
        heads |= {"replaced": replaced} if pretraining == "replaced" else {"pooler": c.Pooler(want.dim)}
    positions = c.Learned(want.length, offset)
    return c.ModelConfig(
        c.TowerConfig(
            c.TextInput(want.vocab, positions, segments, norm, stems=want.stem(stem, width), width=width),
            c.StackConfig(
                want.dim,
                want.depth,
                c.Attention(want.heads, bias=True, pattern=c.Full()),
                c.FeedForward(hidden or 4 * want.dim, activation, bias=True),
                norm,
                order="post",
                dropout=dropout,
            ),
        ),
        heads,
        family="bert",
    )


def body(prefix: str) -> tuple[Rule, ...]:
    """Names of the body, which BERT, RoBERTa and ELECTRA share below a prefix."""
    layer, ours = prefix + "encoder.layer.{i}.", "body.stack.blocks.{i}."
    own = layer + "attention.self."
    return (
        Rule("body.input.table.weight", prefix + "embeddings.word_embeddings.weight"),
        Rule("body.input.places.weight", prefix + "embeddings.position_embeddings.weight"),
        Rule("body.input.segments.weight", prefix + "embeddings.token_type_embeddings.weight"),
        Rule("body.input.norm.{p}", prefix + "embeddings.LayerNorm.{p}"),
        Rule("body.input.widen.{p}", prefix + "embeddings_project.{p}"),
        Rule(ours + "attn.qkv.{p}", (own + "query.{p}", own + "key.{p}", own + "value.{p}")),
        Rule(ours + "attn.out.{p}", layer + "attention.output.dense.{p}"),
        Rule(ours + "attn_norm.{p}", layer + "attention.output.LayerNorm.{p}"),
        Rule(ours + "ffn.up.{p}", layer + "intermediate.dense.{p}"),
        Rule(ours + "ffn.down.{p}", layer + "output.dense.{p}"),
        Rule(ours + "ffn_norm.{p}", layer + "output.LayerNorm.{p}"),
    )


def top(**heads: str) -> tuple[Rule, ...]:
    """Names of heads: ours, with _ for the dot before the part, and theirs."""
    return tuple(Rule(f"heads.{ours.replace('_', '.')}.{{p}}", theirs + ".{p}") for ours, theirs in heads.items())


DISTIL = "distilbert.transformer.layer.{i}."
NAMES: dict[str, tuple[Rule, ...]] = {
    "bert": (
        *body("bert."),
        *top(language_dense="cls.predictions.transform.dense", language_norm="cls.predictions.transform.LayerNorm"),
        Rule("heads.language.bias", "cls.predictions.bias"),
        Rule("heads.language.bias", "cls.predictions.decoder.bias", optional=True),
        Rule("heads.language.weight", "cls.predictions.decoder.weight"),
        *top(pooler_dense="bert.pooler.dense", order_dense="bert.pooler.dense", order_out="cls.seq_relationship"),
        *top(label_dense="bert.pooler.dense", label_out="classifier", tag_out="classifier", span_out="qa_outputs"),
    ),
    "roberta": (
        *body("roberta."),
        *top(language_dense="lm_head.dense", language_norm="lm_head.layer_norm"),
        Rule("heads.language.bias", "lm_head.bias"),
        Rule("heads.language.bias", "lm_head.decoder.bias", optional=True),
        Rule("heads.language.weight", "lm_head.decoder.weight"),
        *top(pooler_dense="roberta.pooler.dense", label_dense="classifier.dense", label_out="classifier.out_proj"),
        *top(tag_out="classifier", span_out="qa_outputs"),
    ),
    "distilbert": (
        Rule("body.input.table.weight", "distilbert.embeddings.word_embeddings.weight"),
        Rule("body.input.places.weight", "distilbert.embeddings.position_embeddings.weight"),
        Rule("body.input.norm.{p}", "distilbert.embeddings.LayerNorm.{p}"),
        Rule(
            "body.stack.blocks.{i}.attn.qkv.{p}",
            tuple(DISTIL + f"attention.{part}_lin.{{p}}" for part in ("q", "k", "v")),
        ),
        Rule("body.stack.blocks.{i}.attn.out.{p}", DISTIL + "attention.out_lin.{p}"),
        Rule("body.stack.blocks.{i}.attn_norm.{p}", DISTIL + "sa_layer_norm.{p}"),
        Rule("body.stack.blocks.{i}.ffn.up.{p}", DISTIL + "ffn.lin1.{p}"),
        Rule("body.stack.blocks.{i}.ffn.down.{p}", DISTIL + "ffn.lin2.{p}"),
        Rule("body.stack.blocks.{i}.ffn_norm.{p}", DISTIL + "output_layer_norm.{p}"),
        *top(language_dense="vocab_transform", language_norm="vocab_layer_norm", language="vocab_projector"),
        *top(label_dense="pre_classifier", label_out="classifier", tag_out="classifier", span_out="qa_outputs"),
    ),
    "electra": (
        *body("electra."),
        *top(language_dense="generator_predictions.dense", language_norm="generator_predictions.LayerNorm"),
        *top(language="generator_lm_head", label_dense="classifier.dense", label_out="classifier.out_proj"),
        *top(tag_out="classifier", span_out="qa_outputs", replaced_dense="discriminator_predictions.dense"),
        *top(replaced_out="discriminator_predictions.dense_prediction"),
    ),
}

row = published(512, vocab=30522)
roberta = published(512, vocab=50265, options={"offset": 2, "segments": 1})
distil = published(512, vocab=30522, options={"segments": 0})
sentence = published(512, vocab=30522, options={"pretraining": "pooler"})
electra = published(512, vocab=30522, options={"pretraining": "replaced"})
FAMILY = Family(
    "bert", bert, "encoder",
    "Devlin et al. 2018, BERT: Pre-training of Deep Bidirectional Transformers (counted with the head over words); Turc"
    " et al. 2019, Well-Read Students Learn Better (smaller ones); Liu et al. 2019, RoBERTa; Sanh et al. 2019, "
    "DistilBERT; Wang et al. 2020, MiniLM (with the pooler); Clark et al. 2020, ELECTRA (the discriminator)",
    sizes=SIZES,
    published={
        "bert-tiny": row(128, 2, 2, 4_416_698),
        "bert-mini": row(256, 4, 4, 11_201_594),
        "bert-small": row(512, 4, 8, 28_795_194),
        "bert-medium": row(512, 8, 8, 41_404_730),
        "bert-base": row(768, 12, 12, 109_514_298),
        "bert-large": row(1024, 24, 16, 335_174_458),
        "roberta-base": roberta(768, 12, 12, 124_697_433),
        "roberta-large": roberta(1024, 24, 16, 355_412_057),
        "distilbert-base": distil(768, 6, 12, 66_985_530),
        "minilm-l6": sentence(384, 6, 12, 22_713_216),
        "minilm-l12": sentence(384, 12, 12, 33_360_000),
        "electra-small": electra(256, 12, 4, 13_549_057, width=128),
        "electra-base": electra(768, 12, 12, 109_483_009),
        "electra-large": electra(1024, 24, 16, 335_142_913),
    },
)  # fmt: skip
