"""LLaVA 1.5, SmolVLM and Idefics3 against transformers: tiny random models, read from directories that it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from weft.convert.hf import Imported, load_hf, save_hf
from weft.core import config as c
from weft.core.stream import stream
from weft.core.view import Tokens
from weft.errors import ConvertError, WeftError
from weft.model import Model

transformers = pytest.importorskip("transformers")
VOCAB, IMAGE, SIDE = 60, 59, 8
CASES = ("llava", "llava-odd", "smolvlm", "idefics3")


class Pair(NamedTuple):
    """Their model, ours from the directory that theirs was saved to, and how many places a picture takes."""

    theirs: torch.nn.Module
    ours: Model
    imported: Imported
    folder: Path
    places: int


def text(**more) -> transformers.PretrainedConfig:
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, **more)


def make(case: str) -> torch.nn.Module:
    eyes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4}
    eyes |= {"image_size": SIDE, "patch_size": 2}
    if case == "llava":
        config = transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**eyes), text_config=text(), image_token_index=IMAGE
        )
        return transformers.LlavaForConditionalGeneration(config)
    if case == "llava-odd":
        sizes = {"hidden_size": 36, "num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 20}
        words = transformers.Qwen2Config(vocab_size=VOCAB, num_hidden_layers=1, tie_word_embeddings=True, **sizes)
        config = transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**eyes, hidden_act="gelu"), text_config=words,
            image_token_index=IMAGE, vision_feature_layer=-3, projector_hidden_act="relu",
            multimodal_projector_bias=False, tie_word_embeddings=True,
        )  # fmt: skip
        return transformers.LlavaForConditionalGeneration(config)
    title = {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}[case]
    maker = getattr(transformers, title + "Config")
    config = maker(vision_config=eyes, text_config=text(pad_token_id=0), image_token_id=IMAGE, scale_factor=2)
    return getattr(transformers, title + "ForConditionalGeneration")(config)


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch.manual_seed(0)
    theirs = make(request.param).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    folder = tmp_path_factory.mktemp("joined") / request.param
    theirs.save_pretrained(folder)
    imported = load_hf(folder)
    return Pair(theirs, imported.model(), imported, folder, 4 if request.param in ("smolvlm", "idefics3") else 16)


def inputs(pair: Pair, left: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """ids (2,T) with a picture in each row at another place, mask with padding, pixels as their model takes them."""
    generator = torch.Generator().manual_seed(1)
    length = pair.places + 8
    row = torch.randint(3, IMAGE, (2, length), generator=generator)
    row[0, 2 : 2 + pair.places] = IMAGE
    row[1, 4 : 4 + pair.places] = IMAGE
    mask = torch.ones_like(row)
    mask[0, :left] = 0
    if not left:
        mask[0, -3:] = 0
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=generator)
    return row, mask, pixels if pair.places == 16 else pixels[:, None]


@torch.no_grad()
@pytest.mark.parametrize("left", [0, 2])
def test_logits_with_pictures_text_and_padding(pair: Pair, left: int) -> None:
    row, mask, pixels = inputs(pair, left)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    wanted = pair.theirs(input_ids=row, attention_mask=mask, pixel_values=pixels, position_ids=places).logits
    found = pair.ours(row, mask, pixel_values=pixels).logits
    real = mask > 0
    assert (found - wanted)[real].abs().max() < 1e-4
    assert (pair.ours(row, mask, pixel_values=pixels.flip(0)).logits - wanted)[real].abs().max() > 1e-2, (
        "the control: the other row's picture is another picture"
    )


@torch.no_grad()
def test_two_pictures_in_a_row_and_none_in_the_other(pair: Pair) -> None:
    places = pair.places
    row = torch.randint(3, IMAGE, (2, 2 * places + 5), generator=torch.Generator().manual_seed(2))
    row[0, 1 : 1 + places] = IMAGE
    row[0, 3 + places : 3 + 2 * places] = IMAGE
    pixels = torch.randn(2, 3, SIDE, SIDE)
    stacked = pixels if places == 16 else torch.stack((pixels, torch.zeros_like(pixels)))
    wanted = pair.theirs(input_ids=row, pixel_values=stacked).logits
    assert (pair.ours(row, pixel_values=stacked).logits - wanted).abs().max() < 1e-4


@torch.no_grad()
def test_greedy_text_is_the_same_with_and_without_a_cache(pair: Pair) -> None:
    row, _, pixels = inputs(pair)
    wanted = pair.theirs.generate(
        input_ids=row, attention_mask=torch.ones_like(row), pixel_values=pixels, max_new_tokens=8, do_sample=False,
        eos_token_id=None, pad_token_id=0, suppress_tokens=[IMAGE],
    )[:, row.shape[1] :]  # fmt: skip
    prompt = stream(pair.ours.body, row, pixels=pixels)[0]
    for cached in (True, False):
        cache = pair.ours.cache() if cached else None
        hidden, ids, whole = pair.ours.hidden(prompt, cache=cache), [], row
        for _ in range(8):
            logits = pair.ours.logits(hidden[:, -1])
            logits[:, IMAGE] = -torch.inf
            ids.append(logits.argmax(-1, keepdim=True))
            whole = torch.cat((whole, ids[-1]), 1)
            if cache is not None:
                hidden = pair.ours.hidden(Tokens(ids[-1]), cache=cache)
            else:
                hidden = pair.ours.hidden(stream(pair.ours.body, whole, pixels=pixels)[0])
        assert torch.equal(torch.cat(ids, 1), wanted), f"cached: {cached}"


def test_gradients_are_the_same(pair: Pair) -> None:
    row, mask, pixels = inputs(pair)
    labels = row.masked_fill((mask == 0) | (row == IMAGE), -100)
    pair.theirs.zero_grad()
    theirs = pair.theirs(input_ids=row, attention_mask=mask, pixel_values=pixels, labels=labels).loss
    theirs.backward()
    ours = pair.imported.model()
    loss = ours(row, mask, pixel_values=pixels, labels=labels).loss
    loss.backward()
    assert abs(loss.item() - theirs.item()) < 1e-5
    state = {n: p.grad for n, p in pair.theirs.named_parameters()}
    for name, mine in (("patch_embedding.weight", "body.encoders.image.tower.input.stems.image.weight"),
                       ("layers.0.mlp.down_proj.weight", "body.tower.stack.blocks.0.ffn.down.weight")):  # fmt: skip
        wanted = next(g for n, g in state.items() if n.endswith(name))
        found = dict(ours.named_parameters())[mine].grad
        assert (found - wanted.reshape(found.shape)).abs().max() < 1e-4 * max(1.0, float(wanted.abs().max()))


@torch.no_grad()
def test_written_it_is_read_by_transformers(pair: Pair, tmp_path: Path) -> None:
    save_hf(pair.ours, tmp_path / "out", pair.imported.raw, shard_bytes=20_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    again, told = type(pair.theirs).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    row, mask, pixels = inputs(pair)
    wanted = pair.theirs(input_ids=row, attention_mask=mask, pixel_values=pixels).logits
    assert torch.equal(again.eval()(input_ids=row, attention_mask=mask, pixel_values=pixels).logits, wanted)


@pytest.mark.parametrize("pair", ["llava", "llava-odd"], indirect=True)  # the others' have not changed
def test_names_of_other_versions_are_read(pair: Pair, tmp_path: Path) -> None:
    tensors = load_file(pair.folder / "model.safetensors")
    for old, new in (("vision_tower.", "vision_tower.vision_model."), ("vision_tower.", "model.vision_tower.")):
        folder = tmp_path / new
        folder.mkdir()
        (folder / "config.json").write_text((pair.folder / "config.json").read_text())
        named = {new + n.removeprefix(old) if n.startswith(old) else n: t for n, t in tensors.items()}
        save_file(named, folder / "model.safetensors")
        assert torch.equal(
            load_hf(folder).state["body.tower.input.table.weight"], pair.imported.state["body.tower.input.table.weight"]
        )


def test_what_does_not_fit_is_named(pair: Pair, tmp_path: Path) -> None:
    row, _, pixels = inputs(pair)
    with pytest.raises(WeftError, match=rf"keep {2 * pair.places - 1} places"):
        pair.ours(row.clone().index_fill_(1, torch.tensor([2]), 3), pixel_values=pixels)
    tensors = load_file(pair.folder / "model.safetensors")
    gone = next(name for name in tensors if "patch_embedding.weight" in name)
    save_file({n: t for n, t in tensors.items() if n != gone}, tmp_path / "model.safetensors")
    raw = json.loads((pair.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ConvertError, match=r"missing: .*patch_embedding.weight"):
        load_hf(tmp_path)
    for change, said in (
        ({"vision_config": {**raw["vision_config"], "model_type": "pixtral"}}, "pixtral"),
        ({"text_config": {**raw["text_config"], "model_type": "mamba"}}, "mamba"),
        ({"vision_config": None}, "vision_config"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**raw, **change}))
        with pytest.raises(ConvertError, match=said):
            load_hf(tmp_path)


def test_another_kind_of_model_cannot_be_written_like_this(pair: Pair, tmp_path: Path) -> None:
    plain = Model(
        c.ModelConfig(pair.ours.config.topology.tower, pair.ours.config.heads, family=pair.ours.config.family)
    )
    with pytest.raises(ConvertError, match="with one encoder, of pictures"):
        save_hf(plain, tmp_path / "out", pair.imported.raw)
