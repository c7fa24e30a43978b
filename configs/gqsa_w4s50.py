"""GQSA: half of the weights in groups of 16, the rest in 4 bits (arXiv 2412.17560).

A dense model is pruned and rounded in one shot: whole groups of 16 inputs go, and a
group that stays has a scale of its own. Stage one trains every block, weights and
grids, towards what the dense block computes. Stage two trains scales and zero points
alone, through the whole model, the codes staying as they are; with the dense model as a
teacher, and without. Each is done with zero points and without, for three seeds, which
draw the calibration text and the order of the data.

    python launch/train.py --config=configs/gqsa_w4s50.py
        0.66M parameters on the embedded corpus, 2 CPU cores, no network: minutes.
        Expected: stage one improves on one-shot, stage two on stage one.
    python launch/train.py --config=configs/gqsa_w4s50.py:smoke
        The same stages in two minutes, for CI; its numbers mean nothing.
    python launch/train.py --config=configs/gqsa_w4s50.py:llama2_7b \
        --config.init=DIR --config.data.sources.web.path=...
        Llama-2-7B on one machine of 8 accelerators. The paper's own settings could not
        be had: group, stages and what they train are the paper's, the numbers of steps
        and the learning rates those of EfficientQAT (arXiv 2407.11062).

`--config.stages.NAME.FIELD=...` changes one stage, see `report.md` for their names.
"""

import dataclasses
from typing import Any

from configs import common, recovery
from sparse_jax.data import DataConfig, SourceConfig
from sparse_jax.mesh import MeshConfig
from sparse_jax.models import Compute, sizes
from sparse_jax.prune import BlockTrainingConfig, QuantizeConfig
from sparse_jax.quant import GridConfig
from sparse_jax.recipe import Export, Pretrain, Prune, Recipe, ReportConfig
from sparse_jax.sparsity.adapters import QuantTrainConfig
from sparse_jax.train import TrainConfig

GRIDS = {
    "asymmetric": GridConfig(bits=4, group=16, symmetric=False),
    "symmetric": GridConfig(bits=4, group=16),
}
SEEDS = (0, 1, 2)
KD = dataclasses.replace(recovery.KD, temperature=1.0)


def get_config(arg: str | None = None):
    variants = {None: embedded, "smoke": smoke, "llama2_7b": llama2_7b}
    return common.to_config(common.pick(variants, arg)())


def chain(
    tune: BlockTrainingConfig,
    steps: int,
    peaks: tuple[float, float],
    seeds=SEEDS,
    grids=tuple(GRIDS),
) -> dict[str, Any]:
    """The dense parent, all stages of every grid and seed: fields of a Recipe."""
    stages: dict[str, Any] = {"dense": Pretrain()}
    for name in grids:
        for seed in seeds:
            stages |= stages_of(name, seed, tune, steps, peaks)
    final = f"stage_two_kd_{grids[0]}_seed{seeds[0]}"
    stages["export"] = Export(parent=final)
    report = ReportConfig(comparisons=questions(grids))
    return {
        "stages": stages,
        "order": tuple(stages),
        "final": final,
        "report": report,
    }


def stages_of(
    name: str,
    seed: int,
    tune: BlockTrainingConfig,
    steps: int,
    peaks: tuple[float, float],
) -> dict[str, Any]:
    """One-shot, stage one, and stage two; its peaks without and with a teacher."""
    end = f"{name}_seed{seed}"
    rounded = QuantizeConfig(grid=GRIDS[name])
    one_shot = Prune(
        parent="dense",
        solver="gqsa",
        pattern="group:16",
        sparsity=0.5,
        quantize=rounded,
        seed=seed,
    )
    own = dataclasses.replace(tune, seed=seed)
    tuned = dataclasses.replace(rounded, tune=own)
    scales = Pretrain(
        parent=f"stage_one_{end}",
        steps=steps,
        peak=peaks[0],
        warmup_steps=0,
        final_ratio=0.0,
        seed=seed,
        quantize=QuantTrainConfig(grid=GRIDS[name], start="parent", train="scales"),
    )
    return {
        f"one_shot_{end}": one_shot,
        f"stage_one_{end}": dataclasses.replace(one_shot, quantize=tuned),
        f"stage_two_{end}": scales,
        f"stage_two_kd_{end}": dataclasses.replace(
            scales, peak=peaks[1], teacher="dense", distill=KD
        ),
    }


def questions(grids=tuple(GRIDS)):
    """What the report answers, for each grid."""
    asked = (
        ("Does training block by block help?", "stage_one", "one_shot"),
        ("Does training the scales through the model help?", "stage_two", "stage_one"),
        ("Does a teacher help it?", "stage_two_kd", "stage_two"),
    )
    return tuple(
        recovery.asks(f"{question} ({name})", f"{method}_{name}", f"{before}_{name}")
        for name in grids
        for question, method, before in asked
    )


TUNE = BlockTrainingConfig(epochs=8, learning_rate=3e-3)
PEAKS = (5e-4, 1e-3)


def embedded() -> Recipe:
    base = common.embedded("gqsa_w4s50")
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, heldout_limit=120_000),
        **chain(TUNE, 300, PEAKS),
    )


def smoke() -> Recipe:
    short = dataclasses.replace(TUNE, epochs=1)
    fields = chain(short, 20, PEAKS, seeds=(0,))
    return dataclasses.replace(common.shortened(embedded()), **fields)


def llama2_7b() -> Recipe:
    tune = BlockTrainingConfig(epochs=2, learning_rate=2e-5, scale_rate=5.0)
    base = common.embedded("gqsa_w4s50")
    web = SourceConfig(path="data/slimpajama/*.jsonl.gz", weight=1.0)
    return dataclasses.replace(
        base,
        name="gqsa_w4s50_llama2_7b",
        model=sizes.get("llama2_7b"),
        compute=Compute(dtype="bfloat16", remat="block"),
        mesh=MeshConfig(fsdp=8),
        data=DataConfig(sources={"web": web}, vocab_size=32_000),
        train=TrainConfig(
            steps=round(2e12 / (32 * 4096)),  # of a dense model without --config.init
            batch_size=32,
            seq_len=4096,
            checkpoint_every=100,
        ),
        prune=dataclasses.replace(base.prune, samples=4096, sample_length=2048),
        **chain(tune, 128, (2e-5, 2e-5)),
    )
