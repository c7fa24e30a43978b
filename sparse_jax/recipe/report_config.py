"""What a recipe's report adds to the measurements."""

import dataclasses


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
class ReportConfig:
    """What the report adds to the measurements.

    Attributes:
      machine: name in `sparse_jax.dataflow`; simulates what the final model's masks
        would gain there. None = no simulation.
      scale_to: size in `sparse_jax.models.sizes` to simulate as well, with masks drawn
        at the final model's sparsity; None = none.
      comparisons: questions that stages named `<method>_<pattern>_seed<N>` answer.
    """

    machine: str | None = None
    scale_to: str | None = "llama2_7b"
    comparisons: tuple[Comparison, ...] = ()
