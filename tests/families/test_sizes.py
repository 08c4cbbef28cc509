"""Parameter counts against the papers, on the meta device; resolved configs against text files.

A changed default shows in the diff of tests/families/golden. To write them anew: WEFT_GOLDEN=1 pytest tests/families
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from weft import families
from weft.core import config as c
from weft.core.summary import summary
from weft.errors import RecipeError
from weft.model import build

PUBLISHED = {model: entry for family in families.FAMILIES.values() for model, entry in family.published.items()}
GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_the_papers_number_of_parameters(name: str) -> None:
    entry = PUBLISHED[name]
    model = build(families.published(name), device="meta")
    count = sum(p.numel() for p in model.parameters())
    assert abs(count - entry.parameters) <= entry.share * entry.parameters, f"{count:,} against {entry.parameters:,}"
    assert entry.share <= 0.02


def test_enough_models_are_held_to_the_last_parameter() -> None:
    assert sum(entry.share == 0 for entry in PUBLISHED.values()) >= 24
    with pytest.raises(RecipeError, match="Did you mean 'gpt2-xl'"):
        families.published("gpt2xl")


@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_family_says_what_it_is(name: str) -> None:
    family = families.FAMILIES[name]
    assert family.paper and family.difference and family.kind in ("decoder", "encoder", "encoder-decoder", "dual")
    assert name == "gpt" or "Against GPT-2" in family.difference
    assert {"small", "base", "large"} <= set(family.sizes)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_the_resolved_config_is_the_golden_one(name: str) -> None:
    stems = {"image": 192, "audio": 640} if families.FAMILIES[name].media else {}
    config = families.make(name, vocab=1000, length=256, stems=stems)
    text = json.dumps(c.to_tree(config), indent=1) + "\n"
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("WEFT_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("family", "option", "value", "said"),
    [
        ("weft", "dropout", ".5", "option dropout of the family weft is '.5' (str); expected a number"),
        ("weft", "per_modality", 1, "is 1 (int); expected true or false"),
        ("llama", "kv_heads", 2.0, "is 2.0 (float); expected a whole number"),
        ("llama", "window", True, "is True (bool); expected a whole number"),
        ("gpt", "stem", 3, "is 3 (int); expected a text"),
        ("clip", "media_size", [8, 1], "expected a list of 3: a whole number, a whole number, a whole number"),
        ("cnn", "windows", [3, "4"], "expected a list, each a whole number"),
        ("gpt", "drop", 0.1, "has no option 'drop'. Did you mean 'dropout'"),
    ],
)
def test_an_option_of_another_type_is_named(family: str, option: str, value: object, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        families.make(family, vocab=9, length=8, options={option: value})
    assert said in str(caught.value)


def test_options_as_toml_gives_them_are_taken() -> None:
    make = lambda name, **options: families.make(name, vocab=9, length=8, options=options)
    assert make("weft", theta=500) == make("weft", theta=500.0)
    assert make("cnn", windows=[2, 3]) == make("cnn", windows=(2, 3))
    assert make("clip", media_size=[32, 1, 2]) == make("clip", media_size=(32, 1, 2))
    for family in families.FAMILIES.values():
        assert family.typed({}) == {}


def test_cost_of_a_token() -> None:
    model = build(families.published("gpt2"), device="meta")
    found = summary(model, 1024)
    per_layer = 12 * 768**2
    assert found.parameters == 124_439_808
    assert found.matrices == 12 * per_layer + 768 * 50257, "tables are looked up, but a tied head multiplies"
    assert found.forward == 2 * found.matrices + 12 * 4 * 1024 * 768
    assert found.training == 3 * found.forward


def test_cost_counts_one_part_for_each_token() -> None:
    make = lambda own: families.make("weft", vocab=9, length=8, stems={"image": 12}, options={"per_modality": own})
    shared, own = (summary(build(make(own), device="meta"), 8) for own in (False, True))
    assert own.parameters > shared.parameters and own.matrices == shared.matrices
