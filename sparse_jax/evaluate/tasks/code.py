"""HumanEval and MBPP: programs that must pass their tests.

    pass@k = mean over problems of 1 - C(n - c, k) / C(n, k)

with c of n samples that pass, for k = 1, 10 and 100 up to n.
"""

from collections.abc import Callable, Sequence

from sparse_jax.data.records import Record, take
from sparse_jax.evaluate import code_tests
from sparse_jax.evaluate.metrics import pass_at_k
from sparse_jax.evaluate.tasks.document import (
    Document,
    Format,
    Judgement,
    Judging,
    Task,
)
from sparse_jax.evaluate.tasks.parse import Fields, text, texts

_KS = (1, 10, 100)
_MBPP_TEST = range(11, 511)
_MBPP_SHOTS = (2, 3, 4)

Program = Callable[..., str]
"""(record, what was written, where=its place) to a program that fails or not."""


def _judge(program: Program):
    def judge(
        documents: Sequence[Document],
        answers: Sequence[Sequence[str]],
        judging: Judging,
    ) -> list[Judgement]:
        programs = [
            program(document.record, answer, where=document.where)
            for document, written in zip(documents, answers, strict=True)
            for answer in written
        ]
        outcomes = iter(code_tests.check_programs(programs, unsafe=judging.unsafe_code))
        found = []
        for written in answers:
            own = [next(outcomes) for _ in written]
            count, passed = len(own), sum(outcome.passed for outcome in own)
            metrics = {
                f"pass@{k}": pass_at_k(count, passed, k) for k in _KS if k <= count
            }
            found.append(Judgement(metrics, tuple(o.reason for o in own)))
        return found

    return judge


def _humaneval(record: Record, where: str) -> Fields:
    prompt, *_ = [text(record, f, where) for f in ("prompt", "test", "entry_point")]
    return {"prompt": prompt, "target": str(record.get("canonical_solution", ""))}


def _mbpp(field: str) -> Format:
    def parse(record: Record, where: str) -> Fields:
        tests = "\n".join(texts(record["test_list"], "test_list", where))
        problem = text(record, field, where)
        return {
            "prompt": "You are an expert Python programmer, and here is your task: "
            f"{problem} Your code should pass these tests:\n\n{tests}\n[BEGIN]\n",
            "target": f"{text(record, 'code', where)}\n[DONE]",
        }

    return Format((field, "code", "test_list"), parse)


def _task_id(document: Document) -> int:
    return take(document.record, "task_id", document.where, int)


def _mbpp_asked(documents: Sequence[Document]) -> list[Document]:
    """The test split, ids 11 to 510, of a file that holds all splits."""
    if not all("task_id" in document.record for document in documents):
        return list(documents)
    return [d for d in documents if _task_id(d) in _MBPP_TEST] or list(documents)


def _mbpp_shots(documents: Sequence[Document]) -> list[Document]:
    """The usual examples, ids 2 to 4, where a file holds them."""
    by_id = {d.record.get("task_id"): d for d in documents}
    found = [by_id[number] for number in _MBPP_SHOTS if number in by_id]
    return found if len(found) == len(_MBPP_SHOTS) else []


TASKS = {
    "humaneval": Task(
        kind="write",
        formats=(Format(("prompt", "test", "entry_point"), _humaneval),),
        files=(
            *("humaneval/HumanEval", "humaneval/humaneval", "HumanEval", "humaneval"),
            *("humaneval/test*", "openai_humaneval/test*", "openai_humaneval/*/test*"),
        ),
        delimiter="",
        judge_texts=_judge(code_tests.humaneval_program),
        stop=("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
        max_tokens=1024,
        runs_code=True,
    ),
    "mbpp": Task(
        kind="write",
        formats=(_mbpp("text"), _mbpp("prompt")),
        files=(
            *("mbpp/mbpp", "mbpp", "mbpp/test*", "mbpp/full/test*"),
            *("mbpp/sanitized/test*", "mbpp/sanitized*"),
        ),
        shot_files=("mbpp/prompt*", "mbpp/full/prompt*", "mbpp/train*"),
        shots=3,
        first_shots=True,
        delimiter="",
        judge_texts=_judge(code_tests.mbpp_program),
        stop=("[DONE]",),
        select=_mbpp_asked,
        usual_shots=_mbpp_shots,
        runs_code=True,
    ),
}
