"""Multiple choice: the answer with the highest log-likelihood is the model's.

    acc       the likeliest answer is the right one
    acc_norm  so is the one whose log-likelihood per character is the highest

Prompts and metrics are those of lm-eval's tasks of the same names.
"""

import math
from collections.abc import Sequence

import numpy as np

from sparse_jax.data.records import Record, take
from sparse_jax.evaluate.scoring import Score
from sparse_jax.evaluate.tasks.document import Document, Format, Metrics, Task
from sparse_jax.evaluate.tasks.parse import (
    ASKED,
    Fields,
    chosen,
    index,
    label,
    labelled,
    queries,
    text,
    texts,
    with_answer,
)
from sparse_jax.evaluate.tasks.preprocess import hellaswag_text
from sparse_jax.types import InputError


def accuracy(document: Document, scores: Sequence[Score]) -> Metrics:
    """`acc`; of equal log-likelihoods the first counts."""
    best = int(np.argmax([score.logprob for score in scores]))
    return {"acc": float(best == document.gold)}


def accuracies(document: Document, scores: Sequence[Score]) -> Metrics:
    """`acc` and `acc_norm`."""
    per_character = [
        score.logprob / len(choice) if choice else -math.inf
        for score, choice in zip(scores, document.choices, strict=True)
    ]
    best = int(np.argmax(per_character))
    return {
        **accuracy(document, scores),
        "acc_norm": float(best == document.gold),
    }


def _arc(record: Record, where: str) -> Fields:
    question, choices = record["question"], record.get("choices")
    if isinstance(question, dict):  # AI2's own files
        question, choices = question.get("stem"), question.get("choices")
    if not isinstance(question, str):
        raise InputError(
            f"{where}: field 'question' must be text, or hold 'stem' and 'choices', "
            f"found {str(question)[:40]!r}: repair the record"
        )
    found, labels = labelled(choices, where)
    gold = label(record["answerKey"], labels, "answerKey", where)
    return chosen(f"Question: {question}\nAnswer:", found, gold)


def _openbookqa(record: Record, where: str) -> Fields:
    fields = record | {"question": record.get("question_stem", record.get("question"))}
    parsed = _arc(fields, where)
    prompt = parsed["prompt"].removeprefix("Question: ").removesuffix("\nAnswer:")
    return parsed | {"prompt": prompt}


def _hellaswag(record: Record, where: str) -> Fields:
    activity = text(record, "activity_label", where)
    second = text(record, "ctx_b", where).capitalize()
    context = f"{text(record, 'ctx_a', where)} {second}"
    return _endings(f"{activity}: {context}", record, where)


def _hellaswag_whole(record: Record, where: str) -> Fields:
    return _endings(text(record, "ctx", where), record, where)


def _endings(query: str, record: Record, where: str) -> Fields:
    endings = texts(record["endings"], "endings", where, 2)
    gold = index(record["label"], len(endings), "label", where)
    return chosen(hellaswag_text(query), [hellaswag_text(e) for e in endings], gold)


def _winogrande(record: Record, where: str) -> Fields:
    sentence = text(record, "sentence", where)
    before, blank, after = sentence.partition("_")
    if not blank:
        raise InputError(
            f"{where}: field 'sentence' must hold a blank '_', found "
            f"{sentence[:40]!r}: repair the record"
        )
    options = [text(record, name, where) for name in ("option1", "option2")]
    return {
        "prompts": tuple(before + option for option in options),
        "target": after.strip(),
        "gold": label(record["answer"], ("1", "2"), "answer", where),
    }


def _contexts(record: Record, where: str) -> Fields:
    prompts = texts(record["context_options"], "context_options", where, 2)
    return {
        "prompts": prompts,
        "target": text(record, "continuation", where).strip(),
        "gold": index(record["gold"], len(prompts), "gold", where),
    }


def _piqa(record: Record, where: str) -> Fields:
    choices = [text(record, name, where) for name in ("sol1", "sol2")]
    gold = index(record["label"], 2, "label", where)
    return chosen(f"Question: {text(record, 'goal', where)}\nAnswer:", choices, gold)


def _boolq(answer: str):
    def parse(record: Record, where: str) -> Fields:
        passage, question = (text(record, f, where) for f in ("passage", "question"))
        gold = int(take(record, answer, where, (bool, int)))
        index(gold, 2, answer, where)
        prompt = f"{passage}\nQuestion: {question}?\nAnswer:"
        return chosen(prompt, ("no", "yes"), gold)

    return Format(("passage", "question", answer), parse)


