"""What the comparisons of retraining methods share: the methods and their questions.

Every method of one comparison retrains one dense parent for as many steps; a name in
`stages` is `<method>_<pattern>_seed<N>`, where the seed draws the order of the data.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from configs import common
from sparse_jax.recipe import Comparison, Pretrain, Prune, Recipe, ReportConfig
from sparse_jax.sparsity.adapters import LowRankConfig
from sparse_jax.train import AdaptiveConfig, DistillConfig, PrunedDecayConfig

PARENT_STEPS, STEPS = 4000, 400
"""Of the embedded parent, and of every retraining: a tenth of its tokens."""

PATTERNS = {
    "2of4": ("2:4", 0.5),
    "5of16": ("5:16", 0.6875),
    "u70": ("unstructured", 0.7),
    "u80": ("unstructured", 0.8),
    "u90": ("unstructured", 0.9),
}
"""Name in a stage's name -> pattern and sparsity."""

TRIED = (0.5, 1.0, 2.0)
"""Times the peak that was chosen: the trials behind every learning rate."""

# AST's weights for small models: the smaller the student, the more it learns from the
# teacher.
KD = DistillConfig(ce_weight=1 / 3, kl_weight=2 / 3, temperature=2.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One way to retrain.

    Attributes:
      rate: the method whose learning rate it has: itself, unless it is a variant that
        differs from that method in one thing.
      start: name in `Setting.starts` of the pruning it begins with; None = the parent.
      distill: what is learned from `teacher`; None = nothing.
      teacher: stage; "dense_control" stands for the one with the same seed.
      decay: of pruned weights; None = none.
      adaptive: fields of the moving masks but their pattern; None = masks stay.
      fields: others of the stage.
    """

    rate: str
    start: str | None = None
    distill: DistillConfig | None = None
    teacher: str = "dense"
    decay: PrunedDecayConfig | None = None
    adaptive: dict[str, Any] | None = None
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What all stages of a comparison have in common.

    Attributes:
      base: recipe with data and training of the parent.
      parent: stage that makes the dense parent.
      steps: of every retraining.
      methods: name -> method.
      control_peak: learning rate of the dense control.
      peaks: pattern -> `Method.rate` -> learning rate.
      starts: name of a pruning of the parent -> fields of its stage.
    """

    base: Recipe
    parent: Any = Pretrain()
    steps: int
    methods: dict[str, Method]
    control_peak: float
    peaks: dict[str, dict[str, float]]
    starts: dict[str, dict[str, Any]] = dataclasses.field(
        default_factory=lambda: {"one_shot": {}}
    )


def embedded(name: str) -> Recipe:
    """A small model on the embedded corpus, trained until it is worth distilling."""
    base = common.embedded(name)
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, heldout_limit=120_000),
        train=dataclasses.replace(base.train, steps=PARENT_STEPS),
    )


