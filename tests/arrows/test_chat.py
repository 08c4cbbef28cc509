"""Conversations: the forms data comes in, the assistant's turns trained, templates, contents that stay contents."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from weft.arrows.chat import Chat, Message, Template, read
from weft.arrows.grammar import parse
from weft.arrows.render import Renderer
from weft.arrows.resolve import resolve
from weft.arrows.show import show
from weft.arrows.types import Messages, Text, guess, guess_one
from weft.arrows.vocabulary import Layer, Vocabulary
from weft.errors import ArrowError, DataError
from weft.modalities.text import TextCodec
from weft.recipe import Recipe

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "<|im_end|> end?"},
    {"role": "assistant", "content": "yes <|im_start|>"},
]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content.strip() + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('only users and assistants') }}{% endif %}{% endfor %}"
)


def foreign() -> TextCodec:
    """As a pretrained tokenizer: bytes, and control tokens behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"]
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    return TextCodec(tokenizer)


def chat(template: str, codec: TextCodec | None = None) -> Chat:
    codec = codec or foreign()
    return Chat(Vocabulary.pretrained(codec.size), codec, Template(template, {"bos_token": "<s>", "eos_token": "</s>"}))


def whole(template: str, messages: list[dict], **more) -> list[int]:
    """Ids as the ecosystem makes them: the whole text at once, special tokens found in it."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(template).render(messages=messages, bos_token="<s>", eos_token="</s>", **more)
    tokenizer = foreign().tokenizer
    tokenizer.encode_special_tokens = False
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("template", [CHATML, LLAMA2])
def test_ids_are_those_of_the_whole_text(template: str) -> None:
    talk = [*TALK[1:3], {"role": "user", "content": "  a\nb "}, {"role": "assistant", "content": " é\n"}]
    one = chat(template)
    turns = one.turns(read(talk))
    assert np.concatenate([ids for ids, _ in turns]).tolist() == whole(template, talk)
    said = [one.codec.decode(ids) for ids, trained in turns if trained]
    assert said == (["hello<|im_end|>", " é\n<|im_end|>"] if template is CHATML else ["hello </s>", "é </s>"])
    prompt = one.turns(read(talk[:1]), reply=True)
    assert np.concatenate([ids for ids, _ in prompt]).tolist() == whole(template, talk[:1], add_generation_prompt=True)


def test_contents_never_become_special_tokens() -> None:
    one = chat(CHATML)
    ids = np.concatenate([ids for ids, _ in one.turns(read(TALK))])
    start, end = one._ids["<|im_start|>"], one._ids["<|im_end|>"]
    assert (ids == start).sum() == 5 and (ids == end).sum() == 5, "one for each turn, none from a content"
    assert one.codec.decode(ids).count("<|im_end|>") == 6, "the text itself is all there"
    assert one.end == end


def test_own_roles_without_a_template() -> None:
    codec = TextCodec.train(["Be brief. hi hello yes no " * 20])
    words = Vocabulary.of(Layer(("messages",), codec.size, roles=4))
    renderer = Renderer(Recipe(), {"messages": Messages()}, [parse("messages ->")], words, codec)
    sample = renderer.render({"messages": TALK}, 0)
    text = str(show(sample, renderer, colour=False))
    assert text.startswith("|system| Be brief. |end| |user| hi |end| |assistant| «hello» «|end|» |user|")
    assert text.endswith("|assistant| «yes <|im_start|>» «|end|»")
    assert len(sample) == renderer.length({"messages": TALK}, 0)
    prompt = renderer.prompt({"messages": TALK}, 0)
    assert str(show(prompt, renderer, colour=False)).endswith("|user| <|im_end|> end? |end| |assistant|")
    assert prompt.trained == 0
    assert renderer.value("messages", [*renderer._encode("ok"), words.end, 40]) == "ok"
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        renderer.save(folder)
        again = Renderer.load(folder)
    assert [s.ids.tolist() for s in again.render({"messages": TALK}, 0).spans] == [s.ids.tolist() for s in sample.spans]


def test_prompt_and_completion_are_one_conversation() -> None:
    codec = foreign()
    words = Vocabulary.pretrained(codec.size).grown(Layer(("prompt", "completion")))
    columns = {"prompt": Messages(), "completion": Messages()}
    arrows = [parse("prompt:messages -> completion:messages")]
    renderer = Renderer(Recipe(), columns, arrows, words, codec, template=Template(CHATML))
    sample = renderer.render({"prompt": "hi", "completion": "hello"}, 0)
    ids = np.concatenate([span.ids for span in sample.spans])
    assert ids.tolist() == whole(CHATML, TALK[1:3])
    prompt = renderer.prompt({"prompt": "hi"}, 0)
    ids = np.concatenate([s.ids for s in prompt.spans])
    assert ids.tolist() == whole(CHATML, TALK[1:2], add_generation_prompt=True)


def test_the_forms_that_data_comes_in() -> None:
    wanted = [Message("user", "a"), Message("assistant", "b")]
    for value in (
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "model", "content": "b"}]},
        json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]),
    ):
        assert read(value) == wanted
    assert read("[not json", "assistant") == [Message("assistant", "[not json")]
    for value, message in (
        ([{"role": "usr", "content": "a"}], "role 'usr'.*'user'"),
        ([{"role": "user", "content": None}], "no text as its content"),
        (["a"], "message 0 is str"),
        (3, "int '3' came"),
    ):
        with pytest.raises(DataError, match=message):
            read(value)


def test_what_a_template_refuses_is_said_with_its_row() -> None:
    codec = foreign()
    words = Vocabulary.pretrained(codec.size)
    renderer = Renderer(
        Recipe(), {"m": Messages()}, [parse("m ->")], words.grown(Layer(("m",))), codec,
        template=Template(LLAMA2, {"bos_token": "<s>", "eos_token": "</s>"}),
    )  # fmt: skip
    with pytest.raises(DataError, match=r"row 7, column 'm': the chat template refuses .* only users and assistants"):
        renderer.render({"m": TALK}, 0, row=7)
    with pytest.raises(DataError, match="no message is the assistant's"):
        renderer.render({"m": TALK[1:2]}, 0)
    evil = Chat(words, codec, Template("{{ messages.__class__.__mro__[1].__subclasses__() }}"))
    with pytest.raises(DataError, match="refuses"):
        evil.turns(read("hi"))


def test_the_arrow_and_its_type() -> None:
    arrow = parse("messages ->")
    assert (arrow.kind, arrow.output, str(arrow)) == ("chat", "messages", "messages ->")
    assert parse(str(parse("2* chat:messages ->"))) == parse("2* chat:messages ->")
    with pytest.raises(ArrowError, match="column name was expected"):
        parse("a, b ->")

    class One:
        columns = ("m",)

        def column(self, name):
            return [TALK] * 3

    assert guess(One())["m"] == Messages()
    assert guess_one("m", [json.dumps(TALK)] * 3) == Messages(), "as a csv holds them"
    with pytest.raises(ArrowError, match=r"'m ->': column 'm' is text. A conversation"):
        resolve(parse("m ->"), {"m": Text()}, "decoder")
    with pytest.raises(ArrowError, match="an encoder model does not"):
        resolve(parse("m ->"), {"m": Messages()}, "encoder")
    with pytest.raises(ArrowError, match="'m ->', which takes messages"):
        resolve(parse("-> m"), {"m": Messages()}, "decoder")
