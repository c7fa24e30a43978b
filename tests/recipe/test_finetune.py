"""Fine-tuning: a model on a task, the ways compared, what stays and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import io, models, train
from sparse_jax import recipe as recipe_lib
from sparse_jax.data import train_bpe
from sparse_jax.evaluate import EvaluateConfig, HarnessConfig
from sparse_jax.models import LlamaConfig
from sparse_jax.prune import PruneConfig
from sparse_jax.recipe import FinetuneComparison, FinetuneJob
from sparse_jax.sparsity import Unstructured
from sparse_jax.sparsity.adapters import LoraConfig
from sparse_jax.sparsity.masks import apply, make_masks
from sparse_jax.train import ScheduleConfig, TrainConfig, loop
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError
from tests.recipe import helpers

MODEL = LlamaConfig(
    vocab_size=320, d_model=32, d_ff=48, n_layers=2, n_heads=2, max_seq_len=32
)
TRAIN = TrainConfig(
    steps=6,
    batch_size=2,
    seq_len=64,
    checkpoint_every=2,
    log_every=1,
    schedule=ScheduleConfig(kind="linear", peak=1e-2, warmup_steps=1),
)
QUICK = {"max_seq_len": 64, "train": TRAIN, "evaluate": EvaluateConfig(window=64)}


def pruned(params, sparsity):
    """Magnitude masks and the weights under them."""
    rules = [("layers/.*/kernel", Unstructured(sparsity)), (".*", None)]
    shapes = make_masks(params, rules)
    scores = leaf_paths(params)
    found = {}
    for path, mask in leaf_paths(shapes).items():
        if mask is None:
            found[path] = None
            continue
        w_LIO = jnp.abs(scores[path])
        limit = jnp.quantile(w_LIO, sparsity, axis=(1, 2), keepdims=True)
        found[path] = w_LIO > limit
    masks = from_paths(found)
    return apply(params, masks), masks


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a sparse pretraining leaves: dense, half and wholly sparse models."""
    folder = tmp_path_factory.mktemp("run")
    texts = [f"Question: What is {i}?\nAnswer: It is {i}.\n#### {i}" for i in range(99)]
    files = train_bpe(texts * 3, vocab_size=MODEL.vocab_size).files
    params = models.init(jax.random.key(0), MODEL)
    for name, sparsity in (
        ("dense_control", 0),
        ("trained_50", 0.5),
        ("trained_70", 0.7),
    ):
        weights, masks = pruned(params, sparsity) if sparsity else (params, None)
        path = folder / name / "model"
        io.save(path, weights, MODEL, masks=masks, tokenizer_files=files)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "gsm8k").mkdir()
    for name, numbers in (("train", range(80)), ("test", range(80, 99))):
        records = [
            {"question": f"What is {i}?", "answer": f"It is {i}.\n#### {i}"}
            for i in numbers
        ]
        text = "\n".join(map(json.dumps, records))
        (folder / "gsm8k" / f"{name}.jsonl").write_text(text)
    return folder


def job(run, folder, tmp_path, **fields):
    settings = QUICK | {"cache_dir": str(tmp_path / "cache"), "data": str(folder)}
    settings |= {"model": str(run / "trained_70"), "dense": str(run / "dense_control")}
    return FinetuneJob(**{"name": "job", "task": "gsm8k"} | settings | fields)


