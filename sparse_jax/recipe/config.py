"""A recipe: shared settings, and the stages that turn one model into the next."""

import dataclasses
from typing import ClassVar, Literal

from sparse_jax.data import DataConfig
from sparse_jax.evaluate import EvaluateConfig
from sparse_jax.mesh import MeshConfig
from sparse_jax.models import Compute, LlamaConfig
from sparse_jax.prune import AllocationConfig, PruneConfig
from sparse_jax.recipe.report_config import ReportConfig
from sparse_jax.sparsity import Pattern
from sparse_jax.sparsity.adapters import LowRankConfig
from sparse_jax.train import (
    AdaptiveConfig,
    DistillConfig,
    PrunedDecayConfig,
    TrainConfig,
)
from sparse_jax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Init:
    """Takes a Hugging Face directory as the dense model.

    Attributes:
      path: the directory.
      enabled: False leaves the stage out.
    """

    kind: ClassVar[str] = "init"
    parent: ClassVar[None] = None
    path: str
    enabled: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Trains on the data; pruned weights of the parent stay at zero.

    The optimizer starts afresh, and the data goes on where the parent's ended. Fields
    that are None are those of `Recipe.train`.

    Attributes:
      parent: the stage that gives the model; None = random weights.
      model: architecture of random weights; None = `Recipe.model`.
      steps: optimizer steps.
      peak: highest learning rate.
      warmup_steps: steps of linear warm-up.
      final_ratio: learning rate of the last step over the peak.
      seed: of the order of the data; None = `Recipe.seed`.
      teacher: an earlier stage whose model is the frozen teacher of `distill`.
      distill: what is learned from it.
      adaptive: the masks are drawn again while the weights train; the stage then needs
        no pruned parent.
      pruned_decay: pulls pruned weights to zero while masks move.
      low_rank: adds a trained low-rank term beside every pruned matrix (SLoRB).
      learned_scales: two trained scales per output, folded in at the end (CAST).
      enabled: False leaves the stage out.
    """

    kind: ClassVar[str] = "pretrain"
    parent: str | None = None
    model: LlamaConfig | None = None
    steps: int | None = None
    peak: float | None = None
    warmup_steps: int | None = None
    final_ratio: float | None = None
    seed: int | None = None
    teacher: str | None = None
    distill: DistillConfig | None = None
    adaptive: AdaptiveConfig | None = None
    pruned_decay: PrunedDecayConfig | None = None
    low_rank: LowRankConfig | None = None
    learned_scales: bool = False
    enabled: bool = True

    def __post_init__(self):
        if (self.teacher is None) != (self.distill is None):
            raise InputError(
                "teacher and distill belong together: set both, or neither"
            )
        fixed = self.adaptive is None or self.adaptive.mode == "fixed"
        if fixed and self.pruned_decay is not None:
            raise InputError(
                "pruned_decay pulls weights whose masks may still change; set "
                "adaptive, with a mode other than 'fixed'"
            )
        if self.low_rank and self.adaptive and self.adaptive.mode == "dense":
            raise InputError(
                "low_rank stands in for pruned weights, which adaptive.mode 'dense' "
                "still uses; set the mode to 'straight_through', or leave low_rank out"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune:
    """Prunes in one shot. Fields that are None are those of `Recipe.prune`.

    Attributes:
      parent: the stage that gives the model.
      sparsity: of every pruned matrix.
      solver: name in `sparse_jax.solvers`.
      pattern: shape of the zeros.
      allocation: how the sparsity is spread over the matrices.
      enabled: False leaves the stage out.
    """

    kind: ClassVar[str] = "prune"
    parent: str
    sparsity: float | None = None
    solver: str | None = None
    pattern: str | None = None
    allocation: AllocationConfig | None = None
    enabled: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneShot:
    """Compares solvers and sparsities on one model, without training; a side branch.

    Attributes:
      parent: the stage that gives the model.
      solvers: names in `sparse_jax.solvers`.
      sparsities: of every pruned matrix.
      enabled: False leaves the stage out.
    """

    kind: ClassVar[str] = "one_shot"
    parent: str
    solvers: tuple[str, ...] = ("magnitude", "wanda", "sparsegpt")
    sparsities: tuple[float, ...] = (0.5, 0.7, 0.8, 0.9)
    enabled: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Writes a Hugging Face directory for other tools.

    Attributes:
      parent: the stage that gives the model.
      dtype: of the stored weights.
      enabled: False leaves the stage out.
    """

    kind: ClassVar[str] = "export"
    parent: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    enabled: bool = True


