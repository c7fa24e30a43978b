"""Every bad input ends in one clear sentence, and nothing is lost."""

import dataclasses
import json
import subprocess
import sys

import jax
import pytest

from configs import common, sparse50, sparse70
from sparse_jax import io, schema
from sparse_jax import models as jax_models
from sparse_jax import recipe as recipe_lib
from sparse_jax.data import train_bpe
from sparse_jax.models import RopeConfig, sizes
from sparse_jax.types import InputError
from tests.launch.helpers import (
    CONFIGS,
    LAUNCH,
    TINY,
    compiled_once,
    environment,
    error_of,
    kill_when,
    launch,
)
from tests.recipe import helpers

SMOKE = f"--config={CONFIGS / 'sparse70.py'}:smoke"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return helpers.make_recipe(helpers.write_corpus(tmp_path_factory.mktemp("corpus")))


def set_field(config, path, value):
    """What `--config.PATH=VALUE` does to a ConfigDict."""
    *parents, name = path.split(".")
    for parent in parents:
        config = config[parent]
    config[name] = value


@pytest.mark.parametrize("module", [sparse50, sparse70])
@pytest.mark.parametrize("variant", [None, "smoke", "llama2_7b"])
def test_every_variant_is_a_valid_recipe(module, variant):
    config = module.get_config(variant)
    built = schema.build(recipe_lib.Recipe, config.to_dict())
    assert schema.build(recipe_lib.Recipe, schema.to_dict(built)) == built


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("prune.sparsity", 1.5, r"prune\.sparsity must be in \[0, 1\), found 1\.5"),
        ("prune.sparsity", -0.1, r"prune\.sparsity must be in \[0, 1\), found -0\.1"),
        (
            "stages.one_shot_70.sparsity",
            1.0,
            r"stages\.one_shot_70: prune\.sparsity must be in \[0, 1\), found 1\.0",
        ),
        (
            "stages.one_shot.sparsities",
            (0.5, 1.5),
            r"stages\.one_shot: prune\.sparsity must be in \[0, 1\), found 1\.5",
        ),
        (
            "stages.one_shot.solvers",
            ("sparsgpt",),
            r"stages\.one_shot: solver 'sparsgpt' is not known; expected one of",
        ),
        (
            "prune.rules",
            (("layers/mlp/.*", "pattern"),),
            r"rules: leaf 'embed/embedding' is covered by none of the 1 rules",
        ),
        (
            "prune.pattern",
            "5:48",
            r"layers/attention/k/kernel: pattern 5:48 needs the input dimension to be "
            "a multiple of 48, found 32",
        ),
        ("prune.pattern", "4:2", "n must be at most m = 2, found 4"),
        ("prune.pattern", "stripes", "pattern 'stripes' is not known; expected"),
        ("mesh.fsdp", 2, r"mesh: .*'fsdp': 2.* needs 2 devices, found 1"),
        ("train.accumulate", 3, "train.accumulate: 3 does not divide"),
        (
            "train.seq_len",
            65,
            r"stages\.dense: a sequence of 65 tokens is longer than the model allows "
            r"\(64\)",
        ),
        ("evaluate.window", 65, "a sequence of 65 tokens is longer than the model"),
        ("prune.sample_length", 65, "one_shot_50: a sequence of 65 tokens is longer"),
        ("model.vocab_size", 100, "the tokenizer has 320 ids, more than the model's"),
        ("evaluate.window", 0, "evaluate.window must be >= 2, got 0"),
        ("data.tokenizer", "none.json", "none.json"),
        ("data.sources.code.path", "none.jsonl", "none.jsonl"),
        ("compute.dtype", "float8", "compute.dtype must be one of"),
        ("model.rope.kind", "yarn", r"model\.rope\.kind must be one of .*got 'yarn'"),
        ("model.n_heads", 3, "model.n_heads: 3 does not divide d_model 32"),
    ],
)
def test_a_bad_field_is_refused_before_any_training(
    recipe, tmp_path, path, value, message
):
    config = common.to_config(recipe)
    set_field(config, path, value)
    with pytest.raises(InputError, match=message):
        recipe_lib.run(
            schema.build(recipe_lib.Recipe, config.to_dict()),
            tmp_path / "run",
            quiet=True,
        )
    assert not (tmp_path / "run" / "dense").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"text\.txt"),
        (b"", r"text\.txt is empty"),
        (bytes(range(256)) * 40, r"text\.txt: expected text, found"),
    ],
    ids=["missing", "empty", "binary"],
)
def test_bad_training_data(recipe, tmp_path, content, message):
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    source = dataclasses.replace(recipe.data.sources["code"], path=str(file))
    broken = helpers.replace(recipe, "data", sources={"code": source})
    with pytest.raises(InputError, match=message):
        recipe_lib.run(broken, tmp_path / "run", quiet=True)