def test_a_sparse_model_keeps_its_masks_and_learns_the_task(run, data, tmp_path):
    harness = HarnessConfig(limit=2, shots=0, max_tokens=4)
    wanted = job(run, data, tmp_path, tasks=("gsm8k",), harness=harness)
    report = recipe_lib.run(wanted.recipe(), tmp_path / "work", quiet=True)
    before = helpers.masks_of(run / "trained_70")
    after = helpers.masks_of(tmp_path / "work" / "finetuned")
    assert before.keys() == after.keys()
    for path, mask in before.items():
        np.testing.assert_array_equal(mask, after[path])
    params = leaf_paths(io.resolve(tmp_path / "work" / "finetuned").params)
    assert all(
        (np.asarray(params[p])[~np.asarray(m)] == 0).all() for p, m in after.items()
    )
    losses = {r["name"]: r["domains"]["gsm8k"]["loss"] for r in report["models"]}
    assert losses["finetuned"] < losses["model"]
    assert losses["dense_control"] < losses["dense"]
    rows = {r["name"]: r for r in report["models"]}
    counts = rows["finetuned"]["examples"]["gsm8k"]
    assert counts["examples"] == 80
    assert counts["dropped"] == 0
    assert rows["model"]["domains"]["gsm8k"]["examples"]["examples"] == 19
    assert {r["model"] for r in report["scores"]} == {
        "model",
        "dense_control",
        "finetuned",
    }
    assert [r["method"] for r in report["recovery"]] == ["finetuned"]
    metrics = (tmp_path / "work/finetuned/metrics.jsonl").read_text()
    assert "features" in json.loads(metrics.splitlines()[-1])


def test_stopped_and_resumed_it_ends_with_the_same_bits(run, data, tmp_path):
    wanted = job(run, data, tmp_path).recipe()
    recipe_lib.run(wanted, tmp_path / "whole", quiet=True)
    left = iter(range(10))

    class Stop(loop.StopPoll):
        def __call__(self):
            return next(left, None) is None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "StopPoll", Stop)
        with pytest.raises(train.Interrupted):
            recipe_lib.run(wanted, tmp_path / "parts", quiet=True)
    recipe_lib.run(wanted, tmp_path / "parts", quiet=True)
    helpers.assert_same(tmp_path / "parts", tmp_path / "whole")


def test_adapters_under_the_masks(run, data, tmp_path):
    wanted = job(run, data, tmp_path, lora=LoraConfig(rank=2), use_teacher=False)
    recipe_lib.run(wanted.recipe(), tmp_path / "work", quiet=True)
    found = io.resolve(tmp_path / "work" / "finetuned")
    before = io.resolve(run / "trained_70")
    old, new = leaf_paths(before.params), leaf_paths(found.params)
    np.testing.assert_array_equal(old["embed/embedding"], new["embed/embedding"])
    for path, mask in helpers.masks_of(tmp_path / "work" / "finetuned").items():
        assert (np.asarray(new[path])[~np.asarray(mask)] == 0).all()
        assert (np.asarray(new[path]) != np.asarray(old[path])).any()


def test_zeros_alone_make_a_model_sparse(run, data, tmp_path):
    weights, _ = pruned(models.init(jax.random.key(0), MODEL), 0.7)
    files = io.resolve(run / "dense_control").tokenizer.files
    io.save(tmp_path / "zeros", weights, MODEL, tokenizer_files=files)
    zeros = job(run, data, tmp_path, model=str(tmp_path / "zeros"), dense=None)
    with pytest.raises(InputError, match=r"config\.model=.* is sparse, and nothing"):
        zeros.recipe()
    with pytest.raises(InputError, match=r"config\.dense=.* is sparse, and nothing"):
        job(run, data, tmp_path, dense=str(run / "trained_50")).recipe()


def test_a_teacher_with_other_tokens_is_refused(run, data, tmp_path):
    files = train_bpe(["Other text. " * 40], vocab_size=300).files
    params = models.init(jax.random.key(0), MODEL)
    io.save(tmp_path / "teacher", params, MODEL, tokenizer_files=files)
    recipe = job(run, data, tmp_path, teacher=str(tmp_path / "teacher")).recipe()
    with pytest.raises(InputError, match=r"dense_control: the teacher .* its own tok"):
        recipe_lib.run(recipe, tmp_path / "work", quiet=True)


def comparison(run, folder, tmp_path, **fields):
    peaks = dict.fromkeys(recipe_lib.finetune_comparison.PEAKS, 1e-2)
    settings = QUICK | {"run": str(run), "data": str(folder), "peaks": peaks}
    settings |= {"cache_dir": str(tmp_path / "cache"), "calibration": ()}
    settings |= {"prune": PruneConfig(samples=4, sample_length=16), "seeds": (0,)}
    return FinetuneComparison(
        **{"name": "ways", "tasks": {"gsm8k": "gsm8k"}} | settings | fields
    )


