"""Sparse fine-tuning with SquareHead: any model, one task; zeros stay zeros.

    python launch/train.py --config=configs/finetune.py:gsm8k \
        --config.model=SPARSE --config.dense=DENSE --config.data=DIR

SPARSE is a Hugging Face, run or stage directory with exact zeros. DENSE is the dense
model from which the teacher is fine-tuned first, by the same recipe; for a dense
`--config.model` it may be left out. DIR holds the task's JSON lines or Parquet files.

Variants: `:chat` (UltraChat-200k), `:open_platypus`, `:dolphin`, `:openorca`, `:dolly`,
`:dolly_hhrlhf` (instructions), `:evol_codealpaca` and `:mbpp` (code), `:gsm8k`
(arithmetic), `:cnn_dailymail` (summaries).

    --config.teacher=DIR           a dense model that is fine-tuned already
    --config.use_teacher=False     no teacher
    --config.lora.rank=16          of `:gsm8k_lora`, ...: adapters under the masks train
    --config.template=FILE         Jinja; or chat, llama2, plain
    --config.train.steps=374 --config.train.schedule.peak=8e-5
    --config.max_seq_len=1024      where the model allows fewer tokens than a row has

Learning rates, lengths, schedules, clipping and weights are those that were published
at 70 %, chat's and code's for Llama-2 (arXiv 2405.03594), GSM8K's for MPT-7B
(2310.06927); where no number was, it is a choice, marked so. Held-out responses are
judged in rows as long as those of training.
Steps are about 4 epochs of GSM8K and 2 of chat and code with Llama-2's tokenizer, and
2,000 for the others; the report says how many rows an epoch has. Expected: a small gap
of `finetuned` to `dense_control`, in loss per response token.

Time: that of pretraining on as many tokens, and more with a teacher, whose own
fine-tuning comes first (docs/finetuning.md has the seconds of a small model).
"""

import dataclasses

from configs import common
from sparse_jax.data.tasks import TASKS
from sparse_jax.evaluate import EvaluateConfig
from sparse_jax.recipe import FinetuneJob
from sparse_jax.sparsity.adapters import LoraConfig
from sparse_jax.train import OptimizerConfig, ScheduleConfig, TrainConfig

# Task -> steps, tokens of a row, learning rate of the sparse model, and of the teacher.
PUBLISHED = {
    "gsm8k": (374, 512, 8e-5, 3e-5),  # the teacher's rate is a choice
    "chat": (7_600, 2048, 3e-4, 1e-4),  # and so are the rows here, and the schedule
    "evol_codealpaca": (3_500, 1024, 5e-4, 1e-4),
}
CHOSEN = (2_000, 2048, 3e-4, 1e-4)  # of the others: as for chat
CLIPS = {"chat": 2.0}  # of the others: none
SUFFIX = "_lora"


def get_config(arg: str | None = None):
    variants = {task: job(task) for task in TASKS}
    variants |= {f"{t}{SUFFIX}": with_lora(j) for t, j in [*variants.items()]}
    return common.to_config(common.pick(variants, arg or "gsm8k"))


def job(task: str) -> FinetuneJob:
    steps, seq_len, peak, teacher_peak = PUBLISHED.get(task, CHOSEN)
    return FinetuneJob(
        name=f"finetune_{task}",
        task=task,
        # A conversation may be cut; half an answer to a sum teaches nothing.
        too_long="drop" if task == "gsm8k" else "truncate",
        teacher_peak=teacher_peak,
        train=TrainConfig(
            steps=steps,
            batch_size=32,
            seq_len=seq_len,
            schedule=ScheduleConfig(
                kind="cosine" if task == "evol_codealpaca" else "linear",
                peak=peak,
                warmup_steps=20,
                final_ratio=0.0,
            ),
            optimizer=OptimizerConfig(
                beta2=0.999, weight_decay=0.0, clip_norm=CLIPS.get(task)
            ),
        ),
        evaluate=EvaluateConfig(window=seq_len),
    )


def with_lora(full: FinetuneJob) -> FinetuneJob:
    """Low-rank adapters under the masks in place of all kept weights."""
    return dataclasses.replace(full, name=full.name + SUFFIX, lora=LoraConfig())
