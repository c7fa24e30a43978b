"""`run_prune` from a model and texts on disk to a model and its report on disk."""

import dataclasses
import importlib
import json
import os

import jax
import numpy as np
import pytest

from sparse_jax import data, io, models
from sparse_jax.evaluate import evaluate
from sparse_jax.prune import AllocationConfig, QuantizeConfig, SmoothQuant
from sparse_jax.quant import GridConfig, round_inputs
from sparse_jax.recipe import PruneJob, prune_job, run_prune
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError
from tests.recipe import helpers

module = importlib.import_module("sparse_jax.recipe.pruning")

# Square matrices only: they share compiled programs.
MODEL = dataclasses.replace(helpers.MODEL, n_layers=2, d_ff=32)
LINEARS = 2 * 7 * 32 * 32
REPORT = {"prune_report.json", "prune_report.md", "prune_error.png"}


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory):
    """Models with and without a tokenizer."""
    path = tmp_path_factory.mktemp("models")
    params = jax.jit(models.init, static_argnums=1)(jax.random.key(0), MODEL)
    io.save(path / "bare", params, MODEL)
    text = (corpus / "code.jsonl").read_text()
    files = data.train_bpe([text], vocab_size=MODEL.vocab_size).files
    io.save(path / "model", params, MODEL, tokenizer_files=files)
    return path


@pytest.fixture(scope="module")
def job(corpus):
    return PruneJob(
        calibration=str(corpus / "code.jsonl"),
        calibration_limit=20_000,
        evaluate=(str(corpus / "prose.jsonl"),),
        evaluate_limit=8_000,
        samples=6,
        sample_length=16,
        evaluate_window=32,
    )


@pytest.fixture(scope="module")
def finished(job, folder, tmp_path_factory):
    """A pruned model and the report that was returned."""
    out = tmp_path_factory.mktemp("pruned") / "out"
    return out, run_prune(job, folder / "model", out, quiet=True)


def numbers_of(path, text):
    model = io.resolve(path)
    ids, nbytes = data.stream_from_path(text, model.tokenizer, limit=8_000)
    return evaluate(model.params, model.config, ids, nbytes, window=32)


def test_a_model_with_its_report(finished, folder, job):
    out, report = finished
    names = {path.name for path in out.iterdir()}
    assert names > REPORT | {"masks.safetensors", "config.json", "tokenizer.json"}
    assert not list(out.parent.glob("*.unfinished"))
    assert json.loads((out / "prune_report.json").read_text()) == report
    masks = leaf_paths(io.resolve(out).masks)
    kept = sum(int(mask.sum()) for mask in masks.values() if mask is not None)
    assert kept == LINEARS // 2
    assert report["total"]["sparsity"] == 0.5
    assert report["total"]["weights"] == LINEARS
    assert [row["layer"] for row in report["matrices"]] == [0] * 7 + [1] * 7
    assert report["model"]["path"] == str(folder / "model")
    assert report["calibration"]["bytes_read"] == 20_000
    assert report["settings"]["sample_length"] == 16
    (row,) = report["evaluation"]
    for side, path in (("before", folder / "model"), ("after", out)):
        expected = numbers_of(path, job.evaluate[0])
        assert row[side]["loss"] == pytest.approx(expected.loss, rel=1e-6)
        assert (row["tokens"], row["bytes"]) == (expected.tokens, expected.bytes)
    assert row["before"] != row["after"]


class Killed(BaseException):
    """Stands for a kill: no handler of the code under test takes it."""


def test_killed_at_every_seam_it_ends_bit_equal(
    finished, folder, job, tmp_path, monkeypatch
):
    calls, kill_at = [], [0]

    def counted(original):
        def call(*arguments, **options):
            calls.append(original.__name__)
            if len(calls) == kill_at[0]:
                raise Killed
            return original(*arguments, **options)

        return call

    for owner, name in (
        (io.BlockWriter, "write"),
        (io.BlockWriter, "finish"),
        (module, "evaluate_blocks"),
        (module, "write_line"),
        (module, "pruning_files"),
    ):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    out = tmp_path / "out"
    for *done, killed in (
        ("write", "write"),
        ("write", "evaluate_blocks"),  # goes on at the second block
        ("evaluate_blocks", "write_line"),
        ("evaluate_blocks", "write_line", "evaluate_blocks"),  # before, after
        ("evaluate_blocks", "pruning_files"),  # before is known now
        ("evaluate_blocks", "pruning_files", "finish"),
    ):
        calls.clear()
        kill_at[0] = len(done) + 1
        with pytest.raises(Killed):
            run_prune(job, folder / "model", out, quiet=True)
        assert calls == [*done, killed]
        assert not out.exists()
    kill_at[0] = 0
    run_prune(job, folder / "model", out, quiet=True)
    helpers.assert_same(out, finished[0])


