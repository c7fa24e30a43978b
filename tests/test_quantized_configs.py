"""Experiment files of quantisation build, and survive the way through flags."""

import dataclasses
import importlib

import jax
import pytest

from configs import common, quantize
from sparse_jax import io, models, schema
from sparse_jax.models import LlamaConfig
from sparse_jax.recipe import EqualBits, PruneJob, SparseLlama


def load(name, cls, variant):
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    job = schema.build(cls, config.to_dict())
    assert schema.build(cls, common.to_config(job).to_dict()) == job
    return job


@pytest.mark.parametrize("variant", [None, *quantize.VARIANTS])
def test_quantize(variant):
    job = load("quantize", PruneJob, variant)
    assert job.quantize is not None and job.pattern == "found"


@pytest.mark.parametrize("variant", [None, "smoke", "llama2_7b"])
def test_sparse_llama(variant):
    job = load("sparse_llama", SparseLlama, variant)
    assert job.control in job.pretraining.stages
    assert job.pretraining.final.startswith("trained_70")
    assert job.quantize.grid.bits == 8 and job.quantize.activations == "dynamic"


def test_the_pods_chain_has_no_stage_of_a_single_process(tmp_path):
    folder = tmp_path / "codealpaca"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"instruction": "q", "output": "a"}\n')
    job = dataclasses.replace(
        load("sparse_llama", SparseLlama, "llama2_7b"), data=str(folder)
    )
    kinds = {stage.kind for stage in job.recipe().stages.values()}
    assert "finetune" in kinds and not kinds & {"pack", "evaluate"}


@pytest.mark.parametrize("variant", [None, "tinystories", "smoke"])
def test_equal_bits(variant, tmp_path):
    job = load("equal_bits", EqualBits, variant)
    model = LlamaConfig(vocab_size=32, d_model=16, d_ff=32, n_layers=1, n_heads=2)
    io.save(tmp_path / "m", models.init(jax.random.key(0), model), model)
    recipe = dataclasses.replace(job, model=str(tmp_path / "m")).recipe()
    packed = {point.packed for point in recipe.report.points}
    assert packed <= {*recipe.order} and len(packed) == len(recipe.report.points)
    seeds = sum(len(value.seeds) for value in job.values.values())
    trained = sum(2 * len(v.seeds) for v in job.values.values() if v.trained)
    assert len(recipe.report.points) == seeds + trained
    stages = [s for s in recipe.stages.values() if s.kind == "pretrain"]
    steps = {recipe.train_config(stage).steps for stage in stages}
    assert len(steps) == bool(trained)  # equal tokens
