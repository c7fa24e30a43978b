"""Four ways to a sparse fine-tuned model, and the transfer from 50 to 70 %, compared.

    python launch/train.py --config=configs/sparse70.py        # the models, once
    python launch/train.py --config=configs/finetune_comparison.py --config.data=DIR
        70 % sparse, GSM8K, Dolly and MBPP, three seeds; `:gsm8k`, `:dolly`, `:mbpp` do
        one of them. DIR holds their JSON lines, see configs/finetune.py.

    --config.run=DIR         another working directory of a sparse pretraining
    :tune                    learning-rate trials: each way at 0.5, 1 and 2 times its
                             rate, one seed; `:tune_gsm8k`, ... one task alone
    :full                    five seeds and 1.2M tokens
    :smoke                   every stage for a few steps

The ways are those of arXiv 2405.03594, see `recipe.finetune_comparison`; each on 297k
tokens (Dolly 148k), without a teacher and with SquareHead from the dense control: the
dense base fine-tuned as long, which is also what every gap is to. The dense base has
seen as many tokens as the sparse one. Where examples are longer than a row their end is
cut.

Stops and goes on run by run. docs/finetuning.md has the tables.
"""

import dataclasses

from configs import common
from sparse_jax.evaluate import EvaluateConfig
from sparse_jax.models import Compute
from sparse_jax.prune import PruneConfig
from sparse_jax.recipe import FinetuneComparison
from sparse_jax.train import OptimizerConfig, ScheduleConfig, TrainConfig

TASKS = {"gsm8k": "gsm8k", "dolly": "dolly_hhrlhf", "mbpp": "mbpp"}
TRIED = (0.5, 1.0, 2.0)
LENGTH = 1024
LENGTHS = {"gsm8k": 512, "mbpp": 512}  # 2 % of their examples are longer
STEPS = {"dolly": 145}  # half an epoch; its rows of 1024 tokens cost twice the time

# Each the best of 1e-3, 2e-3, 4e-3 and 8e-3 on GSM8K, one seed.
PEAKS = {
    "dense_control": 2e-3,
    "finetune_then_prune_kd": 8e-3,
    "prune_while_finetuning": 4e-3,
    "prune_while_finetuning_kd": 8e-3,
    "pruned_base": 4e-3,
    "pruned_base_kd": 8e-3,
    "sparse_pretrained": 4e-3,
    "sparse_pretrained_kd": 8e-3,
    "transfer": 4e-3,
    "transfer_kd": 4e-3,
}


def get_config(arg: str | None = None):
    whole = comparison()
    variants = {
        None: whole,
        "tune": tuned(whole),
        "full": with_steps(whole, 4 * whole.train.steps, seeds=(0, 1, 2, 3, 4)),
        "smoke": smoke(whole),
    }
    for domain in TASKS:
        variants[domain] = only(whole, domain)
        variants[f"tune_{domain}"] = tuned(variants[domain])
    return common.to_config(common.pick(variants, arg))


def comparison() -> FinetuneComparison:
    return FinetuneComparison(
        name="finetune_comparison",
        run="runs/sparse70",
        tasks=TASKS,
        lengths=LENGTHS,
        steps=STEPS,
        peaks=PEAKS,
        max_seq_len=LENGTH,
        too_long="truncate",
        heldout_limit=60_000,
        compute=Compute(scan_unroll=2),
        train=TrainConfig(
            steps=290,  # 296,960 tokens
            batch_size=1,
            seq_len=LENGTH,
            schedule=ScheduleConfig(
                kind="linear", peak=2e-3, warmup_steps=20, final_ratio=0.0
            ),
            optimizer=OptimizerConfig(weight_decay=0.0),
        ),
        prune=PruneConfig(samples=128, sample_length=128),
        evaluate=EvaluateConfig(window=LENGTH, batch_size=4),
    )


def only(whole: FinetuneComparison, domain: str) -> FinetuneComparison:
    """One of its tasks."""
    tasks = {domain: whole.tasks[domain]}  # `lengths` of others do no harm
    return dataclasses.replace(whole, name=f"{whole.name}_{domain}", tasks=tasks)


def tuned(whole: FinetuneComparison) -> FinetuneComparison:
    """Learning-rate trials of all ways."""
    name = f"{whole.name}_tune"
    return dataclasses.replace(whole, name=name, seeds=(0,), tried=TRIED)


def with_steps(whole: FinetuneComparison, steps: int, **fields) -> FinetuneComparison:
    train = dataclasses.replace(whole.train, steps=steps)
    options = {"name": f"{whole.name}_full", "train": train, "steps": {}} | fields
    return dataclasses.replace(whole, **options)


def smoke(whole: FinetuneComparison) -> FinetuneComparison:
    """A few steps of one seed; the numbers mean nothing."""
    short = with_steps(only(whole, "mbpp"), 21, seeds=(0,), heldout_limit=5_000)
    pruning = dataclasses.replace(whole.prune, samples=16)
    return dataclasses.replace(short, name=f"{whole.name}_smoke", prune=pruning)
