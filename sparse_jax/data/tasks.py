"""Fine-tuning data sets in their public formats, as conversations.

A task reads a record, of one line of JSON or one row of Parquet, and gives the turns of
a conversation; what the assistant says is what a model is trained to write.

    task               records of                                       fields
    chat               UltraChat-200k, ShareGPT-like files              messages, conversations
    open_platypus      Open-Platypus, Alpaca                            instruction, input, output
    dolphin            Dolphin                                          instruction, input, output
    openorca           OpenOrca                                         system_prompt, question, response
    dolly              Dolly 15k                                        instruction, context, response
    dolly_hhrlhf       MosaicML's Dolly HH-RLHF                         prompt, response
    evol_codealpaca    Evol-CodeAlpaca                                  instruction, output
    mbpp               MBPP                                             text, test_list, code
    gsm8k              GSM8K                                            question, answer
    cnn_dailymail      CNN/DailyMail                                    article, highlights
    functions          the embedded corpus, see `functions`             instruction, output
"""  # noqa: E501

import dataclasses
import difflib
from collections.abc import Callable, Sequence

from sparse_jax.data.chat import Message
from sparse_jax.data.records import Record, take
from sparse_jax.types import InputError

Turns = list[Message]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """How the records of a data set become conversations.

    Attributes:
      read: (record, its place in the file) to turns; raises InputError naming the
        place and the field where one is missing.
      template: the template that suits it, see `chat.chat_template`: "chat" for
        dialogue, "plain" where the prompt is the one that evaluation uses.
      word: what the names of its files or of their folder have in them.
    """

    read: Callable[[Record, str], Turns]
    template: str = "chat"
    word: str


def find_task(name: str) -> Task:
    """The task of a name.

    Raises:
      InputError: there is none, with the nearest names.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"one of {[*TASKS]}"
        raise InputError(f"there is no task {name!r} to fine-tune on; {hint}")
    return TASKS[name]


def _said(user: str, assistant: str, system: str = "") -> Turns:
    """A question and its answer."""
    turns: Turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": user})
    return [*turns, {"role": "assistant", "content": assistant}]


_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def _chat(record: Record, place: str) -> Turns:
    """`messages` of role and content, or `conversations` of from and value."""
    named = "messages" if "conversations" not in record else "conversations"
    keys = ("role", "content") if named == "messages" else ("from", "value")
    turns: Turns = []
    for number, message in enumerate(take(record, named, place, list)):
        where = f"{place}, {named}[{number}]"
        if not isinstance(message, dict):
            raise InputError(
                f"{where}: expected an object with {keys[0]} and {keys[1]}, found "
                f"{type(message).__name__}: repair the record"
            )
        role, content = (take(message, key, where) for key in keys)
        if role not in _ROLES:
            raise InputError(
                f"{where}: {keys[0]} must be one of {[*_ROLES]}, found {role!r}"
            )
        turns.append({"role": _ROLES[role], "content": content})
    return turns


def _instruction(field: str, answer: str) -> Callable[[Record, str], Turns]:
    """An instruction, an input that may be absent or empty, an answer."""

    def read(record: Record, place: str) -> Turns:
        user = take(record, "instruction", place)
        given = _optional(record, field, place)
        user = f"{user}\n\n{given}" if given else user
        return _said(user, take(record, answer, place))

    return read


def _dolphin(record: Record, place: str) -> Turns:
    """Dolphin calls the system message `instruction`, and the question `input`."""
    system, user, answer = (
        take(record, name, place) for name in ("instruction", "input", "output")
    )
    return _said(user, answer, system)


def _openorca(record: Record, place: str) -> Turns:
    system = _optional(record, "system_prompt", place)
    user, answer = (take(record, name, place) for name in ("question", "response"))
    return _said(user, answer, system)


def _prompted(prompt: str, answer: str) -> Callable[[Record, str], Turns]:
    def read(record: Record, place: str) -> Turns:
        return _said(take(record, prompt, place), take(record, answer, place))

    return read


def _gsm8k(record: Record, place: str) -> Turns:
    """The prompt of the zero-shot evaluation."""
    question, answer = (take(record, name, place) for name in ("question", "answer"))
    return _said(f"Question: {question}\nAnswer:", f" {answer}")


def _mbpp(record: Record, place: str) -> Turns:
    """The data set's own prompt, with its tests; Windows line ends are taken out."""
    listed = enumerate(take(record, "test_list", place, list))
    tests = {str(number): test for number, test in listed}
    shown = "\n".join(take(tests, number, f"{place}, test_list") for number in tests)
    text, code = (take(record, name, place) for name in ("text", "code"))
    user = (
        f"You are an expert Python programmer, and here is your task: {text} Your code "
        f"should pass these tests:\n\n{shown}\n[BEGIN]\n"
    )
    return _said(user, code.replace("\r\n", "\n").strip() + "\n[DONE]")


def _functions(record: Record, place: str) -> Turns:
    """The prompt of the evaluation."""
    asked, body = (take(record, name, place) for name in ("instruction", "output"))
    return _said(f"{asked}\n", body)


def _cnn_dailymail(record: Record, place: str) -> Turns:
    article, summary = (take(record, name, place) for name in ("article", "highlights"))
    return _said(f"{article}\n\nTL;DR:", f" {summary}")


def _optional(record: Record, field: str, place: str) -> str:
    """A field that may be absent, null or empty."""
    return "" if record.get(field) is None else take(record, field, place)


TASKS: dict[str, Task] = {
    "chat": Task(read=_chat, word="chat"),
    "open_platypus": Task(read=_instruction("input", "output"), word="platypus"),
    "dolphin": Task(read=_dolphin, word="dolphin"),
    "openorca": Task(read=_openorca, word="orca"),
    "dolly": Task(read=_instruction("context", "response"), word="dolly"),
    "dolly_hhrlhf": Task(
        read=_prompted("prompt", "response"), template="plain", word="dolly"
    ),
    "evol_codealpaca": Task(read=_prompted("instruction", "output"), word="codealpaca"),
    "mbpp": Task(read=_mbpp, template="plain", word="mbpp"),
    "gsm8k": Task(read=_gsm8k, template="plain", word="gsm8k"),
    "cnn_dailymail": Task(read=_cnn_dailymail, template="plain", word="dailymail"),
    "functions": Task(read=_functions, template="plain", word="functions"),
}
"""Name -> task."""


def has_response(turns: Sequence[Message]) -> bool:
    """Whether the assistant says anything."""
    return any(t["role"] == "assistant" and t["content"].strip() for t in turns)
