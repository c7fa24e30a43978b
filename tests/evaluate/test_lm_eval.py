"""The adapter by itself: lm-eval need not be installed."""

import argparse
import dataclasses
import importlib.metadata

import jax
import pytest

from sparse_jax import data, io, models
from sparse_jax.data import chat
from sparse_jax.evaluate.generation import GenerateConfig
from sparse_jax.evaluate.language_model import LanguageModel
from sparse_jax.evaluate.lm_eval import Adapter, register
from sparse_jax.evaluate.lm_eval.__main__ import own_tasks, unknown_task
from sparse_jax.evaluate.lm_eval.model import generate_config
from sparse_jax.models import LlamaConfig
from sparse_jax.types import InputError

TEXT = "The quick brown fox jumps over the lazy dog. " * 20


@dataclasses.dataclass
class Request:
    """What the adapter reads of lm-eval's requests."""

    args: tuple


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    directory = tmp_path_factory.mktemp("lm_eval") / "model"
    tokenizer = data.train_bpe([TEXT], vocab_size=300)
    config = LlamaConfig(
        vocab_size=300, d_model=16, d_ff=24, n_layers=1, n_heads=2, max_seq_len=24
    )
    params = models.init(jax.random.key(0), config)
    io.save(directory, params, config, tokenizer_files=tokenizer.files)
    return directory


@pytest.fixture(scope="module")
def adapter(path):
    return Adapter(path=str(path), batch_size=4)


@pytest.fixture(scope="module")
def model(path):
    return LanguageModel(path, batch_size=4)


def test_scores_are_those_of_the_harness(adapter, model):
    pairs = [("The quick", " brown fox"), ("", "lazy dog"), (TEXT, "quick")]
    before = adapter.get_model_info()
    found = adapter.loglikelihood([Request(pair) for pair in pairs])
    expected = model.loglikelihood(pairs)
    assert found == [(score.logprob, score.is_greedy) for score in expected]
    after = adapter.get_model_info()
    assert after["requests"] - before["requests"] == 3
    assert after["truncated_requests"] - before["truncated_requests"] == 1


def test_whole_texts(adapter, model):
    found = adapter.loglikelihood_rolling([Request((TEXT,)), Request(("fox",))])
    assert found == [score.logprob for score in model.rolling([TEXT, "fox"])]


def test_texts_come_back_in_order_whatever_their_options(adapter, model):
    short, long = {"max_gen_toks": 2}, {"max_gen_toks": 6, "until": ["\n"]}
    asked = [("The", short), ("quick", long), ("fox", short), ("dog", long)]
    found = adapter.generate_until([Request(pair) for pair in asked])
    for options, numbers in ((short, (0, 2)), (long, (1, 3))):
        results = model.generate(
            [asked[n][0] for n in numbers], generate_config(options)
        )
        assert [found[n] for n in numbers] == [result.text for result in results]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"until": "\n"}, {"stop": ("\n",)}),
        ({"until": ["a", "b"], "max_tokens": 7}, {"stop": ("a", "b"), "max_tokens": 7}),
        ({"max_tokens": 7, "max_gen_toks": 9}, {"max_tokens": 9}),
        ({"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.7, "top_p": 0.9}),
        ({"do_sample": False, "temperature": 0.7}, {}),
        (
            {"do_sample": True, "temperature": 0.7, "top_k": 5},
            {"temperature": 0.7, "top_k": 5},
        ),
    ],
)
def test_options_of_generation(options, expected):
    assert generate_config(options) == GenerateConfig(**expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1.0}, "did you mean gen_kwargs.temperature"),
        ({"num_beams": 4}, "gen_kwargs.num_beams is not a field"),
        ({"do_sample": True}, "gen_kwargs.do_sample is true at temperature 0"),
        ({"temperature": "hot"}, "gen_kwargs.temperature must be float, got 'hot'"),
        ({"until": 3}, "gen_kwargs.stop must be a tuple, got 3"),
        ({"max_gen_toks": "many"}, "gen_kwargs.max_tokens must be int, got 'many'"),
    ],
)
def test_options_that_are_not_known(options, message):
    with pytest.raises(InputError, match=message):
        generate_config(options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "model_args.path is missing"),
        ({"path": "MODEL", "add_bos_token": "yes"}, "add_bos_token must be bool"),
        ({"pretrained": "x"}, "model_args.pretrained is not a field"),
        ({"path": "no_such_model"}, "no_such_model"),
        ({"path": "MODEL", "batch_size": "many"}, "found many"),
        ({"path": "MODEL", "batch_size": 0}, "batch_size must be a number >= 1"),
        ({"path": "MODEL", "max_length": 0}, "max_length must be >= 1"),
        ({"path": "MODEL", "template": "no_such_file"}, "no_such_file"),
    ],
)
def test_arguments_that_are_refused(path, arguments, message):
    if arguments.get("path") == "MODEL":
        arguments = arguments | {"path": str(path)}
    with pytest.raises(InputError, match=message):
        Adapter(**arguments)


def test_conversations(path, tmp_path):
    turns = [{"role": "user", "content": "fox?"}]
    plain = Adapter(path=str(path), template="plain")
    assert plain.apply_chat_template(turns).endswith("fox?")
    assert plain.chat_template(True) == chat.PLAIN
    assert plain.chat_template(False) is None
    begun = [*turns, {"role": "assistant", "content": "It is"}]
    llama = Adapter(path=str(path), template="llama2")
    continued = llama.apply_chat_template(begun, add_generation_prompt=False)
    assert continued.endswith("[INST] fox? [/INST] It is")
    broken = tmp_path / "broken.jinja"
    broken.write_text("{{ raise_exception('no user turns') }}")
    with pytest.raises(InputError, match="no user turns"):
        Adapter(path=str(path), template=str(broken)).apply_chat_template(turns)


@pytest.mark.parametrize("found", [None, "0.4.9.2", "0.4.11"])
def test_without_a_new_lm_eval(found, monkeypatch):
    def version(name):
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(InputError, match=r"lm-eval 0.4.13 or newer.*\[lm_eval\]'"):
        register.__wrapped__()  # what it is asked first is remembered


def test_a_task_that_is_not_known():
    assert "did you mean local_winogrande?" in unknown_task("local_wino")
    assert "local ones: local_arc_challenge, local_arc_easy" in unknown_task("xyz")


def test_the_user_s_own_tasks_are_kept():
    assert own_tasks(argparse.Namespace()) == []
    assert own_tasks(argparse.Namespace(include_path="mine")) == ["mine"]