def test_every_way_has_equal_steps_and_one_control(run, data, tmp_path):
    recipe = comparison(run, data, tmp_path, seeds=(0, 1)).recipe()
    steps = {}
    for name, stage in recipe.stages.items():
        own = recipe.train_config(stage).steps if stage.kind == "finetune" else 0
        steps[name] = own + steps.get(stage.parent, 0)
    ways = [
        n for n in steps if n.endswith(("_kd_on_gsm8k_seed1", "control_on_gsm8k_seed1"))
    ]
    assert (
        len(ways) == 7
    )  # with dense_finetuned_kd, which finetune_then_prune_kd prunes
    assert {steps[name] for name in ways} == {TRAIN.steps}
    teachers = {
        s.teacher
        for n, s in recipe.stages.items()
        if n.endswith("_kd_on_gsm8k_seed1") and s.kind == "finetune"
    }
    assert teachers == {"dense_control_on_gsm8k_seed1"}
    seeds = {recipe.stages[name].seed for name in ways if "prune_kd" not in name}
    assert seeds == {1}


def test_trials_share_the_teacher_that_was_chosen(run, data, tmp_path):
    recipe = comparison(run, data, tmp_path, tried=(0.5, 1.0, 2.0)).recipe()
    assert recipe.stages["pruned_base_kd_x0p5_on_gsm8k_seed0"].peak == 5e-3
    teachers = {getattr(s, "teacher", None) for s in recipe.stages.values()}
    assert teachers == {None, "dense_control_x1_on_gsm8k_seed0"}


@pytest.mark.slow
def test_all_ways_run(run, data, tmp_path):
    recipe = comparison(run, data, tmp_path).recipe()
    report = recipe_lib.run(recipe, tmp_path / "work", quiet=True)
    rows = {r["name"]: r for r in report["models"]}
    for name, row in rows.items():
        if name.endswith("_seed0") and "dense" not in name and "half" not in name:
            assert abs(row["sparsity_pruned"] - 0.7) < 0.01, name
    methods = {row["method"] for row in report["recovery"]}
    assert {*recipe_lib.finetune_comparison.WAYS} <= methods


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": None}, "config.model is not set; name the model to fine-tune"),
        ({"data": None}, "config.data is not set"),
        ({"dense": None}, "is sparse, and nothing says from which dense model"),
        ({"task": "gsm"}, "there is no task 'gsm' to fine-tune on; did you mean gsm8k"),
        ({"task": "mbpp"}, "holds no file of task 'mbpp'"),
        ({"model": "nowhere"}, "neither an existing directory nor a size"),
        ({"tasks": ("gsm",)}, "gsm8k"),
        ({"max_seq_len": None}, "64"),
    ],
)
def test_bad_input_before_any_work(run, data, tmp_path, fields, said):
    with pytest.raises(InputError, match=said):
        recipe = job(run, data, tmp_path, **fields).recipe()
        recipe_lib.run(recipe, tmp_path / "work", quiet=True)
    assert not (tmp_path / "work" / "model").exists()


def test_a_comparison_names_what_it_lacks(run, data, tmp_path):
    with pytest.raises(InputError, match=r"config\.data is not set"):
        comparison(run, data, tmp_path, data=None).recipe()
    with pytest.raises(InputError, match=r"missing: \['transfer'\]"):
        peaks = dict.fromkeys(recipe_lib.finetune_comparison.PEAKS, 1e-2)
        del peaks["transfer"]
        comparison(run, data, tmp_path, peaks=peaks)
    with pytest.raises(InputError, match=r"must have 1\.0 in it"):
        comparison(run, data, tmp_path, tried=(0.5, 2.0))
    with pytest.raises(InputError, match="gsm8k = 48 must divide the 128 tokens"):
        comparison(run, data, tmp_path, lengths={"gsm8k": 48})
    with pytest.raises(InputError, match="neither an existing directory nor a size"):
        comparison(tmp_path / "no", data, tmp_path).recipe()