def test_too_little_held_out_text(recipe, tmp_path):
    broken = helpers.replace(recipe, "data", heldout_limit=60)
    broken = helpers.replace(broken, "model", max_seq_len=1024)
    broken = helpers.replace(broken, "evaluate", window=1000)
    with pytest.raises(InputError, match="held-out tokens are fewer than one window"):
        recipe_lib.run(broken, tmp_path / "run", quiet=True)


def test_rope_kinds_are_those_of_the_model():
    with pytest.raises(InputError, match="original_max_seq_len must be set for llama3"):
        dataclasses.replace(sizes.get("tiny"), rope=RopeConfig(kind="llama3"))


COMMANDS = {
    "unknown field": (
        ["train", SMOKE, "--config.train.stepz=3"],
        "config.train.stepz is not a field of the config: there is no 'stepz'; did "
        "you mean steps?",
    ),
    "unknown stage": (
        ["train", SMOKE, "--config.stages.trained_5.steps=3"],
        "config.stages.trained_5.steps is not a field of the config: there is no "
        "'trained_5'; did you mean trained_50?",
    ),
    "wrong type": (
        ["train", SMOKE, "--config.train.steps=many"],
        "flag --config.train.steps=many: invalid literal for int() with base 10: "
        "'many'",
    ),
    "no config file": (
        ["train", "--config=none.py", "--config.seed=1"],
        "none.py: there is no such config file",
    ),
    "unknown variant": (
        ["train", f"{SMOKE}r"],
        "the config has no variant 'smoker'; choose one of ['smoke', 'best', "
        "'best_tune', 'best_smoke', 'llama2_7b', 'llama2_70b'], or none",
    ),
    "no flag": (
        ["train", SMOKE, "now"],
        "'now' is not a flag; flags look like --config=FILE",
    ),
    "sparsity": (
        ["train", SMOKE, "--config.stages.one_shot_70.sparsity=1.5"],
        "stages.one_shot_70: prune.sparsity must be in [0, 1), found 1.5",
    ),
    "unwritable": (
        ["train", SMOKE, "--workdir=/proc/none"],
        "/proc/none: cannot be written (No such file or directory); free some space "
        "or choose another place",
    ),
}

# All commands in one process: an import of jax for each would cost more than the rest.
DRIVER = """
import ast, os, sys, traceback
os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, {launch!r})
for name, (launcher, *arguments) in ast.literal_eval(sys.stdin.read()).items():
    for stream in (sys.stdout, sys.stderr):
        print("###", name, file=stream, flush=True)
    pid = os.fork()
    if pid == 0:
        import runpy
        sys.argv = [launcher + ".py", *arguments]
        try:
            runpy.run_path({launch!r} + "/" + launcher + ".py", run_name="__main__")
        except SystemExit as stop:
            sys.stderr.flush()
            os._exit(stop.code)
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    print("=", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=sys.stdout)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A good model and broken ones, and texts that are none."""
    folder = tmp_path_factory.mktemp("models")
    text = "the quick brown fox " * 40
    tokenizer = train_bpe([text], vocab_size=300)
    params = jax_models.init(jax.random.key(0), helpers.MODEL)
    for name in ("good", "no_config", "truncated", "wide"):
        files = tokenizer.files
        io.save(folder / name, params, helpers.MODEL, tokenizer_files=files)
    (folder / "no_config" / "config.json").unlink()
    weights = folder / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    config = json.loads((folder / "wide" / "config.json").read_text())
    config |= {"intermediate_size": 64}
    (folder / "wide" / "config.json").write_text(json.dumps(config))
    (folder / "text.txt").write_text(text)
    (folder / "empty.txt").write_text("")
    (folder / "binary.txt").write_bytes(bytes(range(256)) * 9)
    return folder


