"""The fine-tuning experiments build, pass through flags, and keep their promises."""

import dataclasses

import pytest

from configs import common, finetune, finetune_comparison
from sparse_jax import schema
from sparse_jax.data.tasks import TASKS
from sparse_jax.recipe import JOBS, FinetuneComparison, FinetuneJob
from sparse_jax.recipe.finetune_comparison import PEAKS
from sparse_jax.types import InputError


def build(config):
    values = config.to_dict()
    return schema.build(JOBS[values["kind"]], values)


@pytest.mark.parametrize("variant", [None, *TASKS, "gsm8k_lora", "chat_lora"])
def test_every_task_has_a_job(variant):
    config = finetune.get_config(variant)
    config.model, config.dense, config.data = "m", "d", "x"
    job = build(config)
    assert isinstance(job, FinetuneJob)
    assert (job.model, job.dense, job.data) == ("m", "d", "x")
    assert build(common.to_config(job)) == job
    assert (job.lora is not None) == str(variant).endswith("_lora")
    assert job.distill.feature_weight == job.distill.ce_weight == 1
    assert job.evaluate.window == job.train.seq_len


def test_a_plan_needs_no_weights():
    config = finetune.get_config("gsm8k")
    config.model = config.dense = "llama2_7b"
    config.data = "x.jsonl"
    recipe = build(config).recipe()
    assert recipe.model.d_model == 4096
    assert recipe.stages["finetuned"].teacher == "dense_control"


@pytest.mark.parametrize("variant", [None, "gsm8k", "dolly", "mbpp", "tune_gsm8k"])
def test_runs_stay_within_their_tokens(variant):
    job = build(finetune_comparison.get_config(variant))
    assert isinstance(job, FinetuneComparison)
    assert job.train.steps * job.train.tokens_per_step <= 300_000
    assert {*job.peaks} == {*PEAKS}
    lengths = {domain: job.lengths.get(domain, 1024) for domain in job.tasks}
    assert all(1024 % length == 0 and length >= 256 for length in lengths.values())
    expected = (0.5, 1.0, 2.0) if variant and "tune" in variant else (1.0,)
    assert job.tried == expected


def test_variants_are_the_same_comparison():
    whole = build(finetune_comparison.get_config())
    one = build(finetune_comparison.get_config("mbpp"))
    assert whole.seeds == one.seeds == (0, 1, 2)
    same = dataclasses.replace(one, name=whole.name, tasks=whole.tasks)
    assert same == whole
    with pytest.raises(InputError, match="choose one of"):
        finetune_comparison.get_config("mbbp")
