"""What came out of tasks: numbers, and the table that shows them."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from sparse_jax.evaluate.metrics import Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskResult:
    """A task's numbers, with what is needed to repeat them.

    Attributes:
      task: its name.
      metrics: name -> mean over documents and standard error.
      documents: how many were asked.
      truncated: of how many the prompt or the answer did not fit and lost its
        beginning.
      shots: examples before each question.
      shots_from: where they come from; "" where there are none.
      files: what was read.
      settings: of written answers: max_tokens, num_samples, temperature, ...
      groups: of a task with several subjects, subject -> metrics.
      samples: what happened to each document, as JSON data.
    """

    task: str
    metrics: dict[str, Estimate]
    documents: int
    truncated: int
    shots: int
    shots_from: str
    files: tuple[str, ...]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    groups: dict[str, dict[str, Estimate]] = dataclasses.field(default_factory=dict)
    samples: list[dict[str, Any]] = dataclasses.field(default_factory=list, repr=False)

    def numbers(self) -> dict[str, Any]:
        """All but the samples as JSON data, which has no infinity: that is None."""
        return _plain(dataclasses.asdict(dataclasses.replace(self, samples=[])))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items() if name != "samples"}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isinf(value) else value


def results_table(results: Sequence[TaskResult]) -> str:
    """One line for each metric of each task.

    Example:
      >>> result = TaskResult(
      ...     task="piqa", metrics={"acc": Estimate(value=0.5, stderr=0.25)},
      ...     documents=4, truncated=0, shots=0, shots_from="", files=("piqa.jsonl",))
      >>> print(results_table([result]))
      task  metric   value  stderr  documents  shots  truncated
      piqa  acc     0.5000  0.2500          4      0          0
    """
    header = ["task", "metric", "value", "stderr", "documents", "shots", "truncated"]
    rows = [header]
    for result in results:
        counts = (result.documents, result.shots, result.truncated)
        for name, estimate in result.metrics.items():
            numbers = (
                "-" if number is None else f"{number:.4f}"
                for number in (estimate.value, estimate.stderr)
            )
            rows.append([result.task, name, *numbers, *map(str, counts)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number < 2 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
