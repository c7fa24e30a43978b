"""What a recipe's report adds to the measurements."""

import dataclasses

from sparse_jax.quant import GridConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A question that two groups of stages answer; a group is a name without its seed.

    Attributes:
      question: in words.
      method: name of the group with what is asked about, without its pattern.
      baseline: of the group without it.
    """

    question: str
    method: str
    baseline: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """A model in the chart of loss against bits.

    Attributes:
      stage: that makes it.
      packed: the stage that packs it; None = no storage type holds it.
      family: its zeros, as `sparsity.parse` reads them; "dense" where there are none.
      grid: of its values; None = 16-bit floats.
      training: what was trained after pruning and rounding, in words; "" = nothing.
    """

    stage: str
    packed: str | None
    family: str
    grid: GridConfig | None = None
    training: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What the report adds to the measurements.

    Attributes:
      machine: name in `sparse_jax.dataflow`; simulates what the final model's masks
        would gain there. None = no simulation.
      scale_to: size in `sparse_jax.models.sizes` to simulate as well, with masks drawn
        at the final model's sparsity; None = none.
      comparisons: questions that stages named `<method>_<pattern>_seed<N>` answer.
      paper: what a paper says of the decoding speed of a stage that packs.
      points: of the chart of loss against bits.
      dense: stage with the model that their losses are compared with.
    """

    machine: str | None = None
    scale_to: str | None = "llama2_7b"
    comparisons: tuple[Comparison, ...] = ()
    paper: dict[str, str] = dataclasses.field(default_factory=dict)
    points: tuple[Point, ...] = ()
    dense: str | None = None
