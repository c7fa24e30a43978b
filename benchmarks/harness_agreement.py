"""The evaluation harness beside lm-eval's own Hugging Face backend.

    pip install 'sparse_jax[agreement]'
    python -m benchmarks.harness_agreement --data_dir=DIR [--models=DIR,DIR] \\
        [--tasks=arc_easy,piqa,winogrande,lambada] [--limit=N] [--json=FILE]

Three ways score the same documents of the same files, zero-shot:

    transformers   lm-eval with its backend "hf", in float32
    adapter        lm-eval with this project's model, `sparse_jax.evaluate.lm_eval`
    harness        this project alone, as `launch/evaluate.py --tasks`

Printed per model and task: the largest difference between transformers and any other
in an example's log-likelihood, how often they differ in whether greedy decoding gives
the answer, and each metric of all three. The backend stops at an answer that is longer
than the context: documents with one are left out. It ends with an error where a
difference is over 1e-3 or an accuracy is not the same.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

# Model and data are files: nothing is looked up.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import lm_eval
import numpy as np
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from sparse_jax.evaluate.harness import HarnessConfig, run_tasks
from sparse_jax.evaluate.language_model import LanguageModel
from sparse_jax.evaluate.lm_eval import LOCAL_TASKS, register

TASKS = ("arc_easy", "piqa", "winogrande", "lambada")
MODELS = ("stories260K-hf", "babyllama-hf")
TOLERANCE = 1e-3
WAYS = ("transformers", "adapter", "harness")


@dataclasses.dataclass(frozen=True)
class Scored:
    """One document as one of the ways has scored it.

    Attributes:
      requests: (context, answer) of each answer.
      logprobs: of the answers.
      metrics: what the document contributes to each.
      greedy: whether greedy decoding gives each answer; the harness keeps it not.
    """

    requests: list[tuple[str, str]]
    logprobs: list[float]
    metrics: dict[str, float]
    greedy: list[bool] | None = None


Documents = dict[int, Scored]
"""By the number of the document in its file."""


def with_harness(
    model: LanguageModel, task: str, data_dir: pathlib.Path, limit: int | None
) -> Documents:
    """Scores the documents of a task with this project alone."""
    config = HarnessConfig(shots=0, limit=limit)
    [result] = run_tasks(model, [task], data_dir, config)
    return {
        number: Scored(sample["requests"], sample["logprobs"], sample["metrics"])
        for number, sample in enumerate(result.samples)
    }


def with_lm_eval(
    model: Any, task: str, data_dir: pathlib.Path, numbers: Sequence[int]
) -> Documents:
    """Scores some documents of a task with a model of lm-eval."""
    name = f"local_{task}"
    manager = TaskManager(
        include_path=LOCAL_TASKS,
        include_defaults=False,
        metadata={"data_dir": str(data_dir)},
    )
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=[name],
        samples={name: list(numbers)},
        task_manager=manager,
        bootstrap_iters=0,
    )
    return {
        sample["doc_id"]: Scored(
            [(context, answer) for context, answer in sample["arguments"]],
            [response[0][0] for response in sample["resps"]],
            {metric: sample[metric] for metric in sample["metrics"]},
            [response[0][1] for response in sample["resps"]],
        )
        for sample in found["samples"][name]
    }


def answers_fit(model: LanguageModel, scored: Scored) -> bool:
    """Whether the backend can score a document."""
    pairs = model.encoder.pairs(scored.requests)
    return all(len(answer) <= model.max_length for _, answer in pairs)


def compare(ways: Mapping[str, Documents]) -> dict[str, Any]:
    """The differences between ways that have scored the same documents.

    Raises:
      AssertionError: they were not asked the same.
    """
    reference = ways["transformers"]
    differences, greedy, unlike = [], 0, []
    for way, documents in ways.items():
        for number, expected in reference.items():
            found = documents[number]
            assert found.requests == expected.requests, (way, number)
            pairs = zip(found.logprobs, expected.logprobs, strict=True)
            differences += [abs(a - b) for a, b in pairs]
            if found.greedy is not None and found.greedy != expected.greedy:
                greedy += 1
            if any(
                found.metrics[name] != value
                for name, value in expected.metrics.items()
                if name != "perplexity"
            ):
                unlike.append((number, way, found.logprobs, expected.logprobs))
    return {
        "requests": sum(len(one.requests) for one in reference.values()),
        "max_difference": max(differences),
        "greedy_differs": greedy,
        "unlike": unlike,
        "metrics": {
            way: aggregate([documents[number].metrics for number in reference])
            for way, documents in ways.items()
        },
    }


def aggregate(contributions: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The metrics over documents, from what each of them contributes."""
    means = {
        name: float(np.mean([one[name] for one in contributions]))
        for name in contributions[0]
    }
    if "perplexity" in means:
        means["perplexity"] = float(np.exp(-means["perplexity"]))
    return means


