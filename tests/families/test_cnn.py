"""Convolutions over packed texts and patches, against plain torch modules on each text and picture by itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weft import families
from weft.core import config as c
from weft.core.convolve import Picture, Residual, together
from weft.core.view import Media, Tokens
from weft.errors import RecipeError, WeftError
from weft.modalities.image import patches
from weft.model import Model, build

VOCAB = 30


def ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def loud(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def small(**more) -> Model:
    return loud(build(families.make("cnn", vocab=VOCAB, length=32, dim=20, **more), seed=0))


def kim(model: Model, text: Tensor) -> Tensor:
    """(L,) -> (D,) by torch's own convolutions."""
    x = model.body.input.table(text).T[None]  # (1,D,L)
    found = []
    for window, part in zip(model.body.stack.config.windows, model.body.stack.convolutions, strict=True):
        width = model.body.stack.config.dim
        kernel = part.weight.unflatten(1, (window, width)).transpose(1, 2)  # (size,k*D) -> (size,D,k)
        padded = F.pad(x, ((window - 1) // 2, window // 2))
        found.append(F.relu(F.conv1d(padded, kernel, part.bias)).amax(-1)[0])
    return torch.cat(found)


@torch.no_grad()
@pytest.mark.parametrize("windows", [(3, 4, 5), (2,), (1, 7)])
def test_a_packed_text_is_read_as_torch_reads_it_alone(windows: tuple[int, ...]) -> None:
    model = small(options={"windows": windows})
    texts = [ids(n, seed=n) for n in (5, 1, 9, 3)]
    row = torch.cat((*texts, ids(2, seed=7)))[None]
    document = torch.tensor([[1] * 5 + [2] + [3] * 9 + [4] * 3 + [0] * 2])
    hidden = model.hidden(Tokens(row, document=document))
    for at, text in zip((0, 5, 6, 15), texts, strict=True):
        assert torch.allclose(hidden[0, at], kim(model, text), atol=1e-5)
    other = model.hidden(Tokens(row))
    assert not torch.allclose(other[0, 0], kim(model, texts[0]), atol=1e-3), "the control: one text instead of four"


def test_gradients_reach_what_was_largest() -> None:
    model = small(labels={"label:mood": 3})
    tokens = Tokens(ids(2, 6), document=torch.tensor([[1, 1, 1, 2, 2, 2], [1] * 6]))
    model.logits(model.hidden(tokens)[:, 0], "label:mood").square().sum().backward()
    assert all(part.weight.grad.any() for part in model.body.stack.convolutions)


# ---------------------------------------------------------------------------------------------------- pictures


class Plain(nn.Module):
    """He et al. 2016, figure 2, with the shortcut of option A, written out."""

    def __init__(self, block: Residual) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        b = self.block
        y = F.conv2d(x, b.first.weight, stride=b.stride, padding=1)
        y = F.relu(F.group_norm(y, b.first_norm.num_groups, b.first_norm.weight, b.first_norm.bias))
        y = F.conv2d(y, b.second.weight, padding=1)
        y = F.group_norm(y, b.second_norm.num_groups, b.second_norm.weight, b.second_norm.bias)
        short = x[:, :, :: b.stride, :: b.stride]
        extra = y.shape[1] - x.shape[1]
        zeros = (
            short.new_zeros(len(x), extra // 2, *short.shape[2:]),
            short.new_zeros(len(x), extra - extra // 2, *short.shape[2:]),
        )
        return F.relu(y + torch.cat((zeros[0], short, zeros[1]), 1))


@torch.no_grad()
def test_pictures_of_several_sizes_are_put_together_from_their_patches() -> None:
    net = loud(Picture(c.PictureConfig(3 * 16, widths=(8, 16), blocks=2), 20))
    pictures = [torch.randint(0, 256, size, dtype=torch.uint8).numpy() for size in ((8, 12, 3), (12, 8, 3), (8, 12, 3))]
    parts = [patches(picture, 4) for picture in pictures]
    tokens = Tokens(torch.zeros(2, 14, dtype=torch.long), span=torch.zeros(2, 14, dtype=torch.int32),
                    positions=torch.zeros(2, 14, 3))  # fmt: skip
    at = []
    for number, (row, start, part) in enumerate(((0, 1, parts[0]), (0, 7, parts[1]), (1, 3, parts[2])), 1):
        here = slice(start, start + len(part.values))
        tokens.span[row, here] = number
        tokens.positions[row, here] = torch.from_numpy(part.positions) + start
        at.append(torch.arange(here.start, here.stop) + row * 14)
    values = torch.cat([torch.from_numpy(part.values).float() for part in parts])
    found = net(Media("image", values, torch.cat(at)), tokens)
    assert found.shape == (18, 20)
    for number, picture in enumerate(pictures):
        x = torch.from_numpy(picture).float().permute(2, 0, 1)[None] / 127.5 - 1
        x = F.relu(
            F.group_norm(F.conv2d(x, net.stem.weight, padding=1), net.norm.num_groups, net.norm.weight, net.norm.bias)
        )
        for block in net.blocks:
            x = Plain(block)(x)
        wanted = F.linear(x.mean((2, 3)), net.project.weight, net.project.bias)
        assert torch.allclose(found[6 * number : 6 * number + 6], wanted.expand(6, -1), atol=2e-3), (
            "patches are float16"
        )


@torch.no_grad()
def test_patches_become_the_picture() -> None:
    picture = torch.randint(0, 256, (8, 12, 3), dtype=torch.uint8)
    values = torch.from_numpy(patches(picture.numpy(), 4).values).float().unflatten(0, (1, 2, 3))
    again = ((together(values, 4) + 1) * 127.5).round()[0].permute(1, 2, 0)
    assert (again - picture.float()).abs().max() <= 1


@torch.no_grad()
def test_text_and_picture_are_read_together() -> None:
    model = small(stems={"image": 12}, labels={"label": 2}, options={"widths": (4, 8), "blocks": 1})
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    row = ids(2, 4)
    assert model(pixel_values=pixels).logits.shape == (2, 2)
    assert not torch.allclose(model(pixel_values=pixels).logits, model(pixel_values=pixels.flip(0)).logits)
    assert model(row).logits.shape == (2, 2)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(RecipeError, match="cannot share a width of 2"):
        build(families.make("cnn", vocab=9, length=8, dim=2))
    with pytest.raises(RecipeError, match="grow from stage to stage"):
        build(families.make("cnn", vocab=9, length=8, dim=20, stems={"image": 12}, options={"widths": (8, 4)}))
    with pytest.raises(RecipeError, match="no square patch"):
        build(families.make("cnn", vocab=9, length=8, dim=20, stems={"image": 10}))
    with pytest.raises(WeftError, match="looks ahead"):
        small().cache()
