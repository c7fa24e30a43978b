"""Fine-tuning one model on one task, as a recipe."""

import dataclasses
import pathlib
from typing import ClassVar, Literal

from sparse_jax import io
from sparse_jax.data import DataConfig, task_source
from sparse_jax.evaluate import EvaluateConfig, HarnessConfig
from sparse_jax.mesh import MeshConfig
from sparse_jax.models import Compute, LlamaConfig, sizes
from sparse_jax.recipe.config import Recipe
from sparse_jax.recipe.stage_kinds import (
    Evaluate,
    Export,
    Finetune,
    Init,
    Stage,
)
from sparse_jax.sparsity.adapters import LoraConfig
from sparse_jax.train import DistillConfig, TrainConfig
from sparse_jax.types import InputError

_ASKED = ("dense_control", "model", "finetuned")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneJob:
    """Fine-tunes a model, sparse or dense, on a task; zeros stay zeros.

    The teacher is the dense model fine-tuned on the same data by the same recipe, and
    the dense control of the report.

    Attributes:
      name: of the recipe.
      model: what is fine-tuned: Hugging Face, run or stage directory; for a plan also
        a size of `models.sizes`.
      task: name in `data.tasks`.
      data: file of its records, or directory of data sets, see `data.task_source`.
      dense: the dense model from which the teacher is fine-tuned; None = `model`.
      teacher: a dense model that is fine-tuned already; None = make it from `dense`.
      use_teacher: False: nothing is learned from a teacher, and there is none.
      distill: what is learned from the teacher.
      teacher_peak: learning rate of the teacher's own fine-tuning; None = the same.
      lora: train low-rank adapters under the masks alone; None = all kept weights.
      train: steps, batch, length, schedule.
      max_seq_len: longest sequence where it is more than the models allow.
      template: see `data.SourceConfig`, also for the next two.
      too_long: what becomes of examples longer than a row.
      heldout_fraction: of the records, where no file is held out.
      evaluate: how the held-out responses are judged.
      tasks: what the fine-tuned models are asked at last, see `evaluate.tasks`.
      data_dir: folder with the files of these tasks; None = `data`.
      harness: how they are asked.
      seed: of the order of the data.
      compute: dtype, remat and chunk sizes.
      mesh: devices.
      cache_dir: see `DataConfig`.
    """

    kind: ClassVar[str] = "finetune_job"
    name: str
    model: str | None = None
    task: str
    data: str | None = None
    dense: str | None = None
    teacher: str | None = None
    use_teacher: bool = True
    distill: DistillConfig = DistillConfig(kl_weight=0.0, feature_weight=1.0)
    teacher_peak: float | None = None
    lora: LoraConfig | None = None
    train: TrainConfig = TrainConfig()
    max_seq_len: int | None = None
    template: str | None = None
    too_long: Literal["drop", "truncate"] = "drop"
    heldout_fraction: float = 0.05
    evaluate: EvaluateConfig = EvaluateConfig()
    tasks: tuple[str, ...] = ()
    data_dir: str | None = None
    harness: HarnessConfig = HarnessConfig()
    seed: int = 0
    compute: Compute = Compute()
    mesh: MeshConfig = MeshConfig()
    cache_dir: str | None = None

    def recipe(self) -> Recipe:
        """The stages: the teacher, if there is one, and the fine-tuned model.

        Raises:
          InputError: no model or no data is named, or no file is found; or the model is
            sparse and nothing says where a dense teacher comes from.
        """
        model = self._named("model", self.model, "the model to fine-tune")
        data = self._named("data", self.data, "a file or a directory with its data")
        stages: dict[str, Stage] = {"model": self._root(model)}
        if self.use_teacher:
            stages |= self._teacher(model)
        stages["finetuned"] = Finetune(
            parent="model",
            teacher="dense_control" if self.use_teacher else None,
            distill=self.distill if self.use_teacher else None,
            lora=self.lora,
        )
        stages["export"] = Export(parent="finetuned")
        if self.tasks:
            stages |= self._asked(data, [n for n in stages if n in _ASKED])
        source = task_source(
            data,
            self.task,
            template=self.template,
            too_long=self.too_long,
            heldout_fraction=self.heldout_fraction,
        )
        return Recipe(
            name=self.name,
            model=architecture(model),
            stages=stages,
            order=tuple(stages),
            final="finetuned",
            seed=self.seed,
            compute=self.compute,
            mesh=self.mesh,
            data=DataConfig(
                sources={self.task: source},
                tokenizer=model if model in sizes.SIZES else str(directory(model)),
                isolate_documents=True,
                cache_dir=self.cache_dir,
            ),
            train=self.train,
            evaluate=self.evaluate,
        )

    def _root(self, path: str) -> Init:
        return Init(path=path, max_seq_len=self.max_seq_len)

    def _teacher(self, model: str) -> dict[str, Stage]:
        """The stages that end in `dense_control`, a fine-tuned dense model."""
        if self.teacher is not None:
            return {"dense_control": self._root(self.teacher)}
        field, base = ("dense", self.dense) if self.dense else ("model", model)
        if _has_masks(base):
            raise InputError(
                f"config.{field}={base} is sparse, and nothing says from which dense "
                "model its teacher is fine-tuned: set config.dense, or config.teacher "
                "(dense, fine-tuned already), or config.use_teacher=False"
            )
        tuned = Finetune(parent="dense", peak=self.teacher_peak)
        return {"dense": self._root(base), "dense_control": tuned}

    def _asked(self, data: str, names: list[str]) -> dict[str, Stage]:
        """The stages that ask models the tasks."""
        where = {"data_dir": self.data_dir or data, "harness": self.harness}
        return {
            f"scores_{name}": Evaluate(parent=name, tasks=self.tasks, **where)
            for name in names
        }

    def _named(self, field: str, value: str | None, what: str) -> str:
        if value is None:
            raise InputError(f"config.{field} is not set; name {what}")
        return value


def architecture(path: str) -> LlamaConfig:
    """Of a size, or of a model on disk."""
    return sizes.get(path) if path in sizes.SIZES else io.load_config(directory(path))


def directory(path: str) -> pathlib.Path:
    """The Hugging Face directory that a model's path means.

    Raises:
      InputError: there is no model.
    """
    return io.locate(pathlib.Path(path))[0]


def _has_masks(path: str) -> bool:
    return path not in sizes.SIZES and io.open_blocks(path, merge=True).masked
