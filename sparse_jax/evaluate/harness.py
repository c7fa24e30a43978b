"""Asks a model the documents of tasks, and judges what it says.

Documents are read and checked before the model is asked anything, so that no work is
lost to a mistyped name or a damaged line.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_jax.evaluate import metrics
from sparse_jax.evaluate.code_tests import require_layers
from sparse_jax.evaluate.generation import GenerateConfig
from sparse_jax.evaluate.language_model import LanguageModel
from sparse_jax.evaluate.metrics import Estimate
from sparse_jax.evaluate.prepare import HarnessConfig, Prepared, prepare
from sparse_jax.evaluate.result import TaskResult
from sparse_jax.evaluate.tasks import TASKS, Judging
from sparse_jax.types import InputError


def run_tasks(
    model: LanguageModel,
    names: Sequence[str],
    data_dir: str | Path,
    config: HarnessConfig = HarnessConfig(),
) -> Iterator[TaskResult]:
    """Asks a model all documents of some tasks.

    Args:
      model: what is asked.
      names: of tasks, see `tasks.TASKS`.
      data_dir: folder with their files, or a file.
      config: how they are asked.

    Yields:
      What came out of each task, in the order of `names`.

    Raises:
      InputError: a task is not known or its file is not there, a record cannot be
        read, a package or a layer of the sandbox is missing, or a setting is out of
        range.
    """
    if not names:
        raise InputError(f"no task is named; known: {[*TASKS]}")
    prepared = [prepare(model, name, data_dir, config) for name in names]
    if any(one.task.runs_code for one in prepared):
        require_layers(unsafe=config.unsafe_code)
    for one in prepared:
        yield run_task(model, one, config)


def run_task(
    model: LanguageModel, prepared: Prepared, config: HarnessConfig
) -> TaskResult:
    """Asks a model one task; arguments as `run_tasks`."""
    settings: dict[str, Any] = {"chat": config.chat}
    if prepared.writing is None:
        samples = _score(model, prepared, config)
    else:
        samples = _write(model, prepared, prepared.writing, config)
        settings |= dataclasses.asdict(prepared.writing)
        settings["num_samples"] = config.num_samples
    groups = [document.group for document in prepared.documents]
    found, by_group = _aggregate([sample["metrics"] for sample in samples], groups)
    return TaskResult(
        task=prepared.name,
        metrics=found,
        documents=len(samples),
        truncated=sum(sample["truncated"] for sample in samples),
        shots=prepared.shots,
        shots_from=prepared.shots_from,
        files=prepared.files,
        settings=settings,
        groups=by_group,
        samples=samples,
    )


def _score(
    model: LanguageModel,
    prepared: Prepared,
    config: HarnessConfig,
) -> list[dict[str, Any]]:
    """Judges documents by the log-likelihoods of their answers."""
    task = prepared.task
    assert task.judge_scores is not None  # of these kinds
    delimiter = task.delimiter
    if task.scored_delimiter is not None:
        delimiter = task.scored_delimiter
    elif config.chat:
        delimiter = ""  # the template ends where the answer begins
    requests = []
    for document, texts in zip(prepared.documents, prepared.prompts, strict=True):
        answers = document.choices or (document.target,)
        requests.append([(t, f"{delimiter}{a}") for t in texts for a in answers])
    scores = iter(model.loglikelihood([pair for pairs in requests for pair in pairs]))
    samples = []
    for document, pairs in zip(prepared.documents, requests, strict=True):
        own = [next(scores) for _ in pairs]
        samples.append(
            {
                "task": prepared.name,
                "where": document.where,
                "requests": pairs,
                "gold": document.gold,
                "logprobs": [score.logprob for score in own],
                "metrics": dict(task.judge_scores(document, own)),
                "truncated": any(score.truncated for score in own),
            }
        )
    return samples


def _write(
    model: LanguageModel,
    prepared: Prepared,
    writing: GenerateConfig,
    config: HarnessConfig,
) -> list[dict[str, Any]]:
    """Judges documents by what the model writes."""
    task, count = prepared.task, config.num_samples
    assert task.judge_texts is not None  # of this kind
    prompts = [texts[0] for texts in prepared.prompts]
    written = model.generate([p for p in prompts for _ in range(count)], writing)
    answers = [
        [one.text for one in written[start : start + count]]
        for start in range(0, len(written), count)
    ]
    judging = Judging(unsafe_code=config.unsafe_code)
    judged = task.judge_texts(prepared.documents, answers, judging)
    return [
        {
            "task": prepared.name,
            "where": document.where,
            "prompt": prompts[number],
            "answers": answers[number],
            "notes": list(judged[number].notes),
            "metrics": dict(judged[number].metrics),
            "truncated": written[number * count].truncated,
        }
        for number, document in enumerate(prepared.documents)
    ]


def _aggregate(
    contributions: Sequence[Mapping[str, float]], groups: Sequence[str]
) -> tuple[dict[str, Estimate], dict[str, dict[str, Estimate]]]:
    """Metrics over all documents, and over those of each group."""
    found: dict[str, Estimate] = {}
    by_group: dict[str, dict[str, Estimate]] = {}
    for name in contributions[0]:
        values = [one[name] for one in contributions]
        if name == "perplexity":
            found[name] = metrics.perplexity(values)
        elif not any(groups):
            found[name] = metrics.mean(values)
        else:
            parts: dict[str, list[float]] = {}
            for group, value in zip(groups, values, strict=True):
                parts.setdefault(group, []).append(value)
            found[name] = metrics.mean_of_groups([*parts.values()])
            found[f"{name}_of_groups"] = metrics.mean_of_means([*parts.values()])
            for group, part in parts.items():
                by_group.setdefault(group, {})[name] = metrics.mean(part)
    return found, by_group