Stage = Init | Pretrain | Prune | OneShot | Export


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run.

    Attributes:
      name: of the recipe; a working directory belongs to one.
      init: Hugging Face directory to start from; the stages with neither a parent nor
        an architecture of their own then load it instead of training random weights.
      model: architecture of random weights.
      stages: name -> stage. A name is a folder of the working directory.
      order: the stages' names in the order they run.
      final: the stage that the working directory stands for as a model.
      seed: of the random weights and of the order of the data.
      compute: dtype, remat and chunk sizes.
      mesh: devices.
      data: what to train and evaluate on.
      train: settings shared by the pretrain stages.
      prune: settings shared by the prune and one_shot stages.
      evaluate: every model is evaluated on all held-out text.
      report: what the report adds; no stage depends on it.
    """

    name: str
    model: LlamaConfig
    stages: dict[str, Stage]
    order: tuple[str, ...]
    final: str
    init: str | None = None
    seed: int = 0
    compute: Compute = Compute()
    mesh: MeshConfig = MeshConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    prune: PruneConfig = PruneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()

    def __post_init__(self):
        if sorted(self.order) != sorted(self.stages):
            raise InputError(
                f"order must name every stage once: {sorted(self.stages)}, "
                f"got {list(self.order)}"
            )
        seen: set[str] = set()
        for name in self.order:
            stage = self.stages[name]
            if not name.replace("_", "").isalnum():
                raise InputError(
                    f"stages.{name}: a stage's name is a folder; use letters, digits, _"
                )
            roots = {None} if isinstance(stage, Init | Pretrain) else set()
            if stage.enabled and stage.parent not in roots | seen:
                raise InputError(
                    f"stages.{name}.parent must be an enabled stage that runs before "
                    f"it, one of {sorted(seen)}, got {stage.parent!r}"
                )
            teacher = getattr(stage, "teacher", None)
            makers = [
                n for n in seen if self.stages[n].kind not in ("one_shot", "export")
            ]
            if stage.enabled and teacher is not None and teacher not in makers:
                raise InputError(
                    f"stages.{name}.teacher must be an enabled stage that makes a "
                    f"model before it, one of {sorted(makers)}, got {teacher!r}"
                )
            if stage.enabled:
                seen.add(name)
        if self.final not in seen:
            raise InputError(
                f"final must be an enabled stage, one of {sorted(seen)}, "
                f"got {self.final!r}"
            )

    def enabled_stages(self) -> dict[str, Stage]:
        """The stages to run, in order, with `init` put in place of the roots."""
        stages = {}
        for name in self.order:
            stage = self.stages[name]
            if not stage.enabled:
                continue
            from_init = stage.parent is None and getattr(stage, "model", None) is None
            if self.init is not None and from_init:
                stage = Init(path=self.init)
            stages[name] = stage
        return stages

    def data_config(self) -> DataConfig:
        """The data, tokenised by the initial model's tokenizer when there is one."""
        if self.init is not None and self.data.tokenizer == "bpe":
            return dataclasses.replace(self.data, tokenizer=self.init)
        return self.data

    def train_config(self, stage: Pretrain) -> TrainConfig:
        """The shared training settings with the stage's own put in."""
        schedule = _override(
            self.train.schedule,
            peak=stage.peak,
            warmup_steps=stage.warmup_steps,
            final_ratio=stage.final_ratio,
        )
        optimizer = _override(self.train.optimizer, pruned_decay=stage.pruned_decay)
        options = {"schedule": schedule, "optimizer": optimizer}
        return _override(self.train, steps=stage.steps, **options)

    def mask_rules(self, stage: Pretrain) -> list[tuple[str, Pattern | None]]:
        """Which matrices a stage masks: those of `Recipe.prune`.

        Where the masks move they have the stage's own pattern.
        """
        if stage.adaptive is None:
            return self.prune.pattern_rules()
        # A sparsity of None is the parent's, matrix by matrix: `train.Adaptive` has it.
        adaptive = stage.adaptive
        own = _override(
            self.prune, pattern=adaptive.pattern, sparsity=adaptive.sparsity
        )
        return own.pattern_rules()

    def prune_config(self, stage: Prune) -> PruneConfig:
        """The shared pruning settings with the stage's own put in."""
        return _override(
            self.prune,
            sparsity=stage.sparsity,
            solver=stage.solver,
            pattern=stage.pattern,
            allocation=stage.allocation,
        )


def _override(config, **fields):
    return dataclasses.replace(
        config, **{name: value for name, value in fields.items() if value is not None}
    )