def agreement(
    path: pathlib.Path,
    tasks: Sequence[str],
    data_dir: pathlib.Path,
    *,
    limit: int | None = None,
    batch_size: int = 16,
) -> list[dict[str, Any]]:
    """One row of the table per task, of one model."""
    model = LanguageModel(path, batch_size=batch_size)
    adapter = register()(path=str(path), batch_size=batch_size)
    backend = HFLM(str(path), dtype="float32", device="cpu", batch_size=batch_size)
    rows = []
    for task in tasks:
        seconds = {}
        ways: dict[str, Documents] = {}
        for way in reversed(WAYS):
            start = time.perf_counter()
            if way == "harness":
                everything = with_harness(model, task, data_dir, limit)
                ways[way] = {
                    number: scored
                    for number, scored in everything.items()
                    if answers_fit(model, scored)
                }
            else:
                other = adapter if way == "adapter" else backend
                ways[way] = with_lm_eval(other, task, data_dir, [*ways["harness"]])
            seconds[way] = time.perf_counter() - start
        rows.append(
            {
                "model": path.name,
                "task": task,
                "documents": len(ways["harness"]),
                "left_out": len(everything) - len(ways["harness"]),
                **compare(ways),
                "seconds": seconds,
            }
        )
    return rows


def failures(row: Mapping[str, Any]) -> list[str]:
    """What does not hold, in words."""
    name = f"{row['model']} {row['task']}"
    found = []
    if row["max_difference"] > TOLERANCE:
        found.append(f"{name}: log-likelihoods differ by {row['max_difference']:.1e}")
    for number, way, logprobs, expected in row["unlike"]:
        found.append(
            f"{name}: document {number} is judged otherwise by {way}, which gives "
            f"{logprobs}, than by transformers, which gives {expected}"
        )
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown, one line per metric."""
    header = ("model", "task", "documents", "requests", "max abs difference")
    header += ("greedy differs", "metric", *WAYS)
    lines = [header, ("---", "---", *["---:"] * 4, "---", *["---:"] * 3)]
    for row in rows:
        whole = row["documents"] + row["left_out"]
        for metric in row["metrics"]["transformers"]:
            lines.append(
                (
                    row["model"],
                    row["task"],
                    f"{row['documents']} of {whole}",
                    str(row["requests"]),
                    f"{row['max_difference']:.1e}",
                    str(row["greedy_differs"]),
                    metric,
                    *(f"{row['metrics'][way][metric]:.6g}" for way in WAYS),
                )
            )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", type=pathlib.Path, required=True)
    parser.add_argument("--models", help="directories, with commas between them")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--limit", type=int, help="only the first documents")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    models = [arguments.data_dir / name for name in MODELS]
    if arguments.models:
        models = [pathlib.Path(name) for name in arguments.models.split(",")]
    rows = [
        row
        for path in models
        for row in agreement(
            path,
            arguments.tasks.split(","),
            arguments.data_dir,
            limit=arguments.limit,
            batch_size=arguments.batch_size,
        )
    ]
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    if found := [failure for row in rows for failure in failures(row)]:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
