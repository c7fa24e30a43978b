"""A recipe: shared settings, and the stages that turn one model into the next."""

import dataclasses
from typing import Any

from sparse_jax.data import DataConfig
from sparse_jax.evaluate import EvaluateConfig
from sparse_jax.mesh import MeshConfig
from sparse_jax.models import Compute, LlamaConfig
from sparse_jax.prune import PruneConfig
from sparse_jax.recipe.report_config import ReportConfig
from sparse_jax.recipe.stage_kinds import (
    NO_MODEL,
    Finetune,
    Init,
    Pretrain,
    Prune,
    Stage,
)
from sparse_jax.sparsity import Pattern
from sparse_jax.sparsity.adapters import LORA_TRAINED
from sparse_jax.train import TrainConfig
from sparse_jax.types import InputError


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
            roots = {None} if type(stage) in (Init, Pretrain) else set()
            if stage.enabled and stage.parent not in roots | seen:
                raise InputError(
                    f"stages.{name}.parent must be an enabled stage that runs before "
                    f"it, one of {sorted(seen)}, got {stage.parent!r}"
                )
            teacher = getattr(stage, "teacher", None)
            makers = [n for n in seen if self.stages[n].kind not in NO_MODEL]
            if stage.enabled and teacher is not None and teacher not in makers:
                raise InputError(
                    f"stages.{name}.teacher must be an enabled stage that makes a "
                    f"model before it, one of {sorted(makers)}, got {teacher!r}"
                )
            for field in ("sources", "calibrate_on"):
                for source in getattr(stage, field, ()):
                    if source not in self.data.sources:
                        raise InputError(
                            f"stages.{name}.{field} must be of data.sources, "
                            f"{sorted(self.data.sources)}, got {source!r}"
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
        trained = LORA_TRAINED if stage.lora else None
        options: dict[str, Any] = {"pruned_decay": stage.pruned_decay}
        if stage.quantize is not None:
            own = stage.quantize
            trained = (*trained, *own.trained) if trained else own.trainable
            options["rates"] = own.rates
        options["trainable"] = trained
        optimizer = _override(self.train.optimizer, **options)
        options = {"schedule": schedule, "optimizer": optimizer}
        if isinstance(stage, Finetune):
            options |= {"batch_size": stage.batch_size, "seq_len": stage.seq_len}
        return _override(self.train, steps=stage.steps, **options)

    def sources(self, stage: Stage) -> tuple[str, ...]:
        """The domains of a stage: its own, or those of its nearest ancestor, or all."""
        while True:
            own = getattr(stage, "sources", ())
            if own or stage.parent is None:
                return own or tuple(self.data.sources)
            stage = self.stages[stage.parent]

    def calibration_sources(self, stage: Stage) -> tuple[str, ...]:
        """The domains whose training text a pruning stage calibrates on."""
        return getattr(stage, "calibrate_on", ()) or self.sources(stage)

    def isolates_documents(self, stage: Stage) -> bool:
        """Whether attention stays inside a document: of a task's examples always."""
        sources = (self.data.sources[name] for name in self.sources(stage))
        tasks = any(source.task is not None for source in sources)
        return tasks or self.data.isolate_documents

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
            quantize=stage.quantize,
            seed=stage.seed,
        )


def _override(config, **fields):
    return dataclasses.replace(
        config, **{name: value for name, value in fields.items() if value is not None}
    )
