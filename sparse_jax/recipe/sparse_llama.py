"""The main paper's whole chain, as a recipe.

dense pretraining -> SparseGPT 50 % -> sparse pretraining -> SparseGPT 70 % -> sparse
pretraining -> fine-tuning with SquareHead -> W8A8 -> a packed file

Source: https://arxiv.org/abs/2405.03594
"""

import dataclasses
from typing import ClassVar

from sparse_jax.data import default_cache_dir, task_source
from sparse_jax.data.functions import write_functions
from sparse_jax.evaluate import HarnessConfig
from sparse_jax.prune import QuantizeConfig
from sparse_jax.recipe.config import Recipe
from sparse_jax.recipe.report_config import ReportConfig
from sparse_jax.recipe.stage_kinds import Evaluate, Finetune, Pack, Prune, Stage
from sparse_jax.train import DistillConfig
from sparse_jax.types import InputError

FUNCTIONS = "functions"
"""The task that needs no data, see `data.functions`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseLlama:
    """From a dense model to a packed sparse one in 8 bits, judged after every step.

    The teacher is the dense control of the pretraining, fine-tuned alike, which is the
    control of the report, too. What is fine-tuned is `pretraining.final`; that is
    rounded as well, for what rounding costs by itself.

    Attributes:
      name: of the recipe.
      pretraining: the recipe up to the sparse-pretrained model.
      control: its stage with the dense model that has seen as many tokens.
      task: what is fine-tuned on, name in `data.tasks`; "functions" needs no data.
      data: file or directory of the task's records, see `data.task_source`.
      too_long: what becomes of examples longer than a row.
      heldout_fraction: of the records, where no file is held out.
      finetune: the fine-tuning; its parent, sources and teacher are put in.
      distill: what is learned from the teacher.
      control_peak: learning rate of the dense model's.
      quantize: how the fine-tuned model is rounded.
      tasks: what every model is asked, see `evaluate.tasks`.
      data_dir: folder with their files; None = `data`.
      harness: how they are asked.
      pack: whether models are packed and decoded; a single process can.
      decode_size: see `Pack`.
    """

    kind: ClassVar[str] = "sparse_llama"
    name: str
    pretraining: Recipe
    control: str = "dense_control"
    task: str = FUNCTIONS
    data: str | None = None
    too_long: str = "drop"
    heldout_fraction: float = 0.1
    finetune: Finetune
    distill: DistillConfig = DistillConfig(kl_weight=0.0, feature_weight=1.0)
    control_peak: float
    quantize: QuantizeConfig
    tasks: tuple[str, ...] = (FUNCTIONS,)
    data_dir: str | None = None
    harness: HarnessConfig = HarnessConfig()
    pack: bool = True
    decode_size: str | None = "500m"

    def recipe(self) -> Recipe:
        """All stages, each pretrained, pruned, fine-tuned or rounded model asked.

        Raises:
          InputError: no data is named and the task needs some, or there is none of it.
        """
        data = self._data()
        source = task_source(
            data,
            self.task,
            too_long=self.too_long,
            heldout_fraction=self.heldout_fraction,
        )
        stages = self._pretrained()
        chain = [
            n for n, s in stages.items() if s.kind in ("init", "pretrain", "prune")
        ]
        tuned = self._finetuned()
        stages |= tuned
        chain += tuned
        if self.tasks:
            stages |= self._asked(chain, self.data_dir or data)
        if self.pack:
            stages |= self._packed()
        base = self.pretraining
        return dataclasses.replace(
            base,
            name=self.name,
            stages=stages,
            order=tuple(stages),
            final="quantized",
            data=dataclasses.replace(
                base.data, sources={**base.data.sources, self.task: source}
            ),
            report=ReportConfig(paper=PAPER),
        )

    def _data(self) -> str:
        if self.data is not None:
            return self.data
        if self.task != FUNCTIONS:
            raise InputError(
                f"config.data is not set; name the file or directory of {self.task!r}"
            )
        return str(
            write_functions(self.pretraining.data.cache_dir or default_cache_dir())
        )

    def _pretrained(self) -> dict[str, Stage]:
        """The stages before, on the documents alone."""
        texts, found = tuple(self.pretraining.data.sources), {}
        for name in self.pretraining.order:
            stage = self.pretraining.stages[name]
            if hasattr(stage, "sources") and stage.parent is None:
                stage = dataclasses.replace(stage, sources=texts)
            found[name] = stage
        return found

    def _finetuned(self) -> dict[str, Stage]:
        own = dataclasses.replace(self.finetune, sources=(self.task,))
        control = dataclasses.replace(own, parent=self.control, peak=self.control_peak)
        sparse = dataclasses.replace(
            own,
            parent=self.pretraining.final,
            teacher="dense_control_finetuned",
            distill=self.distill,
        )
        rounded = Prune(parent="finetuned", pattern="found", quantize=self.quantize)
        base = dataclasses.replace(rounded, parent=self.pretraining.final)
        return {
            "dense_control_finetuned": control,
            "finetuned": sparse,
            "quantized": rounded,
            "quantized_base": base,
        }

    def _asked(self, names: list[str], data_dir: str) -> dict[str, Stage]:
        where = {"data_dir": data_dir, "harness": self.harness}
        return {
            f"scores_{name}": Evaluate(parent=name, tasks=self.tasks, **where)
            for name in names
        }

    def _packed(self) -> dict[str, Stage]:
        parents = ("dense_control_finetuned", "finetuned", "quantized")
        texts = tuple(self.pretraining.data.sources)
        options = {"decode_size": self.decode_size, "sources": texts}
        return {f"packed_{name}": Pack(parent=name, **options) for name in parents}


PAPER = {
    "packed_finetuned": "up to 3x from 70 % zeros alone",
    "packed_quantized": "up to 8.6x with INT8",
}
"""Stage -> what arXiv 2405.03594 says of decoding on CPUs, over dense float32."""
