"""The whole plan, by estimate: its numbers hang together, and its text shows them."""

import dataclasses
import json
import os

import pytest

from sparse_jax import plan, train
from sparse_jax.mesh import MeshConfig
from sparse_jax.models import Compute, LlamaConfig, sizes
from sparse_jax.plan import advice, compiled, memory
from sparse_jax.plan.job import make_job
from sparse_jax.recipe import Finetune, Pretrain, Prune, Recipe
from sparse_jax.sparsity.adapters import LoraConfig
from sparse_jax.types import InputError

POD = plan.topology("v5e:4x4")


def recipe(**fields):
    stages = {
        "dense": Pretrain(steps=1000),
        "pruned": Prune(parent="dense", sparsity=0.7),
        "sparse": Pretrain(parent="pruned", steps=500),
        "small": Pretrain(model=sizes.get("tiny"), steps=10, enabled=False),
    }
    fields = {
        "name": "test",
        "model": sizes.get("llama3.2_1b"),
        "compute": Compute(remat="block"),
        "mesh": MeshConfig(fsdp=16),
        "train": train.TrainConfig(batch_size=64, seq_len=2048, accumulate=2),
        "stages": stages,
        "order": tuple(stages),
        "final": "sparse",
    } | fields
    return Recipe(**fields)


@pytest.fixture(scope="module")
def numbers():
    return plan.plan(recipe(), POD, estimate=True)


def test_parts_of_the_memory_add_up(numbers):
    found = numbers["memory"]
    held = ("params", "masks", "moments", "batch")
    needed = ("gradients", "activations", "working")
    assert sum(found[name] for name in held) == found["arguments"]
    assert sum(found[name] for name in needed) == found["temporaries"]
    assert found["arguments"] + found["temporaries"] == found["total"]
    assert found["moments"] == pytest.approx(2 * found["params"], rel=1e-6)


def test_masks_take_one_byte_a_pruned_weight(numbers):
    c = sizes.get("llama3.2_1b")
    keys = 2 * c.d_model * (c.n_heads + c.kv_heads) * c.head_width
    pruned = c.n_layers * (keys + 3 * c.d_model * c.d_ff)
    assert numbers["memory"]["masks"] * POD.devices == pruned


def test_stages_add_up(numbers):
    stages = numbers["recipe"]["stages"]
    assert list(stages) == ["dense", "sparse"]
    assert numbers["recipe"]["tokens"] == 1500 * 64 * 2048
    for bound, seconds in enumerate(("best_seconds", "worst_seconds")):
        days = 1500 * numbers["step"][seconds] / 86_400
        assert numbers["recipe"]["days"][bound] == pytest.approx(days)


def test_a_stage_with_its_own_model_has_its_own_time():
    stages = {"small": Pretrain(model=sizes.get("llama3.2_1b"), steps=10)}
    shape = {"stages": stages, "order": ("small",), "final": "small"}
    big = recipe(model=sizes.get("llama3.2_3b"), **shape)
    found = plan.plan(big, POD, estimate=True)
    days = 10 * found["step"]["best_seconds"] / 86_400
    assert found["recipe"]["stages"]["small"]["days"][0] < days / 2


def test_utilisation_and_rate_agree(numbers):
    step = numbers["step"]
    slow, fast = step["tokens_per_second"]
    assert slow < fast
    per_token = step["model_flops"] / numbers["job"]["tokens"]
    peak = POD.devices * POD.chip.flops
    assert step["utilisation"] == pytest.approx(
        [slow * per_token / peak, fast * per_token / peak]
    )
    assert 0 < step["utilisation"][1] < 1


def test_the_numbers_are_json_and_the_text_says_estimated(numbers):
    assert json.loads(json.dumps(numbers)) is not None
    text = plan.show(numbers)
    assert "ESTIMATED, not compiled: an estimate was asked for" in text
    for name in ("params", "masks", "moments", "activations", "all stages"):
        assert name in text


def test_what_does_not_fit_says_what_does():
    settings = train.TrainConfig(batch_size=512, seq_len=2048)
    found = plan.plan(recipe(compute=Compute(), train=settings), POD, estimate=True)
    assert not found["memory"]["fits"]
    text = plan.show(found)
    assert "DOES NOT FIT" in text and "what would fit, by estimate" in text
    best = found["options"][0]
    assert best["fits"] and "--config." in best["change"]


def test_an_option_is_what_planning_it_would_say():
    job = make_job(recipe(), POD)
    for option in advice.options(job, POD):
        if option.change == "--config.train.accumulate=4":
            settings = dataclasses.replace(recipe().train, accumulate=4)
            again = plan.plan(recipe(train=settings), POD, estimate=True)
            assert again["memory"]["total"] == option.memory
            assert again["step"]["best_seconds"] == pytest.approx(option.seconds)
            return
    pytest.fail("no option has accumulate=4")