def papers_methods(steps: int) -> dict[str, Method]:
    """The methods of the papers, and variants of AST.

    `fixed_mask` is the main paper's recipe (arXiv 2405.03594); `sr_ste` 2102.04010;
    `dpf` 2006.07253; `gradual_magnitude` 1710.01878; `ast` and `ast_slorb` 2407.20584;
    `cast` 2509.25996.
    """
    # lambda comes from a coarse search on one seed; the papers' suits weights and
    # gradients of other sizes.
    anneal = decay("ast", 2e-2, steps // 4)
    ast = Method(rate="ast", distill=KD, decay=anneal, adaptive={})
    return {
        "fixed_mask": Method(rate="fixed_mask", start="one_shot"),
        "fixed_mask_kd": Method(rate="fixed_mask_kd", start="one_shot", distill=KD),
        "sr_ste": Method(rate="sr_ste", decay=decay("sr_ste", 2e-2), adaptive={}),
        "dpf": Method(rate="dpf", adaptive={}),
        "gradual_magnitude": Method(
            rate="gradual_magnitude",
            adaptive={"mode": "fixed", "ramp_steps": steps // 2},
        ),
        "ast": ast,
        "ast_no_kd": dataclasses.replace(ast, distill=None),
        "ast_static": dataclasses.replace(ast, decay=decay("ast", 2e-2)),
        "ast_slorb": dataclasses.replace(ast, fields={"low_rank": LowRankConfig()}),
        "ast_control_teacher": dataclasses.replace(ast, teacher="dense_control"),
        "cast": Method(
            rate="cast",
            distill=KD,
            decay=decay("cast", 2e-2),
            adaptive={"mode": "dense"},
            fields={"learned_scales": True},
        ),
    }


def decay(rule, peak, rise_steps=0) -> PrunedDecayConfig:
    return PrunedDecayConfig(rule=rule, peak=peak, rise_steps=rise_steps)


def asks(question: str, method: str, baseline: str) -> Comparison:
    return Comparison(question=question, method=method, baseline=baseline)


PAPERS_QUESTIONS = (
    asks("Does a teacher help a fixed mask?", "fixed_mask_kd", "fixed_mask"),
    asks("Does a teacher help AST?", "ast", "ast_no_kd"),
    asks("Do moving masks help, with a teacher?", "ast", "fixed_mask_kd"),
    asks("Do moving masks help, without a teacher?", "sr_ste", "fixed_mask"),
    asks("Does the decay of pruned weights help?", "sr_ste", "dpf"),
    asks("Does annealing the decay help?", "ast", "ast_static"),
    asks("Does the low-rank term help?", "ast_slorb", "ast"),
    asks(
        "Is the dense control a better teacher than the parent?",
        "ast_control_teacher",
        "ast",
    ),
)


def compared(
    setting: Setting,
    patterns: Iterable[str],
    seeds: Iterable[int],
    names: Iterable[str] | None = None,
) -> dict[str, Any]:
    """The parent, its control, and these methods, or all, on every pattern and seed."""
    seeds = tuple(seeds)
    stages: dict[str, Any] = {"dense": setting.parent}
    for seed in seeds:
        stages[f"dense_control_seed{seed}"] = _control(setting, seed)
    for pattern in patterns:
        used = [setting.methods[name] for name in names or setting.methods]
        stages |= _pruned(setting, used, pattern)
        for name in names or setting.methods:
            for seed in seeds:
                stage = retrain(setting, setting.methods[name], pattern, seed)
                stages[f"{name}_{pattern}_seed{seed}"] = stage
    return stages


def tuned(setting: Setting, patterns: Iterable[str]) -> dict[str, Any]:
    """Each method but the variants at every rate of `TRIED`, on the recipe's seed."""
    stages: dict[str, Any] = {"dense": setting.parent}
    for factor in TRIED:
        peak = factor * setting.control_peak
        trial = dataclasses.replace(setting, control_peak=peak)
        stages[f"dense_control_{_rate(peak)}"] = _control(trial, None)
    for pattern in patterns:
        own = {n: m for n, m in setting.methods.items() if m.rate == n}
        stages |= _pruned(setting, list(own.values()), pattern)
        for name, method in own.items():
            for factor in TRIED:
                peak = factor * setting.peaks[pattern][name]
                stage = retrain(setting, method, pattern, None, peak)
                stages[f"{name}_{pattern}_{_rate(peak)}"] = stage
    return stages


def _rate(peak: float) -> str:
    """A learning rate as a part of a stage's name: lr250 is 2.5e-4."""
    return f"lr{round(1e6 * peak)}"


def _pruned(setting: Setting, methods: list[Method], pattern: str) -> dict[str, Prune]:
    """SparseGPT's, and those that the methods begin with."""
    kind, sparsity = PATTERNS[pattern]
    shape = {"parent": "dense", "pattern": kind, "sparsity": sparsity}
    used = {"one_shot"} | {method.start for method in methods}
    return {
        f"{name}_{pattern}": Prune(**shape, **fields)
        for name, fields in setting.starts.items()
        if name in used
    }


def _control(setting: Setting, seed: int | None) -> Pretrain:
    peak = setting.control_peak
    return Pretrain(
        parent="dense", steps=setting.steps, peak=peak, warmup_steps=0, seed=seed
    )


def retrain(
    setting: Setting,
    method: Method,
    pattern: str,
    seed: int | None,
    peak: float | None = None,
) -> Pretrain:
    """The stage of a method; its learning rate is `peak`, or the setting's."""
    fields = dict(method.fields)
    if method.start is not None:
        fields["parent"] = f"{method.start}_{pattern}"
    if method.adaptive is not None:
        kind, sparsity = PATTERNS[pattern]
        masks = {"pattern": kind, "sparsity": sparsity} | method.adaptive
        fields["adaptive"] = AdaptiveConfig(**masks)
    if method.distill is not None:
        own = f"_seed{seed}" if method.teacher == "dense_control" else ""
        fields |= {"teacher": method.teacher + own, "distill": method.distill}
    peak = peak or setting.peaks[pattern][method.rate]
    stage = dataclasses.replace(_control(setting, seed), peak=peak)
    return dataclasses.replace(stage, pruned_decay=method.decay, **fields)


def recipe(
    setting: Setting, stages: dict[str, Any], questions: tuple[Comparison, ...] = ()
) -> Recipe:
    """The setting's recipe with these stages; the last one is the final model."""
    return dataclasses.replace(
        setting.base,
        stages=stages,
        order=tuple(stages),
        final=list(stages)[-1],
        report=ReportConfig(comparisons=questions),
    )