def _copa(record: Record, where: str) -> Fields:
    kinds = {"cause": "because", "effect": "therefore"}
    kind = [*kinds][label(record["question"], [*kinds], "question", where)]
    answers = [text(record, name, where) for name in ("choice1", "choice2")]
    # lm-eval's answers begin with a space of their own, besides the delimiter.
    choices = [f" {answer[:1].lower()}{answer[1:]}" for answer in answers]
    prompt = f"{text(record, 'premise', where).strip()[:-1]} {kinds[kind]}"
    return chosen(prompt, choices, index(record["label"], 2, "label", where))


def _task(*formats: Format, files: Sequence[str], judge=accuracies, **options) -> Task:
    return Task(
        kind="choice",
        formats=formats,
        files=tuple(files),
        judge_scores=judge,
        **options,
    )


def _files(name: str, split: str, *others: str) -> tuple[str, ...]:
    """NAME/NAME, NAME, NAME/SPLIT..., and others."""
    return (f"{name}/{name}", name, f"{name}/{split}*", *others)


ARC = Format(("question", "answerKey"), _arc)
QUESTIONS = queries(with_answer)

TASKS = {
    "arc_easy": _task(
        QUESTIONS,
        ARC,
        files=(
            "arc/arc_easy",
            *_files("arc_easy", "test"),
            "ARC-Easy/test*",
            "ARC-Easy/ARC-Easy-Test",
            "ai2_arc/ARC-Easy/test*",
        ),
        shot_files=(
            "arc_easy/train*",
            "ARC-Easy/train*",
            "ARC-Easy/ARC-Easy-Train",
            "ai2_arc/ARC-Easy/train*",
        ),
    ),
    "arc_challenge": _task(
        QUESTIONS,
        ARC,
        files=(
            "arc/arc_challenge",
            *_files("arc_challenge", "test"),
            "ARC-Challenge/test*",
            "ARC-Challenge/ARC-Challenge-Test",
            "ai2_arc/ARC-Challenge/test*",
        ),
        shot_files=(
            "arc_challenge/train*",
            "ARC-Challenge/train*",
            "ARC-Challenge/ARC-Challenge-Train",
            "ai2_arc/ARC-Challenge/train*",
        ),
    ),
    "hellaswag": _task(
        ASKED,
        queries(),
        Format(("activity_label", "ctx_a", "ctx_b", "endings", "label"), _hellaswag),
        Format(("ctx", "endings", "label"), _hellaswag_whole),
        spare_shot=True,
        files=_files(
            "hellaswag",
            "val",
            "hellaswag/hellaswag_val*",
            "hellaswag/*requests",
            "hellaswag/*small",
        ),
        shot_files=("hellaswag/train*", "hellaswag/hellaswag_train*"),
    ),
    "winogrande": _task(
        Format(("context_options", "continuation", "gold"), _contexts),
        Format(("sentence", "option1", "option2", "answer"), _winogrande),
        spare_shot=True,
        files=_files("winogrande", "val", "winogrande/dev*", "winogrande_xl/val*"),
        shot_files=(
            "winogrande/train_xl*",
            "winogrande/train*",
            "winogrande_xl/train*",
        ),
        judge=accuracy,
    ),
    "piqa": _task(
        QUESTIONS,
        Format(("goal", "sol1", "sol2", "label"), _piqa),
        spare_shot=True,
        files=_files("piqa", "val"),
        shot_files=("piqa/train*",),
    ),
    "boolq": _task(
        queries(lambda query: with_answer(query.removeprefix("Passage: "))),
        _boolq("answer"),
        _boolq("label"),
        spare_shot=True,
        files=_files("boolq", "val", "boolq/dev*", "super_glue/boolq/val*"),
        shot_files=("boolq/train*", "super_glue/boolq/train*"),
        judge=accuracy,
    ),
    "openbookqa": _task(
        queries(),
        Format(("question_stem", "choices", "answerKey"), _openbookqa),
        Format(("question", "answerKey"), _openbookqa),
        files=(
            *_files("openbookqa", "test", "openbookqa/main/test*"),
            *_files("openbook_qa", "test"),
        ),
        shot_files=(
            "openbookqa/train*",
            "openbookqa/main/train*",
            "openbook_qa/train*",
        ),
    ),
    "copa": _task(
        queries(),
        Format(("premise", "choice1", "choice2", "question", "label"), _copa),
        spare_shot=True,
        files=_files("copa", "val", "super_glue/copa/val*"),
        shot_files=("copa/train*", "super_glue/copa/train*"),
        judge=accuracy,
    ),
    # This project's own, see `data.functions`: four bodies for a signature.
    "functions": _task(queries(), files=("functions/choice",), delimiter="\n"),
}
