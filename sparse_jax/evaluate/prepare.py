"""How tasks are asked: settings, documents, and the prompts that they become."""

import dataclasses
from pathlib import Path

from sparse_jax import infer
from sparse_jax.data.chat import chat_template
from sparse_jax.evaluate.generation import GenerateConfig, check_room
from sparse_jax.evaluate.language_model import LanguageModel
from sparse_jax.evaluate.shots import contexts, draw
from sparse_jax.evaluate.tasks import Document, Task, files, get
from sparse_jax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class HarnessConfig:
    """How tasks are asked.

    Attributes:
      shots: examples before each question; None = the usual number of each task.
      seed: of the examples that are drawn, and of sampling.
      limit: only the first documents of each task; None = all.
      num_samples: answers written to each question, of which metrics take the mean.
      temperature: of writing; 0 = the likeliest token always.
      top_k: of writing, see `infer.Sampling`.
      top_p: likewise.
      max_tokens: the most tokens of a written answer; None = the usual number of each
        task, and half of what the model reads at most.
      chat: ask in the turns of a conversation.
      template: the chat template, see `data.chat.chat_template`.
      unsafe_code: run programs even where a layer of their sandbox is missing.
    """

    shots: int | None = None
    seed: int = 1234
    limit: int | None = None
    num_samples: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int | None = None
    chat: bool = False
    template: str = "chat"
    unsafe_code: bool = False

    def __post_init__(self):
        for name, least in (
            ("shots", 0),
            ("limit", 1),
            ("num_samples", 1),
            ("max_tokens", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be >= {least}, found {value}")
        infer.Sampling(  # which checks its settings
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
        )
        if self.num_samples > 1 and self.temperature == 0:
            raise InputError(
                f"num_samples={self.num_samples} would all be the same at temperature "
                "0; set a temperature such as 0.2"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A task that is ready to be asked.

    Attributes:
      name: of the task.
      task: the task.
      documents: what is asked.
      prompts: what stands before the answer of each, see `shots.contexts`.
      writing: how answers are written; None where they are scored.
      shots: examples before each question.
      shots_from: where they come from.
      files: what was read.
    """

    name: str
    task: Task
    documents: list[Document]
    prompts: list[list[str]]
    writing: GenerateConfig | None
    shots: int
    shots_from: str
    files: tuple[str, ...]


def prepare(
    model: LanguageModel, name: str, data_dir: str | Path, config: HarnessConfig
) -> Prepared:
    """Reads a task's documents and makes their prompts.

    Args:
      model: what will be asked; its weights are not loaded.
      name: of the task.
      data_dir: folder with its file, or the file.
      config: how it will be asked.

    Raises:
      InputError: see `harness.run_tasks`.
    """
    task = get(name)
    task.require()
    paths = files.find(name, task, data_dir)
    everything = files.read(task, paths)
    documents = task.select(everything)
    shots = task.shots if config.shots is None else config.shots
    pool, words = documents, "the same file" if shots else ""
    if any(document.asked for document in documents):
        words = "in the file"
        if shots:
            raise InputError(
                f"{documents[0].where}: the examples stand in the file already; leave "
                "--shots out"
            )
    elif shots and (usual := task.usual_shots(everything)):
        pool, words = usual, "the same file, the usual ones"
    elif shots and (beside := files.find_shots(task, data_dir)):
        pool, words = files.read(task, beside), ", ".join(map(str, beside))
        pool = task.usual_shots(pool) or pool
    chosen = documents[: config.limit]
    examples = draw(
        chosen,
        pool,
        shots,
        seed=config.seed,
        first=task.first_shots,
        spare=task.spare_shot,
    )
    template = chat_template(model.tokenizer, config.template) if config.chat else None
    return Prepared(
        name=name,
        task=task,
        documents=chosen,
        prompts=[
            contexts(task, document, own, template)
            for document, own in zip(chosen, examples, strict=True)
        ],
        writing=_writing(task, model, config) if task.kind == "write" else None,
        shots=shots,
        shots_from=words,
        files=tuple(map(str, paths)),
    )


def _writing(task: Task, model: LanguageModel, config: HarnessConfig) -> GenerateConfig:
    writing = GenerateConfig(
        max_tokens=config.max_tokens or min(task.max_tokens, model.max_length // 2),
        stop=task.stop,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        seed=config.seed,
    )
    check_room(writing, model.max_length)
    return writing