def test_a_kill_after_the_last_file_leaves_nothing_to_do(folder, tmp_path, monkeypatch):
    job = PruneJob(solver="magnitude", pattern="2:4")
    replace = os.replace

    def killed(source, target):
        if str(source).endswith(".unfinished"):
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            run_prune(job, folder / "bare", tmp_path / "out", quiet=True)
    found = (tmp_path / "out" / "prune_report.json").read_text()
    with pytest.raises(InputError, match="another config"):
        other = dataclasses.replace(job, pattern="1:4")
        run_prune(other, folder / "bare", tmp_path / "out", quiet=True)
    report = run_prune(job, folder / "bare", tmp_path / "out", quiet=True)
    assert report == json.loads(found)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(InputError, match="is not empty"):
        run_prune(job, folder / "bare", tmp_path / "out", quiet=True)


def test_magnitude_needs_no_text_and_no_tokenizer(folder, tmp_path, monkeypatch):
    job = PruneJob(solver="magnitude", pattern="2:4", dtype="bfloat16")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    report = run_prune(job, folder / "bare", ".", quiet=True)
    assert report["calibration"] is None and report["evaluation"] == []
    assert report["total"]["relative_error"] is None
    assert report["model"]["dtype"] == "bfloat16"
    weights = io.resolve(tmp_path / "out").params["layers"]["mlp"]["down"]["kernel"]
    groups = np.asarray(weights).reshape(2, 8, 4, 32)
    assert ((groups != 0).sum(2) == 2).all()


def test_the_evaluation_is_of_what_is_stored(folder, job, tmp_path):
    """Rounded to bfloat16, embeddings and head included, as the file will be read."""
    out = tmp_path / "out"
    job = dataclasses.replace(job, dtype="bfloat16", solver="magnitude")
    report = run_prune(job, folder / "model", out, quiet=True)
    expected = numbers_of(out, job.evaluate[0])
    after = report["evaluation"][0]["after"]
    assert after["loss"] == pytest.approx(expected.loss, rel=1e-6)


def test_the_embedded_corpus_is_calibrated_on_its_training_part(
    folder, tmp_path, monkeypatch
):
    splits = {}
    original = prune_job.stream_from_path

    def recorded(path, *arguments, split="heldout", **options):
        splits[path] = split
        return original(path, *arguments, split=split, **options)

    monkeypatch.setattr(prune_job, "stream_from_path", recorded)
    job = PruneJob(
        solver="magnitude",
        calibration="embedded:code",
        calibration_limit=5_000,
        evaluate=("embedded:prose",),
        evaluate_limit=8_000,
        evaluate_window=32,
        samples=6,
        sample_length=16,
        spool=str(tmp_path / "spool"),
    )
    report = run_prune(job, folder / "model", tmp_path / "out", quiet=True)
    assert splits == {"embedded:code": "train", "embedded:prose": "heldout"}
    assert report["calibration"]["split"] == "train"
    assert report["total"]["relative_error"] > 0
    assert not list((tmp_path / "spool").iterdir())


