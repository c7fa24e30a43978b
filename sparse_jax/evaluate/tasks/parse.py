"""Reading the fields of multiple-choice records, with their errors."""

from collections.abc import Callable, Sequence
from typing import Any

from sparse_jax.data.readers import whole_text
from sparse_jax.data.records import Record, take
from sparse_jax.evaluate.tasks.document import Format
from sparse_jax.types import InputError

Fields = dict[str, Any]
Change = Callable[[str], str]


def text(record: Record, field: str, where: str) -> str:
    """A field that holds text."""
    return take(record, field, where, str)


def texts(value: Any, field: str, where: str, least: int = 1) -> tuple[str, ...]:
    """A list of texts; raises InputError where it is something else."""
    right = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
    if not right or len(value) < least:
        raise InputError(
            f"{where}: field {field!r} must be a list of at least {least} texts, found "
            f"{str(value)[:60]!r}: repair the record"
        )
    return tuple(whole_text(one, f"{where}: field {field!r}") for one in value)


def index(value: Any, count: int, field: str, where: str) -> int:
    """The number of an answer, which may be spelled as text."""
    if isinstance(value, str) and value.strip().isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        raise InputError(
            f"{where}: field {field!r} must be the number of one of {count} answers, "
            f"0 to {count - 1}, found {value!r}: repair the record, or name a file "
            "that has the answers"
        )
    return value


def label(value: Any, labels: Sequence[str], field: str, where: str) -> int:
    """The number of the answer that has a label."""
    wanted = str(value).strip()
    if wanted not in labels:
        raise InputError(
            f"{where}: field {field!r} must be one of {list(labels)}, found "
            f"{value!r}: repair the record, or name a file that has the answers"
        )
    return list(labels).index(wanted)


def chosen(prompt: str, choices: Sequence[str], gold: int) -> Fields:
    """The fields of a multiple-choice document."""
    return {
        "prompt": prompt,
        "choices": tuple(choices),
        "gold": gold,
        "target": choices[gold],
    }


def queries(change: Change = str) -> Format:
    """Records of `query`, `choices` and `gold`, as in llm-foundry's collection.

    Args:
      change: makes the prompt of the query.
    """

    def parse(record: Record, where: str) -> Fields:
        choices = texts(record["choices"], "choices", where, 2)
        gold = index(record["gold"], len(choices), "gold", where)
        return chosen(change(text(record, "query", where)), choices, gold)

    return Format(("query", "choices", "gold"), parse)


def _asked(record: Record, where: str) -> Fields:
    choices = texts(record["choices"], "choices", where, 2)
    gold = index(record["gold"], len(choices), "gold", where)
    query = text(record, "asked_query", where)
    return chosen(query, choices, gold) | {"asked": True}


ASKED = Format(("asked_query", "choices", "gold"), _asked)
"""Questions whose examples stand before them in the file; see `files.joined`."""


def with_answer(query: str) -> str:
    r"""A query that ends with "Answer:".

    Example:
      >>> with_answer("Question: dresser\n")
      'Question: dresser\nAnswer:'
    """
    bare = query.rstrip()
    return bare if bare.endswith("Answer:") else f"{bare}\nAnswer:"


def labelled(choices: Any, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts and labels of choices, in either of the two shapes they are published in.

    {"text": [...], "label": [...]} or [{"text": ..., "label": ...}, ...].
    """
    if isinstance(choices, list) and all(isinstance(c, dict) for c in choices):
        choices = {
            name: [choice.get(name) for choice in choices] for name in ("text", "label")
        }
    if not isinstance(choices, dict):
        raise InputError(
            f"{where}: field 'choices' must hold 'text' and 'label', found "
            f"{str(choices)[:60]!r}: repair the record"
        )
    found = texts(choices.get("text"), "choices.text", where, 2)
    labels = texts(choices.get("label"), "choices.label", where, 2)
    if len(found) != len(labels):
        raise InputError(
            f"{where}: field 'choices' has {len(found)} texts and {len(labels)} "
            "labels: repair the record"
        )
    return found, labels
