"""Loss at equal bits, as a recipe: patterns of zeros by bits of their values.

Every point is pruned and rounded in one solve. Some are then trained twice, all on as
many tokens: block by block against the dense block's output, and, the codes frozen, the
scales and zero points end to end.
"""

import dataclasses
from typing import Any, ClassVar, Literal

from sparse_jax.data import DataConfig
from sparse_jax.evaluate import EvaluateConfig
from sparse_jax.models import Compute
from sparse_jax.prune import BlockTrainingConfig, PruneConfig, QuantizeConfig
from sparse_jax.quant import GridConfig
from sparse_jax.recipe.config import Recipe
from sparse_jax.recipe.finetune_job import architecture, directory
from sparse_jax.recipe.report_config import Point, ReportConfig
from sparse_jax.recipe.stage_kinds import Init, Pack, Pretrain, Prune, Stage
from sparse_jax.sparsity import NM, Block, Group, Unstructured, parse
from sparse_jax.sparsity.adapters import QuantTrainConfig
from sparse_jax.train import TrainConfig
from sparse_jax.types import InputError

DENSE = "dense"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value:
    """A pattern with values of so many bits.

    Attributes:
      pattern: as `sparsity.parse` reads it, or "dense".
      grid: of the kept values; None = 16-bit floats.
      solver: that prunes; None = `EqualBits.prune.solver`.
      trained: is trained as well, after it was rounded.
      format: storage type; None = no type holds it.
      seeds: of the calibration, the order of the data, and of the names.
    """

    pattern: str
    grid: GridConfig | None = None
    solver: str | None = None
    trained: bool = False
    format: str | None = "auto"
    seeds: tuple[int, ...] = (0,)

    @property
    def name(self) -> str:
        """As stages are called: "w4_5of16", "w16_u50", "w2z_dense"."""
        if self.grid is None:
            return f"w16_{_short(self.pattern)}"
        zeros = "" if self.grid.symmetric else "z"
        return f"w{self.grid.bits}{zeros}_{_short(self.pattern)}"


def _short(text: str) -> str:
    if text == DENSE:
        return DENSE
    pattern: Any = parse(text)
    if isinstance(pattern, NM):
        return f"{pattern.n}of{pattern.m}"
    letter = {Unstructured: "u", Group: "g", Block: "b"}[type(pattern)]
    return f"{letter}{round(100 * pattern.sparsity)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EqualBits:
    """Compares patterns and values of one model at equal bits.

    Attributes:
      name: of the recipe.
      model: the dense model: Hugging Face, run or stage directory.
      values: what is compared.
      clip: see `QuantizeConfig`.
      blocks: training block by block.
      train: steps and schedule of the training end to end, and of the dense control.
      control_peak: learning rate of the dense control.
      scales: what of it trains.
      data: what to calibrate, train and judge on.
      prune: pruning in one shot.
      evaluate: how held-out text is judged.
      decode: whether decoding is measured.
      decode_size: see `Pack`.
      compute: dtype, remat and chunk sizes.
    """

    kind: ClassVar[str] = "equal_bits"
    name: str
    model: str | None = None
    values: dict[str, Value]
    clip: Literal["range", "search"] = "search"
    blocks: BlockTrainingConfig = BlockTrainingConfig()
    train: TrainConfig = TrainConfig()
    control_peak: float = 1.25e-4
    scales: QuantTrainConfig = QuantTrainConfig(start="parent", train="scales")
    data: DataConfig = DataConfig()
    prune: PruneConfig = PruneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    decode: bool = True
    decode_size: str = "500m"
    compute: Compute = Compute()

    def recipe(self) -> Recipe:
        """All stages, value after value.

        Raises:
          InputError: no model is named.
        """
        if self.model is None:
            raise InputError("config.model is not set; name the dense model")
        stages: dict[str, Stage] = {DENSE: Init(path=self.model)}
        points: list[Point] = []
        if any(value.trained for value in self.values.values()):
            stages["dense_control"] = Pretrain(parent=DENSE, peak=self.control_peak)
        measured: set[tuple[str | None, str]] = set()
        for value in self.values.values():
            for seed in value.seeds:
                self._add(value, seed, stages, points, measured)
        return Recipe(
            name=self.name,
            model=architecture(self.model),
            stages=stages,
            order=tuple(stages),
            final=DENSE,
            compute=self.compute,
            data=dataclasses.replace(self.data, tokenizer=str(directory(self.model))),
            train=self.train,
            prune=self.prune,
            evaluate=self.evaluate,
            report=ReportConfig(points=tuple(points), dense=DENSE),
        )

    def _add(self, value, seed, stages, points, measured) -> None:
        """The stages and points of a value, one-shot and trained."""
        if value.pattern == DENSE and value.grid is None:
            packed = self._pack(DENSE, value, stages, measured)
            points.append(Point(stage=DENSE, packed=packed, family=DENSE))
            return
        suffix = f"_seed{seed}" if len(value.seeds) > 1 else ""
        made = [("", self._one_shot(value, seed))]
        if value.trained:
            assert value.grid is not None  # there is nothing to train in floats
            tuned = self._one_shot(value, seed, tune=self.blocks)
            scales = dataclasses.replace(self.scales, grid=value.grid)
            parent = f"blocks_{value.name}{suffix}"
            made += [
                ("blocks", tuned),
                (
                    "blocks and scales",
                    Pretrain(parent=parent, quantize=scales, seed=seed),
                ),
            ]
        for training, stage in made:
            prefix = {"": "one_shot", "blocks": "blocks"}.get(training, "trained")
            name = f"{prefix}_{value.name}{suffix}"
            stages[name] = stage
            packed = self._pack(name, value, stages, measured)
            points.append(
                Point(
                    stage=name,
                    packed=packed,
                    family=value.pattern,
                    grid=value.grid,
                    training=training,
                )
            )

    def _one_shot(self, value: Value, seed: int, tune: Any = None) -> Stage:
        quantize = None
        if value.grid is not None:
            quantize = QuantizeConfig(grid=value.grid, clip=self.clip, tune=tune)
        pattern = "found" if value.pattern == DENSE else value.pattern
        zeros: Any = None if value.pattern == DENSE else parse(value.pattern)
        return Prune(
            parent=DENSE,
            pattern=pattern.partition("@")[0],
            sparsity=None if zeros is None else zeros.sparsity,
            solver=value.solver,
            quantize=quantize,
            seed=seed,
        )

    def _pack(self, name, value, stages, measured) -> str | None:
        """Packs a stage's model; decoding is measured once for values alike."""
        if value.format is None:
            return None
        dtype = "bfloat16" if value.grid is None and value.format == "auto" else None
        key = value.name, value.format
        measure = self.decode and key not in measured
        stages[f"packed_{name}"] = Pack(
            parent=name,
            format=value.format,
            dtype=dtype,
            decode_size=self.decode_size if measure else None,
        )
        measured.add(key)
        return f"packed_{name}"
