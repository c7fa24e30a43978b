"""The kinds of stages: what each does, and with what."""

import dataclasses
from typing import ClassVar, Literal

from sparse_jax.evaluate import HarnessConfig
from sparse_jax.models import LlamaConfig
from sparse_jax.prune import AllocationConfig, QuantizeConfig
from sparse_jax.sparsity.adapters import LoraConfig, LowRankConfig, QuantTrainConfig
from sparse_jax.train import AdaptiveConfig, DistillConfig, PrunedDecayConfig
from sparse_jax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Init:
    """Takes a model: a Hugging Face, run or stage directory.

    Attributes:
      path: the directory.
      max_seq_len: the longest sequence from here on, where the model's own is shorter;
        RoPE goes on as it is, so that the model has to learn what comes beyond.
      sources: domains to judge it on; none = all.
      enabled: False leaves the stage out.
    """

    kind: ClassVar[str] = "init"
    parent: ClassVar[None] = None
    path: str
    max_seq_len: int | None = None
    sources: tuple[str, ...] = ()
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
      lora: low-rank adapters under the masks; they alone train, and are merged at last.
      quantize: trains through integer grids, on which the weights end.
      sources: domains to train on and to judge the model on; none = the parent's, or
        all.
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
    lora: LoraConfig | None = None
    quantize: QuantTrainConfig | None = None
    sources: tuple[str, ...] = ()
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
        others = ("adaptive", "low_rank", "learned_scales")
        for name in filter(lambda name: self.lora and getattr(self, name), others):
            raise InputError(f"lora trains its factors alone: leave out {name}, or it")
        if self.quantize is not None:
            self._check_quantize(self.quantize)

    def _check_quantize(self, quantize: QuantTrainConfig) -> None:
        """What does not go together with training through grids."""
        frozen = quantize.train == "scales"
        for name in ("adaptive", "lora", "low_rank"):
            if frozen and getattr(self, name):
                raise InputError(
                    f"quantize.train 'scales' keeps the codes as they are: leave out "
                    f"{name}, or set it to 'all'"
                )
        if self.learned_scales:
            raise InputError(
                "quantize has scales of its own: leave out learned_scales, or it"
            )
        if quantize.start == "parent" and self.parent is None:
            raise InputError(
                "quantize.start 'parent' takes over a parent's grids, and this stage "
                "has no parent; set it to 'search'"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune(Pretrain):
    """Trains on conversations; as `Pretrain`, on data of its own.

    That begins at its beginning, or goes on where an ancestor's fine-tuning ended. Of a
    source with a task only the responses count in the loss.

    Attributes:
      batch_size: rows of a step.
      seq_len: tokens of a row.
    """

    kind: ClassVar[str] = "finetune"
    batch_size: int | None = None
    seq_len: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune:
    """Prunes and rounds in one shot. Fields that are None are those of `Recipe.prune`.

    Attributes:
      parent: the stage that gives the model.
      sparsity: of every pruned matrix.
      solver: name in `sparse_jax.solvers`.
      pattern: shape of the zeros; "found" keeps the parent's, and prunes no more.
      allocation: how the sparsity is spread over the matrices.
      quantize: rounds the matrices in the same solve.
      seed: of the calibration sequences.
      sources: domains to judge the model on; none = the parent's.
      calibrate_on: domains whose training text is the calibration; none = the sources.
      enabled: False leaves the stage out.
    """

    kind: ClassVar[str] = "prune"
    parent: str
    sparsity: float | None = None
    solver: str | None = None
    pattern: str | None = None
    allocation: AllocationConfig | None = None
    quantize: QuantizeConfig | None = None
    seed: int | None = None
    sources: tuple[str, ...] = ()
    calibrate_on: tuple[str, ...] = ()
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
class Evaluate:
    """Asks a model tasks; a side branch.

    Attributes:
      parent: the stage that gives the model.
      tasks: names in `evaluate.tasks`.
      data_dir: folder with their files.
      harness: how they are asked.
      enabled: False leaves the stage out.
    """

    kind: ClassVar[str] = "evaluate"
    parent: str
    tasks: tuple[str, ...]
    data_dir: str
    harness: HarnessConfig = HarnessConfig()
    enabled: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pack:
    """Packs a model into one file, and measures that; a side branch.

    Attributes:
      parent: the stage that gives the model.
      format: see `infer.PackConfig`, as for the next two.
      dtype: of the stored weights.
      head: storage type of the output projection.
      decode_size: of `models.sizes`; decoding is measured with random weights of that
        architecture, the model's main storage type and its zeros, against dense
        float32. None = not measured.
      prompt_tokens: read before decoding is measured.
      decode_tokens: written.
      repeats: the fastest counts.
      sources: domains to judge it on, of which documents count; none = the parent's.
      enabled: False leaves the stage out.
    """

    kind: ClassVar[str] = "pack"
    parent: str
    format: str = "auto"
    dtype: Literal["float32", "bfloat16", "int8", "int4", "int2"] | None = None
    head: str = "auto"
    decode_size: str | None = None
    prompt_tokens: int = 32
    decode_tokens: int = 32
    repeats: int = 5
    sources: tuple[str, ...] = ()
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


Stage = Init | Pretrain | Finetune | Prune | OneShot | Evaluate | Pack | Export

NO_MODEL = ("one_shot", "evaluate", "pack", "export")
"""Kinds of stages that make no model of their own."""
