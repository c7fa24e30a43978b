"""Chat templates: what they render, what of it the model writes, what they refuse."""

import json

import pytest

from sparse_jax.data import train_bpe
from sparse_jax.data.chat import (
    LLAMA2,
    PLAIN,
    ChatTemplate,
    TemplateError,
    chat_template,
)
from sparse_jax.data.tokenizer import load_tokenizer
from sparse_jax.types import InputError

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "And 2 + 2?"},
    {"role": "assistant", "content": "4"},
]
CHATML = """\
{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def written(template, turns):
    text, spans = template.with_responses(turns)
    return [text[begin:end] for begin, end in spans]


def test_llama2_with_a_system_message_and_two_turns():
    template = ChatTemplate(LLAMA2, bos="<s>", eos="</s>")
    assert template.render(TURNS) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n1 + 1? [/INST] 2 </s>"
        "<s>[INST] And 2 + 2? [/INST] 4 </s>"
    )
    assert written(template, TURNS) == [" 2 </s>", " 4 </s>"]


def test_the_generation_prompt_is_no_response():
    template = ChatTemplate(CHATML)
    assert written(template, TURNS) == ["2<|im_end|>\n", "4<|im_end|>\n"]


def test_marks_of_a_template_say_what_is_written():
    marked = CHATML.replace(
        "{{ m.content }}<|im_end|>",
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>"
        "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n",
    )
    template = ChatTemplate(marked)
    assert template.render(TURNS) == ChatTemplate(CHATML).render(TURNS)
    assert written(template, TURNS) == ["2<|im_end|>", "4<|im_end|>"]


def test_plain_adds_nothing_but_the_ends():
    template = ChatTemplate(PLAIN, bos="<s>", eos="</s>")
    turns = [{"role": "user", "content": "Q: 1\nA:"}, TURNS[2]]
    assert template.render(turns) == "<s>Q: 1\nA:2</s>"
    assert written(template, turns) == ["2</s>"]


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        (TURNS[2:], "must take turns"),
        ([{"role": "user", "content": None}], "None"),
    ],
)
def test_a_conversation_that_does_not_render(turns, said):
    with pytest.raises(TemplateError, match=said):
        ChatTemplate(LLAMA2).with_responses(turns)


def test_a_template_that_rewrites_earlier_turns_is_refused():
    counts = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(TemplateError, match="changes the text"):
        ChatTemplate(counts).with_responses(TURNS)


def test_the_sandbox_keeps_templates_from_python():
    evil = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(TemplateError, match="unsafe"):
        ChatTemplate(evil).render(TURNS)


def test_broken_syntax_is_one_sentence():
    with pytest.raises(InputError, match=r"is not a Jinja template .*unknown tag"):
        ChatTemplate("{% nonsense %}")


@pytest.fixture
def directory(tmp_path):
    """A tokenizer's directory; what is written there is its template."""
    for name, content in train_bpe(["some text " * 40], vocab_size=280).files.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_whose_template_is_used(directory):
    assert chat_template(load_tokenizer(directory)).source == LLAMA2
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    named = [
        {"name": "tools", "template": "no"},
        {"name": "default", "template": "yes"},
    ]
    for value, expected in (("mine", "mine"), (named, "yes")):
        path.write_text(json.dumps(config | {"chat_template": value}))
        assert chat_template(load_tokenizer(directory)).source == expected
    (directory / "chat_template.jinja").write_text("of the file")
    tokenizer = load_tokenizer(directory)
    assert chat_template(tokenizer).source == "of the file"
    assert chat_template(tokenizer, "plain").source == PLAIN
    assert chat_template(tokenizer).eos == "<|endoftext|>"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chat_template.jinja", b"\xff\xfe"),
        ("tokenizer_config.json", b'{"chat_template": 5}'),
        ("tokenizer_config.json", b'{"chat_template": ["x"]}'),
        (
            "tokenizer_config.json",
            b'{"chat_template": [{"name": "tools", "template": "x"}]}',
        ),
    ],
)
def test_a_tokenizer_without_a_usable_template(directory, file, content):
    (directory / file).write_bytes(content)
    with pytest.raises(InputError, match=f"{file} beside the tokenizer gives no def"):
        chat_template(load_tokenizer(directory))


def test_a_template_that_is_nowhere(directory):
    with pytest.raises(InputError, match="neither 'chat', 'llama2', 'plain' nor"):
        chat_template(load_tokenizer(directory), "lama2")