def test_lengths_that_are_not_given_are_what_the_model_allows():
    for length, expected in ((64, 64), (100_000, 2048)):
        model = dataclasses.replace(MODEL, max_seq_len=length)
        assert PruneJob().prune_config(model).sample_length == expected
        assert PruneJob().evaluate_config(model).window == expected
    assert PruneJob(sample_length=9).prune_config(MODEL).sample_length == 9
    assert PruneJob(evaluate_window=9).evaluate_config(MODEL).window == 9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pattern": "5:48"}, r"attention/.*/kernel: pattern 5:48 needs the input dim"),
        ({"calibration": None}, "solver 'sparsegpt' needs calibration"),
        ({"calibration": "none.jsonl"}, r"data path none\.jsonl does not exist"),
        ({"calibration_limit": 20}, r"calibration text has .* fewer than one sequence"),
        ({"calibration_field": "body"}, r"field 'body' is missing"),
        ({"sample_length": 65}, "a sequence of 65 tokens is longer than the model"),
        ({"evaluate_window": 65}, "a sequence of 65 tokens is longer than the model"),
        ({"evaluate_window": 0}, "evaluate.window must be >= 2, got 0"),
        ({"evaluate_limit": 20}, r"prose\.jsonl: .* fewer than one window of 32"),
        ({"evaluate": ("none.txt",)}, r"data path none\.txt does not exist"),
        ({"tokenizer": "none"}, "tokenizer none does not exist"),
        ({"rules": ((".*mlp.*", "pattern"),)}, "covered by none of the"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_refused_before_any_work(job, folder, tmp_path, fields, message):
    job = dataclasses.replace(job, **fields)
    with pytest.raises(InputError, match=message):
        run_prune(job, folder / "model", tmp_path / "out", quiet=True)
    assert not list(tmp_path.iterdir())


def test_other_bad_input(job, folder, finished, tmp_path):
    with pytest.raises(InputError, match="bare: holds no tokenizer, which calibration"):
        run_prune(job, folder / "bare", tmp_path / "out", quiet=True)
    with pytest.raises(InputError, match="out: is not empty"):
        run_prune(job, folder / "model", finished[0], quiet=True)
    both = dataclasses.replace(job, evaluate=(job.calibration,))
    with pytest.raises(InputError, match=r"code\.jsonl is calibration text and in"):
        run_prune(both, folder / "model", tmp_path / "out", quiet=True)
    less = dataclasses.replace(job, sparsity=0.3)
    with pytest.raises(InputError, match=r"layers/attention/.*/kernel: .* already"):
        run_prune(less, finished[0], tmp_path / "out", quiet=True)
    with pytest.raises(InputError, match="solver 'sparsgpt' is not known"):
        PruneJob(solver="sparsgpt")
    with pytest.raises(
        InputError, match="allocation 'owll' is not known; expected one"
    ):
        PruneJob(allocation=AllocationConfig(kind="owll"))
    with pytest.raises(InputError, match="sample_length must be at least 1, found 0"):
        PruneJob(sample_length=0)
    with pytest.raises(InputError, match="evaluate_limit must be at least 1, found 0"):
        PruneJob(evaluate_limit=0)
    assert not list(tmp_path.iterdir())


def test_another_job_does_not_go_on_with_unfinished_work(
    job, folder, tmp_path, monkeypatch
):
    def stop(*arguments):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, "pruning_files", stop)
        with pytest.raises(Killed):
            run_prune(job, folder / "model", tmp_path / "out", quiet=True)
    other = dataclasses.replace(job, sparsity=0.6)
    with pytest.raises(InputError, match=r"out\.unfinished: holds unfinished work"):
        run_prune(other, folder / "model", tmp_path / "out", quiet=True)


W8A8 = QuantizeConfig(
    grid=GridConfig(bits=8, group=0),
    smooth=SmoothQuant(),
    activations="dynamic",
    leave_out=("layers/0/mlp/down/kernel",),
)


def test_a_rounded_model_and_what_its_report_says(job, folder, tmp_path):
    rounding = dataclasses.replace(job, pattern="found", quantize=W8A8)
    report = run_prune(rounding, folder / "model", tmp_path / "w8a8", quiet=True)
    found = io.resolve(tmp_path / "w8a8")
    assert len(found.grids) == 13 and found.activations.kind == "dynamic"
    # 32 bits for every row of 32 weights; one of the 14 matrices is in float32.
    assert report["total"]["bits"] == pytest.approx((13 * 9 + 32) / 14)
    (left,) = [row for row in report["matrices"] if row["left_out"] is not None]
    assert (left["layer"], left["bits"]) == (0, 32.0)
    text = (tmp_path / "w8a8" / "prune_report.md").read_text()
    assert "# model, rounded" in text and "## Left in floats" in text
    assert "13 of 14 matrices are rounded to 8 bits" in text
    # Evaluated as it runs, with its inputs rounded.
    model = io.resolve(tmp_path / "w8a8")
    ids, nbytes = data.stream_from_path(job.evaluate[0], model.tokenizer, limit=8_000)
    params = round_inputs(model.params, model.grids, model.activations)
    expected = evaluate(params, model.config, ids, nbytes, window=32)
    (row,) = report["evaluation"]
    assert row["after"]["loss"] == pytest.approx(expected.loss, rel=1e-6)
    assert row["before"]["loss"] != row["after"]["loss"]
    with pytest.raises(InputError, match=r"is quantised already \(int8\)"):
        run_prune(rounding, tmp_path / "w8a8", tmp_path / "again", quiet=True)


def test_rounding_without_its_text_is_refused(job, folder, tmp_path):
    silent = dataclasses.replace(job, pattern="found", quantize=W8A8, calibration=None)
    with pytest.raises(InputError, match="method 'gptq' needs calibration tokens"):
        run_prune(silent, folder / "model", tmp_path / "out", quiet=True)
