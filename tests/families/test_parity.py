"""Families against transformers' own implementations, on random weights: the same numbers, to float32's last digits.

Weight names are matched here by hand, just enough for the comparison.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from weft import families
from weft.core.view import Tokens
from weft.model import Model, build

transformers = pytest.importorskip("transformers")
DIM, DEPTH, HEADS, VOCAB = 32, 2, 4, 60
State = dict[str, Tensor]


def ids(*shape: int) -> Tensor:
    return torch.randint(3, VOCAB, shape, generator=torch.Generator().manual_seed(0))


def loud(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def small(name: str, **more) -> Model:
    settings = {"vocab": VOCAB, "length": 16, "dim": DIM, "depth": DEPTH, "heads": HEADS, **more}
    return build(families.make(name, **settings))


def fill(model: Model, weights: State) -> Model:
    """Load; what is missing may only be a table that is shared."""
    missing, unexpected = model.load_state_dict(weights, strict=False)
    shared = {"body.decoder.input.table.weight", "heads.language.weight"}
    assert not unexpected and set(missing) <= shared, (missing, unexpected)
    return model.eval()


def cat(state: State, prefix: str, names: str, kind: str) -> Tensor:
    return torch.cat([state[f"{prefix}{name}.{kind}"] for name in names.split()])


def pieces(state: State, old: str, new: str, pairs: str, kinds: str = "weight bias") -> State:
    """`pairs` is "theirs>ours ..." below the prefixes; a+b are put one under the other."""
    out = {}
    for pair in pairs.split():
        theirs, ours = pair.split(">")
        for kind in kinds.split():
            out[f"{new}{ours}.{kind}"] = cat(state, old, theirs.replace("+", " "), kind)
    return out


# Their names > ours, inside a block; a+b: one under the other.
GPT = """
    ln_1>attn_norm attn.c_attn>attn.qkv attn.c_proj>attn.out ln_2>ffn_norm mlp.c_fc>ffn.up
    mlp.c_proj>ffn.down
"""
LLAMA = """
    input_layernorm>attn_norm self_attn.q_proj+self_attn.k_proj+self_attn.v_proj>attn.qkv
    self_attn.o_proj>attn.out post_attention_layernorm>ffn_norm mlp.gate_proj+mlp.up_proj>ffn.up
    mlp.down_proj>ffn.down
"""
BERT = """
    attention.self.query+attention.self.key+attention.self.value>attn.qkv
    attention.output.dense>attn.out attention.output.LayerNorm>attn_norm intermediate.dense>ffn.up
    output.dense>ffn.down output.LayerNorm>ffn_norm
"""
VIT = """
    layernorm_before>attn_norm attention.q_proj+attention.k_proj+attention.v_proj>attn.qkv
    attention.o_proj>attn.out layernorm_after>ffn_norm mlp.fc1>ffn.up mlp.fc2>ffn.down
"""
CLIP = """
    layer_norm1>attn_norm self_attn.q_proj+self_attn.k_proj+self_attn.v_proj>attn.qkv
    self_attn.out_proj>attn.out layer_norm2>ffn_norm mlp.fc1>ffn.up mlp.fc2>ffn.down