def finetuned(**fields):
    """The plan of a recipe that ends with a distilled stage of `fields`."""
    stages = recipe().stages | {
        "tuned": Finetune(
            parent="sparse",
            steps=100,
            batch_size=32,
            seq_len=512,
            teacher="dense",
            distill=train.DistillConfig(kl_weight=0.0, **fields.pop("distill", {})),
            **fields,
        )
    }
    return plan.plan(
        recipe(stages=stages, order=tuple(stages), final="tuned"), POD, estimate=True
    )


def test_a_distilled_fine_tuning_holds_its_teacher_and_both_models_features():
    plain, features = (finetuned(distill={"feature_weight": w}) for w in (0.0, 1.0))
    c, held, more = sizes.get("llama3.2_1b"), plain["memory"], features["memory"]
    assert held["teacher"] == held["params"] > 0
    assert plain["job"]["batch_size"] == 32 and plain["job"]["seq_len"] == 512
    tokens = plain["job"]["rows_per_device"] * 512
    size = 2 * c.n_layers * tokens * c.d_model * 2  # of two models, in bfloat16
    assert more["activations"] - held["activations"] == size
    # The segment ids say what is padding.
    assert more["batch"] - held["batch"] == 32 * 512 * 4 // POD.devices
    changed = {"activations", "temporaries", "total", "batch", "arguments"}
    assert {name for name in held if held[name] != more[name]} == changed


def test_adapters_need_moments_for_their_factors_alone():
    whole, lora = finetuned(), finetuned(lora=LoraConfig(rank=8))
    c, found, other = sizes.get("llama3.2_1b"), lora["memory"], whole["memory"]
    keys = 2 * (2 * c.d_model + (c.n_heads + c.kv_heads) * c.head_width)
    factors = 8 * c.n_layers * (keys + 3 * (c.d_model + c.d_ff))
    bytes_ = 4 * factors // POD.devices
    assert found["moments"] == pytest.approx(2 * bytes_, rel=1e-3)
    assert found["gradients"] == pytest.approx(2 * bytes_, rel=1e-3)  # micro-batches
    assert found["params"] - other["params"] == pytest.approx(bytes_, rel=1e-2)
    assert found["total"] < other["total"]


def test_a_stage_of_fewer_tokens_takes_less_time():
    stages = finetuned()["recipe"]["stages"]
    assert stages["tuned"]["tokens"] == 100 * 32 * 512
    assert stages["sparse"]["tokens"] == 500 * 64 * 2048
    per_token = [
        stages[name]["days"][0] / stages[name]["tokens"] for name in ("tuned", "sparse")
    ]
    assert 0.5 < per_token[0] / per_token[1] <= 1


def test_nothing_fits_a_machine_that_is_too_small():
    model = dataclasses.replace(sizes.get("llama2_70b"), n_layers=20)
    found = plan.plan(
        recipe(model=model, mesh=MeshConfig(fsdp=4)),
        plan.topology("v5e:2x2"),
        estimate=True,
    )
    assert "none of the settings tried; use more devices" in plan.show(found)


def test_a_mesh_of_another_size_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"nearest mesh of 16 devices .* fsdp=16"):
        plan.plan(recipe(mesh=MeshConfig(fsdp=32)), POD, estimate=True)


def test_what_a_mesh_must_divide_is_checked():
    model = LlamaConfig(vocab_size=64, d_model=48, d_ff=64, n_layers=1, n_heads=3)
    with pytest.raises(InputError, match="n_heads 3"):
        plan.plan(
            recipe(model=model, mesh=MeshConfig(fsdp=8, tensor=2)), POD, estimate=True
        )


def test_xla_s_temporaries_replace_the_estimate():
    held = memory.estimate(make_job(recipe(), POD))
    found = held.with_temporaries(held.temporaries + 1000)
    assert found.temporaries == held.temporaries + 1000
    assert found.working == held.working + 1000
    small = held.with_temporaries(held.gradients + 5)
    assert (small.activations, small.working) == (5, 0)
    assert small.total == held.arguments + held.gradients + 5


def test_a_rematerialisation_is_refused():
    compiled.check_log("warming up\nnothing wrong")
    line = "W0000 spmd.cc:1] [SPMD] Involuntary full rematerialization. for HLO %x"
    with pytest.raises(InputError, match=r"1 times .*for HLO %x"):
        compiled.check_log(f"before\n{line}\nafter")


def test_what_c_writes_to_stderr_is_collected(capfd):
    with compiled.captured_stderr() as log:
        os.write(2, b"from below\n")
    os.write(2, b"afterwards\n")
    assert log() == "from below\n"
    assert capfd.readouterr().err == "afterwards\n"


def test_it_is_shown_when_something_fails(capfd):
    with pytest.raises(RuntimeError), compiled.captured_stderr():
        os.write(2, b"why it failed\n")
        raise RuntimeError
    assert capfd.readouterr().err == "why it failed\n"