EVALUATE = {
    "missing data": ("good", "none.txt", "data path {0}/none.txt does not exist"),
    "empty data": ("good", "empty.txt", "{0}/empty.txt is empty"),
    "binary data": ("good", "binary.txt", "{0}/binary.txt: expected text, found"),
    "no config.json": ("no_config", "text.txt", "{0}/no_config: no config.json, no"),
    "truncated": ("truncated", "text.txt", "{0}/truncated/model.safetensors: "),
    "wrong shape": ("wide", "text.txt", "{0}/wide/model.safetensors: "),
    "no model": ("none", "text.txt", "'{0}/none' is neither an existing directory nor"),
}


def test_what_a_user_of_evaluate_sees(models):
    commands = {
        name: ["evaluate", f"--model={models / model}", f"--data={models / data}"]
        for name, (model, data, _) in EVALUATE.items()
    }
    for name, code, lines in drive(commands, models):
        assert code == "2", (name, lines)
        (line,) = lines
        expected = EVALUATE[name][2].format(models)
        assert line.startswith(f"error: {expected}"), line


def test_what_a_user_of_train_sees(tmp_path):
    """Exit code 2, one line `error: ...`, no traceback, and no directory is made."""
    commands = {name: command for name, (command, _) in COMMANDS.items()}
    for name, code, lines in drive(commands, tmp_path):
        assert lines == [f"error: {COMMANDS[name][1]}"]
        assert code == "2", name
    assert not list(tmp_path.iterdir())


def drive(commands, folder):
    """Runs launchers in forks of one process; (name, exit code, stderr's lines)."""
    driver = "import sparse_jax.recipe\n" + DRIVER.format(launch=str(LAUNCH))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", driver],
        input=repr(commands),
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(PYTHONPATH=str(LAUNCH.parent)),
    )
    assert done.returncode == 0, done.stderr
    shown = done.stderr.split("### ")[1:]
    codes = [part.strip().split("= ")[-1] for part in done.stdout.split("### ")[1:]]
    return [
        (name, code, text.splitlines()[1:])
        for text, code, name in zip(shown, codes, commands, strict=True)
    ]


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    """The real writer meets a real limit; without it the run goes on to its end."""
    corpus = helpers.write_corpus(tmp_path)
    config = tmp_path / "tiny.py"
    config.write_text(TINY.format(corpus=str(corpus)) + ONLY_DENSE)
    stage = tmp_path / "run" / "dense"
    arguments = (f"--config={config}", f"--workdir={tmp_path / 'run'}")
    variables = compiled_once(tmp_path / "compiled")
    saved = stage / "checkpoints" / "2"
    assert kill_when(saved.exists, "train", *arguments, **variables)
    checkpoints = [
        p.name for p in (stage / "checkpoints").iterdir() if p.name.isdigit()
    ]

    # Files of a checkpoint are larger than this, everything before them smaller.
    never = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"}  # read, not written
    done = launch("train", *arguments, file_limit=60_000, **variables | never)
    sentence = error_of(done)
    assert sentence.startswith(str(stage / "checkpoints"))
    assert "cannot be written (File too large); put it right" in sentence
    assert {*checkpoints} <= {p.name for p in (stage / "checkpoints").iterdir()}

    assert launch("train", *arguments, **variables).returncode == 0
    assert (tmp_path / "run" / "report.md").exists()


ONLY_DENSE = """
def get_config(whole=get_config):
    config = whole()
    config.train.update({"steps": 60, "checkpoint_every": 2})
    for name in config.stages:
        config.stages[name].enabled = name == "dense"
    config.final = "dense"
    return config
"""
