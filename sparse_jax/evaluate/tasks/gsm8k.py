"""GSM8K: a number at the end of a calculation.

    strict_match      the number behind "#### ", as in the data set's own answers
    flexible_extract  the last number of the answer

must equal the right one, commas and dollar signs aside.
"""

import re
from collections.abc import Sequence

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

_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


def strict_number(answer: str) -> str | None:
    r"""What stands behind the first "#### ".

    Example:
      >>> strict_number("2 + 2 = 4\n#### 4")
      '4'
    """
    found = _STRICT.search(answer)
    return found[1] if found else None


def flexible_number(answer: str) -> str | None:
    """The last number.

    Example:
      >>> flexible_number("That is $1,234 in all, for 3 days.")
      '3'
    """
    found = _FLEXIBLE.findall(answer)
    return found[-1] if found else None


def bare_number(spelled: str | None) -> str | None:
    r"""A number, or an answer that ends with it, without signs that do not count.

    Example:
      >>> bare_number("$1,234."), bare_number("5 apples are $5\n#### 5")
      ('1234', '5')
    """
    if spelled is None:
        return None
    without = re.sub(r"(?s).*#### ", "", re.sub(r"[,$]", "", spelled))
    return re.sub(r"\.$", "", without).lower()


def matches(document: Document, answer: str) -> Metrics:
    """Both metrics of one answer."""
    gold = bare_number(document.target)
    return {
        "strict_match": float(bare_number(strict_number(answer)) == gold),
        "flexible_extract": float(bare_number(flexible_number(answer)) == gold),
    }


def _judge(
    documents: Sequence[Document], answers: Sequence[Sequence[str]], judging: Judging
) -> list[Judgement]:
    """The mean of both metrics over the answers of each document."""
    del judging
    found = []
    for document, written in zip(documents, answers, strict=True):
        each = [matches(document, answer) for answer in written]
        notes = tuple(flexible_number(answer) or "no number" for answer in written)
        found.append(Judgement(mean_metrics(each), notes))
    return found


def _own(record: Record, where: str) -> Fields:
    return _fields(
        text(record, "question", where), text(record, "answer", where), where
    )


def _foundry(record: Record, where: str) -> Fields:
    steps, answer = (text(record, f, where) for f in ("chain_of_thought", "answer"))
    return _fields(text(record, "context", where), f"{steps}\n#### {answer}", where)


def _fields(question: str, answer: str, where: str) -> Fields:
    if strict_number(answer) is None:
        raise InputError(
            f"{where}: field 'answer' must end with '#### ' and a number, found "
            f"{answer[-30:]!r}: repair the record"
        )
    return {"prompt": f"Question: {question}\nAnswer:", "target": answer}


TASKS = {
    "gsm8k": Task(
        kind="write",
        formats=(
            Format(("question", "answer"), _own),
            Format(("context", "chain_of_thought", "answer"), _foundry),
        ),
        files=("gsm8k/test*", "gsm8k/main/test*", "gsm8k", "gsm8k/*gsm8k"),
        shot_files=("gsm8k/train*", "gsm8k/main/train*"),
        shots=5,
        judge_texts=_judge,
        stop=("Question:", "</s>", "<|im_end|>"),
    )
}
