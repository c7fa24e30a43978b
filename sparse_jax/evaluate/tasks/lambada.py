"""LAMBADA: the last word of a passage."""

from collections.abc import Sequence

from sparse_jax.data.records import Record
from sparse_jax.evaluate.scoring import Score
from sparse_jax.evaluate.tasks.document import Document, Format, Metrics, Task
from sparse_jax.evaluate.tasks.parse import Fields, text
from sparse_jax.types import InputError


def _passage(record: Record, where: str) -> Fields:
    before, space, last = text(record, "text", where).rpartition(" ")
    if not space or not last:
        raise InputError(
            f"{where}: field 'text' must be words with spaces between them, the last "
            "of which is asked for: repair the record"
        )
    return {"prompt": before, "target": f" {last}"}


def _continuation(record: Record, where: str) -> Fields:
    word = text(record, "continuation", where).strip()
    if not word:
        raise InputError(f"{where}: field 'continuation' is empty: repair the record")
    return {"prompt": text(record, "context", where), "target": f" {word}"}


def last_word(document: Document, scores: Sequence[Score]) -> Metrics:
    """`acc`: each token of the word is the likeliest; and the word's log-likelihood."""
    del document
    return {"acc": float(scores[0].is_greedy), "perplexity": scores[0].logprob}


TASKS = {
    "lambada": Task(
        kind="target",
        formats=(
            Format(("context", "continuation"), _continuation),
            Format(("text",), _passage),
        ),
        files=(
            *("lambada/lambada", "lambada/lambada_openai", "lambada_openai"),
            *("lambada", "lambada/test*", "lambada_openai/test*"),
            *("lambada/lambada_test*", "lambada_test*"),
        ),
        # The word brings its own space; in examples lm-eval puts another before it.
        scored_delimiter="",
        judge_scores=last_word,
    )
}
