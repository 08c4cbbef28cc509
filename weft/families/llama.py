"""Llama 1 to 3, Mistral, Qwen2 and Qwen3, SmolLM2.

ids ── table ── [ x + attention(n), q and k turned ; x + down(silu(gate(n)) * up(n)) ] x depth ── norm ── head
                       n = rms(x)

    Llama       k and v for groups of queries from 2-70B on; long waves stretched from 3.1 on
    Mistral     a window: each token sees so many back
    Qwen2       biases of q, k and v                    Qwen3   q and k normed, heads wider than dim / heads
    SmolLM2     Llama, small, one table for both ends
"""

from __future__ import annotations

from weft.core import config as c
from weft.errors import RecipeError, nearest
from weft.families.family import SIZES, Family, Wanted, published
from weft.families.names import Rule

# Which of the four matrices of an attention have a bias: (q, k and v; out).
BIASES = {"none": (False, None), "qkv": (True, False), "all": (True, None)}


def llama(
    want: Wanted,
    *,
    kv_heads: int = 0,
    head_dim: int = 0,
    hidden: int = 0,
    tied: bool = False,
    theta: float = 10_000.0,
    stretch: float = 0.0,
    window: int = 0,
    biases: str = "none",
    qk_norm: bool = False,
    stem: str = "linear",
    dropout: float = 0.0,
) -> c.ModelConfig:
    """Touvron et al. 2023. Against GPT-2: rotary positions, RMS norm, gated SiLU, no biases, fewer key and value heads
    than queries (from 2 on), a head of its own.

    stretch: factor on the long waves (3.1 and 3.2); window: how many tokens each sees, itself included (Mistral);
    biases: none, qkv (Qwen2) or all; qk_norm: of each head's features (Qwen3).
    """
    if biases not in BIASES:
        raise RecipeError(f"Biases of llama are none, qkv or all, not {biases!r}.{nearest(biases, BIASES)}")
    norm, (bias, out_bias) = c.RMSNorm(1e-5), BIASES[biases]
    attention = c.Attention(
        want.heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        bias=bias,
        out_bias=out_bias,
        qk_norm=norm if qk_norm else None,
        position=c.Rope(theta, scaling=c.Stretch(stretch) if stretch else None),
        pattern=c.Window(window - 1) if window else c.Causal(),
    )
    feedforward = c.FeedForward(hidden or -(-want.dim * 8 // 3 // 64) * 64, "silu", gated=True)
    return c.ModelConfig(
        c.TowerConfig(
            c.TextInput(want.vocab, stems=want.stem(stem)),
            c.StackConfig(want.dim, want.depth, attention, feedforward, norm, dropout=dropout),
        ),
        want.tops(c.Language(want.vocab, tied=tied)),
        family="llama",
    )


ATTENTION, MLP = "model.layers.{i}.self_attn.", "model.layers.{i}.mlp."
NAMES = (
    Rule("body.input.table.weight", "model.embed_tokens.weight"),
    Rule("body.stack.blocks.{i}.attn_norm.{p}", "model.layers.{i}.input_layernorm.{p}"),
    Rule(
        "body.stack.blocks.{i}.attn.qkv.{p}",
        (ATTENTION + "q_proj.{p}", ATTENTION + "k_proj.{p}", ATTENTION + "v_proj.{p}"),
    ),
    Rule("body.stack.blocks.{i}.attn.out.{p}", ATTENTION + "o_proj.{p}"),
    Rule("body.stack.blocks.{i}.attn.q_norm.{p}", ATTENTION + "q_norm.{p}"),
    Rule("body.stack.blocks.{i}.attn.k_norm.{p}", ATTENTION + "k_norm.{p}"),
    Rule("body.stack.blocks.{i}.ffn_norm.{p}", "model.layers.{i}.post_attention_layernorm.{p}"),
    Rule("body.stack.blocks.{i}.ffn.up.{p}", (MLP + "gate_proj.{p}", MLP + "up_proj.{p}")),
    Rule("body.stack.blocks.{i}.ffn.down.{p}", MLP + "down_proj.{p}"),
    Rule("body.stack.norm.{p}", "model.norm.{p}"),
    Rule("heads.language.weight", "lm_head.weight"),
)

one, two, three = (
    published(2048, vocab=32000),
    published(4096, vocab=32000),
    published(8192, vocab=128256, options={"theta": 500_000.0, "kv_heads": 8}),
)
mistral = published(8192, vocab=32000, options={"kv_heads": 8, "window": 4096})
qwen2 = published(32768, vocab=151936, options={"theta": 1e6, "biases": "qkv"})
larger = published(32768, vocab=152064, options={"theta": 1e6, "biases": "qkv"})
qwen3 = published(32768, vocab=151936, options={"theta": 1e6, "qk_norm": True, "kv_heads": 8, "head_dim": 128})
smol = published(8192, vocab=49152, options={"theta": 1e5, "tied": True})
FAMILY = Family(
    "llama", llama, "decoder",
    "Touvron et al. 2023, LLaMA: Open and Efficient Foundation Language Models (table 2); Touvron et al. 2023, Llama 2:"
    " Open Foundation and Fine-Tuned Chat Models; Grattafiori et al. 2024, The Llama 3 Herd of Models (table 3); Jiang "
    "et al. 2023, Mistral 7B; Yang et al. 2024, Qwen2 Technical Report (table 1); Yang et al. 2025, Qwen3 Technical "
    "Report (table 1); Allal et al. 2025, SmolLM2",
    sizes=SIZES,
    published={
        "llama-7b": one(4096, 32, 32, 6_738_415_616, hidden=11008),
        "llama-13b": one(5120, 40, 40, 13_015_864_320, hidden=13824),
        "llama-33b": one(6656, 60, 52, 32_528_943_616, hidden=17920),
        "llama-65b": one(8192, 80, 64, 65_285_660_672, hidden=22016),
        "llama2-7b": two(4096, 32, 32, 6_738_415_616, hidden=11008),
        "llama2-13b": two(5120, 40, 40, 13_015_864_320, hidden=13824),
        "llama2-70b": two(8192, 80, 64, 68_976_648_192, hidden=28672, kv_heads=8),
        "llama3-8b": three(4096, 32, 32, 8_030_261_248, hidden=14336),
        "llama3-70b": three(8192, 80, 64, 70_553_706_496, hidden=28672),
        "llama3.1-405b": three(16384, 126, 128, 405_853_388_800, hidden=53248, stretch=8.0),
        "llama3.2-1b": three(2048, 16, 32, 1_235_814_400, hidden=8192, tied=True, stretch=32.0),
        "llama3.2-3b": three(3072, 28, 24, 3_212_749_824, hidden=8192, tied=True, stretch=32.0),
        "mistral-7b": mistral(4096, 32, 32, 7_241_732_096, hidden=14336),
        "qwen2-0.5b": qwen2(896, 24, 14, 494_032_768, hidden=4864, kv_heads=2, tied=True),
        "qwen2-1.5b": qwen2(1536, 28, 12, 1_543_714_304, hidden=8960, kv_heads=2, tied=True),
        "qwen2-7b": larger(3584, 28, 28, 7_615_616_512, hidden=18944, kv_heads=4),
        "qwen2-72b": larger(8192, 80, 64, 72_706_203_648, hidden=29568, kv_heads=8),
        "qwen3-0.6b": qwen3(1024, 28, 16, 596_049_920, hidden=3072, tied=True),
        "qwen3-1.7b": qwen3(2048, 28, 16, 1_720_574_976, hidden=6144, tied=True),
        "qwen3-4b": qwen3(2560, 36, 32, 4_022_468_096, hidden=9728, tied=True),
        "qwen3-8b": qwen3(4096, 36, 32, 8_190_735_360, hidden=12288),
        "qwen3-14b": qwen3(5120, 40, 40, 14_768_307_200, hidden=17408),
        "qwen3-32b": qwen3(5120, 64, 64, 32_762_123_264, hidden=25600),
        "smollm2-135m": smol(576, 30, 9, 134_515_008, hidden=1536, kv_heads=3),
        "smollm2-360m": smol(960, 32, 15, 361_821_120, hidden=2560, kv_heads=5),
        "smollm2-1.7b": smol(2048, 24, 32, 1_711_376_384, hidden=8192),
    },
)  # fmt: skip
