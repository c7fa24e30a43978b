"""What brings a sparse model back: masks, teachers, decay, low rank, on equal tokens.

Every method retrains the same dense parent for the same batches, with the peak learning
rate that was best of three on one seed for it (`:tune`), the dense control's included.
Masks are 2:4 and 70 % unstructured; three seeds draw the order of the data.

    python launch/train.py --config=configs/recovery_ablation.py
        0.66M parameters on the embedded corpus, 2 CPU cores, no network. The parent
        sees ten times the tokens of a retraining. Killed, the same command goes on.
    python launch/train.py --config=configs/recovery_ablation.py:full
        80 %, 90 % and 5:16 as well, for the fixed mask and the three best methods.
    python launch/train.py --config=configs/recovery_ablation.py:tune
        The trials behind the learning rates: three for each method, one seed, 2:4.
    python launch/train.py --config=configs/recovery_ablation.py:smoke
        All stages for a few steps, two seeds; its numbers mean nothing.

Rows: `one_shot` (SparseGPT), `fixed_mask` (the main paper's recipe, arXiv 2405.03594),
`fixed_mask_kd`, `sr_ste` (2102.04010), `dpf` (2006.07253), `gradual_magnitude`
(1710.01878), `ast` and `ast_slorb` (2407.20584), `cast` (2509.25996), `dense_control`;
beside them AST without its teacher, without its annealing, and with the dense control
in place of the parent as its teacher.
"""

import dataclasses
from typing import Any

from configs import common
from sparse_jax.recipe import Comparison, Pretrain, Prune, Recipe, ReportConfig
from sparse_jax.sparsity.adapters import LowRankConfig
from sparse_jax.train import AdaptiveConfig, DistillConfig, PrunedDecayConfig

PARENT_STEPS, STEPS = 4000, 400

PATTERNS = {"2of4": ("2:4", 0.5), "u70": ("unstructured", 0.7)}
MORE_PATTERNS = {
    "u80": ("unstructured", 0.8),
    "u90": ("unstructured", 0.9),
    "5of16": ("5:16", 0.5),
}
SEEDS = (0, 1, 2)

