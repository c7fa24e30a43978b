"""Adaptive 2:4 training with distillation, after AST (arXiv 2407.20584).

A dense model is trained, then kept at 2:4 by masks that are drawn again every ten
steps, under an annealed decay of what is pruned, while it learns from its dense self;
once with SLoRB's low-rank term, too. Beside them SparseGPT, its mask trained on as it
is, and the dense control on the same batches.

    python launch/train.py --config=configs/ast_2of4.py
        0.66M parameters on the embedded corpus, 2 CPU cores, no network: minutes.
    python launch/train.py --config=configs/ast_2of4.py:smoke
        The same stages in under a minute, for CI; its numbers mean nothing.
    python launch/train.py --config=configs/ast_2of4.py:llama2_7b \
        --config.init=DIR --config.data.sources.cc.path=... (seven sources)
        The paper's run: 15,000 steps of 128 x 4096 tokens of RedPajama, 7.9 B in all.

`configs/recovery_ablation.py` compares AST with its rivals on equal tokens.
"""

import dataclasses

from configs import common
from sparse_jax.data import DataConfig, SourceConfig
from sparse_jax.mesh import MeshConfig
from sparse_jax.models import Compute, sizes
from sparse_jax.recipe import Export, Pretrain, Prune, Recipe
from sparse_jax.sparsity.adapters import LowRankConfig
from sparse_jax.train import (
    AdaptiveConfig,
    DistillConfig,
    OptimizerConfig,
    PrunedDecayConfig,
    ScheduleConfig,
    TrainConfig,
)

# Shares of RedPajama's domains (the paper's code weighs them anew as it trains).
REDPAJAMA = {
    "cc": 0.67,
    "c4": 0.15,
    "github": 0.045,
    "books": 0.045,
    "wikipedia": 0.045,
    "arxiv": 0.025,
    "stackexchange": 0.02,
}


def get_config(arg: str | None = None):
    variants = {None: embedded, "smoke": smoke, "llama2_7b": llama2_7b}
    return common.to_config(common.pick(variants, arg)())


def stages(
    steps: int,
    peak: float,
    fixed_peak: float,
    control_peak: float,
    warmup_steps: int,
    **method,
) -> dict:
    """The dense parent, its sparse children, and the control."""
    schedule = {"steps": steps, "warmup_steps": warmup_steps}
    ast = Pretrain(
        parent="dense",
        peak=peak,
        teacher="dense",
        adaptive=AdaptiveConfig(pattern="2:4", every=10),
        **schedule,
        **method,
    )
    control = Pretrain(parent="dense", peak=control_peak, **schedule)
    return {
        "dense": Pretrain(),
        "one_shot": Prune(parent="dense", pattern="2:4", sparsity=0.5),
        "dense_control": control,
        "fixed_mask": Pretrain(parent="one_shot", peak=fixed_peak, **schedule),
        "ast": ast,
        "ast_slorb": dataclasses.replace(ast, low_rank=LowRankConfig(group=16)),
        "export": Export(parent="ast"),
    }


def embedded() -> Recipe:
    base = common.embedded("ast_2of4")
    chain = stages(
        steps=400,
        peak=2.5e-4,
        fixed_peak=5e-4,
        control_peak=1.25e-4,
        warmup_steps=0,
        distill=DistillConfig(ce_weight=1 / 3, kl_weight=2 / 3, temperature=2.0),
        pruned_decay=PrunedDecayConfig(rule="ast", peak=2e-2, rise_steps=100),
    )
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, heldout_limit=120_000),
        train=dataclasses.replace(base.train, steps=4000),
        stages=chain,
        order=tuple(chain),
        final="ast",
    )


def smoke() -> Recipe:
    recipe = embedded()
    short = {
        name: dataclasses.replace(stage, steps=20, **_rise(stage))
        if isinstance(stage, Pretrain)
        else stage
        for name, stage in recipe.stages.items()
    }
    return dataclasses.replace(common.shortened(recipe), stages=short)


def _rise(stage: Pretrain) -> dict:
    if stage.pruned_decay is None:
        return {}
    return {"pruned_decay": dataclasses.replace(stage.pruned_decay, rise_steps=5)}


def llama2_7b() -> Recipe:
    """The paper's hyper-parameters; as published, but for the order of the domains."""
    chain = stages(
        steps=15_000,
        peak=2e-5,
        fixed_peak=2e-5,
        control_peak=2e-5,
        warmup_steps=500,
        distill=DistillConfig(ce_weight=1.0, kl_weight=0.5, temperature=2.0),
        pruned_decay=PrunedDecayConfig(rule="ast", peak=6e-5, rise_steps=3000),
    )
    sources = {
        name: SourceConfig(path=f"data/redpajama/{name}/*.jsonl.gz", weight=weight)
        for name, weight in REDPAJAMA.items()
    }
    base = common.embedded("ast_2of4")
    return dataclasses.replace(
        base,
        name="ast_2of4_llama2_7b",
        model=sizes.get("llama2_7b"),
        compute=Compute(dtype="bfloat16", remat="block"),
        mesh=MeshConfig(fsdp=64),
        data=DataConfig(sources=sources, vocab_size=32_000),
        train=TrainConfig(
            steps=round(2e12 / (128 * 4096)),  # of a dense model without --config.init
            batch_size=128,
            seq_len=4096,
            optimizer=OptimizerConfig(weight_decay=0.0),
            schedule=ScheduleConfig(kind="cosine", peak=2e-5, final_ratio=0.1),
            checkpoint_every=500,
        ),
        prune=dataclasses.replace(base.prune, samples=128, sample_length=2048),
        stages=chain,
        order=tuple(chain),
        final="ast",
    )
