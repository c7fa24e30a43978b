"""The ways to a sparse fine-tuned model, side by side, as a recipe.

The four ways of arXiv 2405.03594, and its transfer from half to full sparsity, each
with and without a teacher:

    finetune_then_prune      dense fine-tuning, then one-shot pruning
    prune_while_finetuning   gradual magnitude pruning during fine-tuning
    pruned_base              one-shot pruning of the dense base, then fine-tuning
    sparse_pretrained        fine-tuning of the sparse-pretrained model
    transfer                 two thirds of the steps at the lower sparsity, one-shot
                             pruning to the higher, the last third there
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, ClassVar

from sparse_jax.data import DataConfig, SourceConfig, task_source
from sparse_jax.evaluate import EvaluateConfig
from sparse_jax.models import Compute
from sparse_jax.prune import PruneConfig
from sparse_jax.recipe.config import Recipe
from sparse_jax.recipe.finetune_job import architecture, directory
from sparse_jax.recipe.report_config import Comparison, ReportConfig
from sparse_jax.recipe.stage_kinds import Finetune, Init, Prune, Stage
from sparse_jax.train import AdaptiveConfig, DistillConfig, TrainConfig
from sparse_jax.types import InputError

Stages = dict[str, Stage]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneComparison:
    """Fine-tunes the models of a sparse pretraining run in every way, on every task.

    Stages are named `<way>[_kd]_on_<domain>_seed<N>`; the dense control of a task,
    which is the teacher too, is the dense base fine-tuned on it.

    Attributes:
      name: of the recipe.
      run: working directory of the sparse pretraining.
      data: directory of data sets, see `data.task_source`.
      tasks: domain -> name in `data.tasks`.
      lengths: domain -> tokens of a row, where it is not `train.seq_len`; a step has as
        many tokens with more, shorter rows.
      steps: domain -> steps of every way, where they are not `train.steps`.
      seeds: of the order of the data.
      dense: stage of `run` with the dense base, trained on as many tokens as `sparse`.
      sparse: stage with the sparse-pretrained model.
      half: stage with the model that `transfer` begins with.
      sparsity: of `sparse`, and of every model that is pruned here.
      calibration: sources whose training text one-shot pruning of the base reads.
      distill: what the ways with `_kd` learn from the teacher.
      peaks: way, also with `_kd`, and `dense_control` -> learning rate.
      tried: factors of these rates; several make a recipe of learning-rate trials, with
        one seed and names that end in `_x<factor>`.
      train: steps, batch, length and schedule of every way.
      max_seq_len: longest sequence where it is more than the models allow.
      too_long: what becomes of examples longer than a row, see `data.SourceConfig`.
      heldout_fraction: of the records, where no file is held out.
      heldout_limit: bytes of held-out text of a task.
      prune: pruning in one shot.
      evaluate: how held-out responses are judged.
      compute: dtype, remat and chunk sizes.
      cache_dir: see `DataConfig`.
    """

    kind: ClassVar[str] = "finetune_comparison"
    name: str
    run: str
    data: str | None = None
    tasks: dict[str, str]
    lengths: dict[str, int] = dataclasses.field(default_factory=dict)
    steps: dict[str, int] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    dense: str = "dense_control"
    sparse: str = "trained_70"
    half: str = "trained_50"
    sparsity: float = 0.7
    calibration: tuple[str, ...] = ("embedded:code", "embedded:prose")
    distill: DistillConfig = DistillConfig(kl_weight=0.0, feature_weight=1.0)
    peaks: dict[str, float]
    tried: tuple[float, ...] = (1.0,)
    train: TrainConfig
    max_seq_len: int | None = None
    too_long: str = "drop"
    heldout_fraction: float = 0.1
    heldout_limit: int | None = None
    prune: PruneConfig = PruneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    compute: Compute = Compute()
    cache_dir: str | None = None

    def __post_init__(self):
        missing = {*PEAKS} - {*self.peaks}
        if missing or not (self.tasks and self.seeds and self.tried):
            raise InputError(
                "config.tasks, seeds and tried must not be empty, and config.peaks "
                f"needs a rate for each of {list(PEAKS)}; missing: {sorted(missing)}"
            )

        if 1.0 not in self.tried:
            raise InputError(
                f"config.tried = {self.tried} must have 1.0 in it: the teacher's rate"
            )
        tokens = self.train.tokens_per_step
        for domain, length in self.lengths.items():
            if length < 1 or tokens % length:
                raise InputError(
                    f"config.lengths.{domain} = {length} must divide the {tokens} "
                    "tokens of a step"
                )

    def recipe(self) -> Recipe:
        """All stages, task after task, seed after seed.

        Raises:
          InputError: no data is named, it lacks a task, or `run` lacks a model.
        """
        if self.data is None:
            raise InputError(
                f"config.data is not set; name the directory of {list(self.tasks)}"
            )
        calibration = {p.replace(":", "_"): p for p in self.calibration}
        sources = {n: SourceConfig(path=path) for n, path in calibration.items()}
        for domain, task in self.tasks.items():
            fraction = self.heldout_fraction
            sources[domain] = task_source(
                self.data, task, heldout_fraction=fraction, too_long=self.too_long
            )
        stages = self._bases(tuple(calibration))
        for domain, seed in itertools.product(self.tasks, self.seeds):
            trials = [_Ways(self, domain, seed, factor) for factor in self.tried]
            for trial in trials:
                stages |= trial.control()
            for trial in trials:
                stages |= trial.stages()
        base = f"{self.run}/{self.dense}"
        return Recipe(
            name=self.name,
            model=architecture(base),
            stages=stages,
            order=tuple(stages),
            final=next(n for n in stages if n.startswith("sparse_pretrained_kd")),
            compute=self.compute,
            data=DataConfig(
                sources=sources,
                tokenizer=str(directory(base)),
                heldout_limit=self.heldout_limit,
                cache_dir=self.cache_dir,
            ),
            train=self.train,
            prune=self.prune,
            evaluate=self.evaluate,
            report=ReportConfig(comparisons=QUESTIONS),
        )

    def _bases(self, calibration: tuple[str, ...]) -> Stages:
        """The models of `run`, and the dense one pruned in one shot."""
        judged = tuple(self.tasks)

        def read(stage: str) -> Init:
            options = {"max_seq_len": self.max_seq_len, "sources": judged}
            return Init(path=f"{self.run}/{stage}", **options)

        pruned = Prune(parent="dense", sparsity=self.sparsity, calibrate_on=calibration)
        return {
            "dense": read(self.dense),
            "sparse": read(self.sparse),
            "half": read(self.half),
            "one_shot": pruned,
        }


class _Ways:
    """The stages of one task, one seed and one factor of the learning rates."""

    def __init__(self, job: FinetuneComparison, domain: str, seed: int, factor: float):
        self._job, self._domain, self._seed, self._factor = job, domain, seed, factor

    @property
    def _steps(self) -> int:
        return self._job.steps.get(self._domain, self._job.train.steps)

    def control(self) -> Stages:
        """The dense base, fine-tuned: control and teacher."""
        return {self._name("dense_control"): self._tune("dense_control", "dense")}

    def stages(self) -> Stages:
        """Every way, without and with the teacher."""
        found: Stages = {}
        for way, kd in itertools.product(WAYS, ("", "_kd")):
            found |= WAYS[way](self, way + kd)
        return found

    def _name(self, method: str, factor: float | None = None) -> str:
        job = self._job
        factor = self._factor if factor is None else factor
        trial = f"_x{factor:g}".replace(".", "p") if len(job.tried) > 1 else ""
        return f"{method}{trial}_on_{self._domain}_seed{self._seed}"

    def _tune(self, way: str, parent: str, steps: int | None = None, **fields: Any):
        """A fine-tuning at the rate of its way, with the teacher if the way has one."""
        if way.endswith("_kd"):
            # Of trials, too, there is one teacher: at the rate that was chosen.
            fields |= {"teacher": self._name("dense_control", 1.0)}
            fields |= {"distill": self._job.distill}
        length = self._job.lengths.get(self._domain, self._job.train.seq_len)
        return Finetune(
            parent=parent,
            sources=(self._domain,),
            batch_size=self._job.train.tokens_per_step // length,
            seq_len=length,
            seed=self._seed,
            steps=self._steps if steps is None else steps,
            peak=self._factor * self._job.peaks[way],
            **fields,
        )

    def _prune(self, parent: str) -> Prune:
        return Prune(parent=parent, sparsity=self._job.sparsity)

    def finetune_then_prune(self, way: str) -> Stages:
        tuned = self._name(way.replace("finetune_then_prune", "dense_finetuned"))
        if way.endswith("_kd"):
            first: Stages = {tuned: self._tune(way, "dense")}
        else:
            first, tuned = {}, self._name("dense_control")
        return first | {self._name(way): self._prune(tuned)}

    def prune_while_finetuning(self, way: str) -> Stages:
        steps = self._steps
        moving = AdaptiveConfig(
            pattern="unstructured",
            sparsity=self._job.sparsity,
            mode="fixed",
            every=max(1, steps // 20),
            ramp_steps=steps // 2,
            freeze_at=steps // 2,
        )
        return {self._name(way): self._tune(way, "dense", adaptive=moving)}

    def pruned_base(self, way: str) -> Stages:
        return {self._name(way): self._tune(way, "one_shot")}

    def sparse_pretrained(self, way: str) -> Stages:
        return {self._name(way): self._tune(way, "sparse")}

    def transfer(self, way: str) -> Stages:
        steps = self._steps
        first, pruned = (self._name(f"{way}_{part}") for part in ("half", "pruned"))
        return {
            first: self._tune(way, "half", 2 * steps // 3),
            pruned: self._prune(first),
            self._name(way): self._tune(way, pruned, steps - 2 * steps // 3),
        }


NO_PEAK = "finetune_then_prune"
"""This way prunes the control, without more training."""

WAYS: dict[str, Callable[[_Ways, str], Stages]] = {
    "finetune_then_prune": _Ways.finetune_then_prune,
    "prune_while_finetuning": _Ways.prune_while_finetuning,
    "pruned_base": _Ways.pruned_base,
    "sparse_pretrained": _Ways.sparse_pretrained,
    "transfer": _Ways.transfer,
}
"""Name -> the stages of a way."""

PEAKS = (
    "dense_control",
    *(f"{way}{kd}" for way in WAYS for kd in ("", "_kd") if way + kd != NO_PEAK),
)
"""What has a learning rate of its own."""


def _asks(question: str, method: str, baseline: str) -> Comparison:
    return Comparison(question=question, method=method, baseline=baseline)


QUESTIONS = (
    *(_asks(f"Does the teacher help {w}?", f"{w}_kd", w) for w in WAYS),
    *(
        _asks(f"Is sparse pretraining better than {w}, with a teacher?", *pair)
        for w in WAYS
        if w != "sparse_pretrained"
        for pair in [("sparse_pretrained_kd", f"{w}_kd")]
    ),
    _asks(
        "Is sparse pretraining better than pruned_base?",
        "sparse_pretrained",
        "pruned_base",
    ),
)