"""


def gpt() -> tuple[torch.nn.Module, Model]:
    config = transformers.GPT2Config(vocab_size=VOCAB, n_positions=16, n_embd=DIM, n_layer=DEPTH, n_head=HEADS)
    theirs = loud(transformers.GPT2LMHeadModel(config))
    turned = lambda name, t: t.T if t.dim() == 2 and ".c_" in name else t  # its matrices are stored the other way round
    s = {name: turned(name, t) for name, t in theirs.state_dict().items()}
    w = {
        "body.input.table.weight": s["transformer.wte.weight"],
        "body.input.places.weight": s["transformer.wpe.weight"],
    }
    for i in range(DEPTH):
        w |= pieces(s, f"transformer.h.{i}.", f"body.stack.blocks.{i}.", GPT)
    w |= pieces(s, "transformer.", "body.stack.", "ln_f>norm")
    return theirs, fill(small("gpt"), w)


def llama() -> tuple[torch.nn.Module, Model]:
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=DIM, intermediate_size=48, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
        num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    )  # fmt: skip
    theirs = loud(transformers.LlamaForCausalLM(config))
    s = theirs.state_dict()
    w = {"body.input.table.weight": s["model.embed_tokens.weight"], "heads.language.weight": s["lm_head.weight"]}
    for i in range(DEPTH):
        w |= pieces(s, f"model.layers.{i}.", f"body.stack.blocks.{i}.", LLAMA, "weight")
    w |= pieces(s, "model.", "body.stack.", "norm>norm", "weight")
    options = {"kv_heads": 2, "hidden": 48, "stretch": 8.0}
    return theirs, fill(small("llama", options=options), w)


def bert() -> tuple[torch.nn.Module, Model]:
    config = transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=DIM, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
        intermediate_size=4 * DIM, max_position_embeddings=16,
    )  # fmt: skip
    theirs = loud(transformers.BertForMaskedLM(config))
    s = theirs.state_dict()
    w = pieces(
        s,
        "bert.embeddings.",
        "body.input.",
        "word_embeddings>table position_embeddings>places token_type_embeddings>segments",
        "weight",
    )
    w |= pieces(s, "bert.embeddings.", "body.input.", "LayerNorm>norm")
    for i in range(DEPTH):
        w |= pieces(s, f"bert.encoder.layer.{i}.", f"body.stack.blocks.{i}.", BERT)
    w |= pieces(s, "cls.predictions.transform.", "heads.language.", "dense>dense LayerNorm>norm")
    w["heads.language.bias"] = s["cls.predictions.bias"]
    return theirs, fill(small("bert"), w)


def t5(gated: bool = False) -> tuple[torch.nn.Module, Model]:
    config = transformers.T5Config(
        vocab_size=VOCAB, d_model=DIM, d_kv=12, d_ff=48, num_layers=DEPTH, num_heads=HEADS,
        tie_word_embeddings=not gated, feed_forward_proj="gated-gelu" if gated else "relu",
    )  # fmt: skip
    theirs = loud(transformers.T5ForConditionalGeneration(config))
    s = theirs.state_dict()
    w = {"body.encoder.input.table.weight": s["shared.weight"]}
    up = "DenseReluDense.wi_0+{0}DenseReluDense.wi_1" if gated else "DenseReluDense.wi"
    if gated:
        w["heads.language.weight"] = s["lm_head.weight"]
    for side in ("encoder", "decoder"):
        w[f"body.{side}.stack.bias.weight"] = s[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        w[f"body.{side}.stack.norm.weight"] = s[f"{side}.final_layer_norm.weight"]
        last = 2 if side == "decoder" else 1
        for i in range(DEPTH):
            old, new, ff = f"{side}.block.{i}.", f"body.{side}.stack.blocks.{i}.", f"layer.{last}."
            a, x = "layer.0.SelfAttention.", "layer.1.EncDecAttention."
            pairs = f"{a}q+{a}k+{a}v>attn.qkv {a}o>attn.out layer.0.layer_norm>attn_norm {ff}layer_norm>ffn_norm "
            pairs += f"{ff}{up.format(ff)}>ffn.up {ff}DenseReluDense.wo>ffn.down "
            if side == "decoder":
                pairs += f"{x}q>cross.q {x}k+{x}v>cross.kv {x}o>cross.out layer.1.layer_norm>cross_norm"
            w |= pieces(s, old, new, pairs, "weight")
    options = {"head_dim": 12, "hidden": 48} | (
        {"activation": "gelu_tanh", "gated": True, "tied": False} if gated else {}
    )
    return theirs, fill(small("t5", options=options), w)


def vit() -> tuple[torch.nn.Module, Model]:
    config = transformers.ViTConfig(
        hidden_size=DIM, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=4 * DIM, image_size=8,
        patch_size=2, layer_norm_eps=1e-6, num_labels=5,
    )  # fmt: skip
    theirs = loud(transformers.ViTForImageClassification(config))
    s = theirs.state_dict()
    patch = "vit.embeddings.patch_embeddings.projection."
    w = {
        "body.input.table.weight": s["vit.embeddings.cls_token"][0],
        "body.input.places.weight": s["vit.embeddings.position_embeddings"][0],
        "body.input.stems.image.weight": s[patch + "weight"].flatten(1),
        "body.input.stems.image.bias": s[patch + "bias"],
    }
    for i in range(DEPTH):
        w |= pieces(s, f"vit.layers.{i}.", f"body.stack.blocks.{i}.", VIT)
    w |= pieces(s, "", "", "vit.layernorm>body.stack.norm classifier>heads.label.out")
    return theirs, fill(small("vit", vocab=1, length=17, stems={"image": 12}, labels={"label": 5}), w)


def clip() -> tuple[torch.nn.Module, Model]:
    side = {"hidden_size": DIM, "intermediate_size": 4 * DIM, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
    config = transformers.CLIPConfig(
        text_config=side
        | {"vocab_size": VOCAB, "max_position_embeddings": 16, "projection_dim": 24, "eos_token_id": 2},
        vision_config=side | {"image_size": 8, "patch_size": 2, "projection_dim": 24}, projection_dim=24,
    )  # fmt: skip
    theirs = loud(transformers.CLIPModel(config))
    s = theirs.state_dict()
    w = {
        "body.sharpness": s["logit_scale"],
        "body.left.input.table.weight": s["vision_model.embeddings.class_embedding"][None],
    }
    w["body.left.input.stems.image.weight"] = s["vision_model.embeddings.patch_embedding.weight"].flatten(1)
    w["body.left.input.places.weight"] = s["vision_model.embeddings.position_embedding.weight"]
    w |= pieces(
        s, "text_model.embeddings.", "body.right.input.", "token_embedding>table position_embedding>places", "weight"
    )
    w |= pieces(s, "", "", "visual_projection>body.left_project text_projection>body.right_project", "weight")
    w |= pieces(s, "", "", "vision_model.pre_layrnorm>body.left.input.norm "
        "vision_model.post_layernorm>body.left.stack.norm "
        "text_model.final_layer_norm>body.right.stack.norm")  # fmt: skip
    for old, new in (("vision_model", "left"), ("text_model", "right")):
        for i in range(DEPTH):
            w |= pieces(s, f"{old}.encoder.layers.{i}.", f"body.{new}.stack.blocks.{i}.", CLIP)
    options = {"width": 24, "media_vocab": 1, "media_length": 17, "activation": "gelu_quick"}
    return theirs, fill(small("clip", stems={"image": 12}, options=options), w)


MASK = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1] * 7])


def same(ours: Tensor, theirs: Tensor, where: Tensor | None = None) -> None:
    if where is not None:
        ours, theirs = ours[where > 0], theirs[where > 0]
    assert (ours - theirs).abs().max() < 2e-5 * max(1.0, float(theirs.abs().max())), (ours - theirs).abs().max()


@torch.no_grad()
@pytest.mark.parametrize("maker", [gpt, llama, bert])
def test_one_stream(maker: Callable) -> None:
    theirs, ours = maker()
    row = ids(2, 7)
    wanted = theirs(input_ids=row, attention_mask=MASK).logits
    same(ours(row, MASK).logits, wanted, MASK)
    off = (ours(row).logits - wanted)[0, :5].abs().max()
    if maker is bert:
        assert off > 1e-3, "the control: without the mask, padding is seen"


@torch.no_grad()
@pytest.mark.parametrize("gated", [False, True])
def test_encoder_decoder(gated: bool) -> None:
    theirs, ours = t5(gated)
    row, target = ids(2, 7), ids(2, 5)
    wanted = theirs(input_ids=row, attention_mask=MASK, decoder_input_ids=target).logits
    same(ours(row, MASK, decoder_input_ids=target).logits, wanted)


@torch.no_grad()
def test_images() -> None:
    theirs, ours = vit()
    pixels = torch.randn(2, 3, 8, 8)
    same(ours(pixel_values=pixels).logits, theirs(pixel_values=pixels).logits)


@torch.no_grad()
def test_two_towers() -> None:
    theirs, ours = clip()
    pixels, row = torch.randn(2, 3, 8, 8), ids(2, 7)
    row[:, -1] = VOCAB - 1  # theirs reads the text at the largest id, ours at the last token
    row[:, :-1].clamp_(max=VOCAB - 2)
    out = theirs(input_ids=row, pixel_values=pixels)
    same(ours.embed(Tokens(row), "right"), out.text_embeds)
    same(ours(row, pixel_values=pixels).logits, out.logits_per_image)
