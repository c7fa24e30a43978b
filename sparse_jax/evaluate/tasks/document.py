"""What a task is: how its records are read, asked and judged."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from sparse_jax.data.records import Record
from sparse_jax.evaluate.scoring import Score
from sparse_jax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """One question of a task, whatever file format it came from.

    Attributes:
      where: "file:line" of its record.
      prompt: what stands before the answer.
      target: the right answer, without the delimiter before it.
      choices: all answers, of multiple choice.
      gold: number of the right one of `choices`, or of `prompts`.
      prompts: of partial scoring, a prompt for each choice; `target` follows all alike.
      labels: of several right answers, 1 where one of `choices` is right.
      group: the subject, where a task has several.
      asked: `prompt` is whole: its shots stand in the file.
      record: what was read.
    """

    where: str
    prompt: str = ""
    target: str = ""
    choices: tuple[str, ...] = ()
    gold: int | None = None
    prompts: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    group: str = ""
    asked: bool = False
    record: Record = dataclasses.field(default_factory=dict, repr=False)

    @property
    def shown(self) -> str:
        """The prompt of the right answer, as an example shows it."""
        return self.prompts[self.gold or 0] if self.prompts else self.prompt


@dataclasses.dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
      fields: a record of it has them all.
      parse: (record, its place) to the fields of a `Document`; raises InputError.
    """

    fields: tuple[str, ...]
    parse: Callable[[Record, str], dict[str, Any]]


Metrics = Mapping[str, float]
"""What one document contributes to each metric."""


def mean_metrics(each: Sequence[Metrics]) -> Metrics:
    """The mean of each metric over the answers to one document.

    Example:
      >>> mean_metrics([{"match": 1.0}, {"match": 0.0}])
      {'match': 0.5}
    """
    return {name: sum(one[name] for one in each) / len(each) for name in each[0]}


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What the answers to one document are worth.

    Attributes:
      metrics: the document's.
      notes: on each answer: the number found in it, why its program failed.
    """

    metrics: Metrics
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judging:
    """What the judging of written answers may be told.

    Attributes:
      unsafe_code: run programs even where a layer of their sandbox is missing.
    """

    unsafe_code: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A task of the harness.

    Attributes:
      kind: "choice": answers are compared by their log-likelihood; "target": the log-
        likelihood of one answer counts; "write": the model writes.
      formats: of its files; the first that has all its fields in a record reads it.
      files: where its documents are looked for in a data directory, without suffix;
        `*` stands for anything.
      shot_files: likewise, of the examples; none = among the documents themselves.
      shots: how many examples stand before a question, unless said otherwise.
      first_shots: they are the first ones of the file, in its order, not drawn.
      spare_shot: one example more is drawn than is shown, as lm-eval does for a task
        that has no test split.
      delimiter: between prompt and answer, in examples and in what is scored.
      scored_delimiter: between prompt and answer where it is scored, if different.
      shot_end: after the answer of an example.
      group_of_file: the subject of a file whose records name none.
      describe: what stands before everything, for a document.
      judge_scores: of "choice" and "target", metrics of (document, its scores).
      judge_texts: of "write", one `Judgement` for each of (documents, their answers).
      stop: texts that end a written answer.
      max_tokens: the most tokens of a written answer.
      select: which of a file's documents are asked.
      usual_shots: examples that everybody uses, found among a file's documents.
      require: raises InputError where a package is missing; called before anything.
      runs_code: what the model writes is run.
    """

    kind: Literal["choice", "target", "write"]
    formats: tuple[Format, ...]
    files: tuple[str, ...]
    shot_files: tuple[str, ...] = ()
    shots: int = 0
    first_shots: bool = False
    spare_shot: bool = False
    delimiter: str = " "
    scored_delimiter: str | None = None
    shot_end: str = "\n\n"
    group_of_file: Callable[[Path], str] | None = None
    describe: Callable[[Document], str] = lambda document: ""
    judge_scores: Callable[[Document, Sequence[Score]], Metrics] | None = None
    judge_texts: (
        Callable[
            [Sequence[Document], Sequence[Sequence[str]], Judging], list[Judgement]
        ]
        | None
    ) = None
    stop: tuple[str, ...] = ()
    max_tokens: int = 256
    select: Callable[[Sequence[Document]], list[Document]] = list
    usual_shots: Callable[[Sequence[Document]], list[Document]] = lambda documents: []
    require: Callable[[], None] = lambda: None
    runs_code: bool = False

    def document(self, record: Record, where: str) -> Document:
        """Reads a record.

        Args:
          record: of any of the formats.
          where: its place, for messages.

        Raises:
          InputError: a field is missing, or does not hold what it should.
        """
        for form in self.formats:
            if all(name in record for name in form.fields):
                fields = form.parse(record, where)
                return Document(where=where, record=record, **fields)
        nearest = max(self.formats, key=lambda f: sum(n in record for n in f.fields))
        missing = next(name for name in nearest.fields if name not in record)
        known = " or ".join(f"({', '.join(form.fields)})" for form in self.formats)
        raise InputError(
            f"{where}: field {missing!r} is missing, expected the fields {known}, "
            f"found {sorted(record)}: repair the record or name another file"
        )
