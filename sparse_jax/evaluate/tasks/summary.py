"""Summaries of news: ROUGE between what the model and what an editor wrote."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from sparse_jax.data.records import Record
from sparse_jax.evaluate.tasks.document import (
    Document,
    Format,
    Judgement,
    Judging,
    Metrics,
    Task,
    mean_metrics,
)
from sparse_jax.evaluate.tasks.parse import Fields, text
from sparse_jax.types import InputError

_KINDS = ("rouge1", "rouge2", "rougeL")


def require_rouge() -> None:
    """Raises InputError where the rouge-score package is missing."""
    _scorer()


@functools.cache
def _scorer() -> Any:
    try:
        from rouge_score import rouge_scorer
    except ImportError as error:
        raise InputError(
            "ROUGE needs the rouge-score package, which is not installed: "
            "pip install 'sparse_jax[evaluate]'"
        ) from error
    return rouge_scorer.RougeScorer([*_KINDS], use_stemmer=True)


def rouge(reference: str, summary: str) -> Metrics:
    """F measures of ROUGE-1, ROUGE-2 and ROUGE-L, stemmed, white space made even.

    Raises:
      InputError: see `require_rouge`.
    """
    plain = (re.sub(r"\s+", " ", text).strip() for text in (reference, summary))
    found = _scorer().score(*plain)
    return {kind: float(found[kind].fmeasure) for kind in _KINDS}


def _judge(
    documents: Sequence[Document], answers: Sequence[Sequence[str]], judging: Judging
) -> list[Judgement]:
    del judging
    return [
        Judgement(mean_metrics([rouge(document.target, one) for one in written]))
        for document, written in zip(documents, answers, strict=True)
    ]


def _reader(article: str, summary: str) -> Callable[[Record, str], Fields]:
    def parse(record: Record, where: str) -> Fields:
        story = text(record, article, where)
        return {
            "prompt": f"Summarize the following article:\n\n{story}\n\nSummary:",
            "target": text(record, summary, where),
        }

    return parse


def _task(name: str, article: str, summary: str, *files: str) -> Task:
    return Task(
        kind="write",
        formats=(Format((article, summary), _reader(article, summary)),),
        files=(f"{name}/{name}", name, f"{name}/test*", *files),
        shot_files=(f"{name}/train*",),
        judge_texts=_judge,
        require=require_rouge,
        stop=("\n\n",),
        max_tokens=128,
    )


TASKS = {
    "cnn_dailymail": _task(
        "cnn_dailymail", "article", "highlights", "cnn_dailymail/3.0.0/test*"
    ),
    "xsum": _task("xsum", "document", "summary"),
}