# AST's weights for small models: the smaller the student, the more it learns from the
# teacher.
KD = {
    "teacher": "dense",
    "distill": DistillConfig(ce_weight=1 / 3, kl_weight=2 / 3, temperature=2.0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One way to retrain.

    Attributes:
      peak: tuned learning rate.
      variant: differs from another method in one thing, and takes over its rate.
      pruned: starts from the pruned parent, whose masks stay.
      kd: learns from the dense parent.
      decay: of pruned weights; None = none.
      adaptive: fields of the moving masks, but for their pattern.
      fields: others of the stage.
    """

    peak: float
    variant: bool = False
    pruned: bool = False
    kd: bool = False
    decay: PrunedDecayConfig | None = None
    adaptive: dict[str, Any] = dataclasses.field(default_factory=dict)
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


def decay(rule, peak, rise_steps=0):
    return PrunedDecayConfig(rule=rule, peak=peak, rise_steps=rise_steps)


def methods(steps: int) -> dict[str, Method]:
    # lambda comes from a coarse search on one seed; the papers' suits weights and
    # gradients of other sizes.
    anneal = decay("ast", 2e-2, steps // 4)
    static = decay("ast", 2e-2)
    ramp = {"mode": "fixed", "ramp_steps": steps // 2}
    slorb = {"low_rank": LowRankConfig()}
    dense = {"mode": "dense"}
    return {
        "fixed_mask": Method(peak=5e-4, pruned=True),
        "fixed_mask_kd": Method(peak=2e-3, pruned=True, kd=True),
        "sr_ste": Method(peak=1e-3, decay=decay("sr_ste", 2e-2)),
        "dpf": Method(peak=5e-4),
        "gradual_magnitude": Method(peak=1e-3, adaptive=ramp),
        "ast": Method(peak=2.5e-4, kd=True, decay=anneal),
        "ast_no_kd": Method(peak=2.5e-4, variant=True, decay=anneal),
        "ast_static": Method(peak=2.5e-4, variant=True, kd=True, decay=static),
        "ast_slorb": Method(
            peak=2.5e-4, variant=True, kd=True, decay=anneal, fields=slorb
        ),
        "ast_control_teacher": Method(
            peak=2.5e-4,
            variant=True,
            kd=True,
            decay=anneal,
            fields={"teacher": "dense_control"},
        ),
        "cast": Method(
            peak=5e-4,
            kd=True,
            decay=decay("cast", 2e-2),
            adaptive=dense,
            fields={"learned_scales": True},
        ),
    }


CONTROL_PEAK = 1.25e-4
TRIED = (0.5, 1.0, 2.0)  # times the peak that was chosen

QUESTIONS = (
    Comparison(
        question="Does a teacher help a fixed mask?",
        method="fixed_mask_kd",
        baseline="fixed_mask",
    ),
    Comparison(question="Does a teacher help AST?", method="ast", baseline="ast_no_kd"),
    Comparison(
        question="Do moving masks help, with a teacher?",
        method="ast",
        baseline="fixed_mask_kd",
    ),
    Comparison(
        question="Do moving masks help, without a teacher?",
        method="sr_ste",
        baseline="fixed_mask",
    ),
    Comparison(
        question="Does the decay of pruned weights help?",
        method="sr_ste",
        baseline="dpf",
    ),
    Comparison(
        question="Does annealing the decay help?", method="ast", baseline="ast_static"
    ),
    Comparison(
        question="Does the low-rank term help?", method="ast_slorb", baseline="ast"
    ),
    Comparison(
        question="Is the dense control a better teacher than the parent?",
        method="ast_control_teacher",
        baseline="ast",
    ),
)


def get_config(arg: str | None = None):
    variants = {None: embedded, "full": full, "tune": tune, "smoke": smoke}
    return common.to_config(common.pick(variants, arg)())


def embedded() -> Recipe:
    return recipe("recovery_ablation", compared(PATTERNS, SEEDS))


def full() -> Recipe:
    best = ("fixed_mask", "fixed_mask_kd", "ast", "ast_slorb")
    stages = compared(PATTERNS, SEEDS) | compared(MORE_PATTERNS, SEEDS, best)
    return recipe("recovery_ablation_full", stages)


def tune() -> Recipe:
    """Each method at every rate of `TRIED`, on the first seed and 2:4."""
    (name, pattern), *_ = PATTERNS.items()
    stages = {"dense": Pretrain(), f"one_shot_{name}": one_shot(pattern)}
    for factor in TRIED:
        peak = factor * CONTROL_PEAK
        stages[f"dense_control_{rate(peak)}"] = control(peak, None)
        for key, method in methods(STEPS).items():
            if method.variant:
                continue
            tried = dataclasses.replace(method, peak=factor * method.peak)
            stages[f"{key}_{rate(tried.peak)}"] = retrain(tried, name, pattern, None)
    found = recipe("recovery_ablation_tune", stages)
    return dataclasses.replace(found, report=ReportConfig())


def rate(peak: float) -> str:
    """A learning rate as a part of a stage's name: lr250 is 2.5e-4."""
    return f"lr{round(1e6 * peak)}"


def smoke() -> Recipe:
    small = recipe("recovery_ablation_smoke", compared(PATTERNS, (0, 1), steps=20))
    return dataclasses.replace(
        small,
        data=dataclasses.replace(small.data, heldout_limit=20_000),
        train=dataclasses.replace(small.train, steps=20, checkpoint_every=10),
        prune=dataclasses.replace(small.prune, samples=16),
    )


def recipe(name: str, stages: dict[str, Any]) -> Recipe:
    base = common.embedded(name)
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, heldout_limit=120_000),
        train=dataclasses.replace(base.train, steps=PARENT_STEPS),
        report=ReportConfig(comparisons=QUESTIONS),
        stages=stages,
        order=tuple(stages),
        final=list(stages)[-1],
    )


def compared(patterns, seeds, names=None, steps=STEPS) -> dict[str, Any]:
    """The parent, and every method on every pattern and seed."""
    stages: dict[str, Any] = {"dense": Pretrain()}
    for seed in seeds:
        stages[f"dense_control_seed{seed}"] = control(CONTROL_PEAK, seed, steps)
    for name, pattern in patterns.items():
        stages[f"one_shot_{name}"] = one_shot(pattern)
        for key, method in methods(steps).items():
            if names is not None and key not in names:
                continue
            for seed in seeds:
                stage = retrain(method, name, pattern, seed, steps)
                stages[f"{key}_{name}_seed{seed}"] = stage
    return stages


def one_shot(pattern) -> Prune:
    return Prune(parent="dense", pattern=pattern[0], sparsity=pattern[1])


def control(peak, seed, steps=STEPS) -> Pretrain:
    options = {"steps": steps, "peak": peak, "warmup_steps": 0, "seed": seed}
    return Pretrain(parent="dense", **options)


def retrain(method: Method, name, pattern, seed, steps=STEPS) -> Pretrain:
    stage = control(method.peak, seed, steps)
    fields = dict(method.fields)
    if method.pruned:
        fields["parent"] = f"one_shot_{name}"
    else:
        shape = {"pattern": pattern[0], "sparsity": pattern[1]}
        fields["adaptive"] = AdaptiveConfig(**shape, **method.adaptive)
    if method.kd:
        fields |= KD
    if "teacher" in method.fields:
        fields["teacher"] = f"{method.fields['teacher']}_seed{seed}"
    return dataclasses.replace(stage, pruned_decay=method.decay, **fields)
