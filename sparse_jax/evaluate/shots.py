"""Examples before a question, and the whole prompt that they make together."""

import random
from collections.abc import Sequence

from sparse_jax.data.chat import ChatTemplate, Message, TemplateError
from sparse_jax.evaluate.tasks import Document, Task
from sparse_jax.types import InputError


def draw(
    documents: Sequence[Document],
    pool: Sequence[Document],
    shots: int,
    *,
    seed: int,
    first: bool = False,
    spare: bool = False,
) -> list[list[Document]]:
    """The examples of every document, as lm-eval draws them.

    One generator of random numbers serves all documents in their order, so that a run
    over the first of them sees the same examples. A document is never its own example.

    Args:
      documents: what is asked.
      pool: what examples are taken from; may be `documents` themselves.
      shots: examples of each document.
      seed: of the random numbers.
      first: take the first ones of the pool, of the same group, instead.
      spare: draw one more than is used, see `Task.spare_shot`.

    Raises:
      InputError: the pool is too small.

    Example:
      >>> pool = [Document(where=f"f:{n}", record={"n": n}) for n in range(9)]
      >>> [[shot.where for shot in shots] for shots in draw(pool[:2], pool, 2, seed=0)]
      [['f:6', 'f:8'], ['f:4', 'f:7']]
    """
    generator, inside = random.Random(seed), _shared(documents, pool)
    extra = int(inside or spare)  # one more, which may be the document itself
    found = []
    for document in documents:
        if shots == 0:
            found.append([])
            continue
        if first:
            others = [d for d in pool if d.group == document.group and d != document]
            chosen = others[:shots]
        else:
            chosen = _sample(generator, document, pool, shots, extra)
        if len(chosen) < shots:
            where = f" of group {document.group}" if document.group else ""
            raise InputError(
                f"{document.where}: {shots} examples are asked for, found "
                f"{len(chosen)}{where} to take them from; set a smaller --shots or add "
                "a file of examples"
            )
        found.append(chosen)
    return found


def _shared(documents: Sequence[Document], pool: Sequence[Document]) -> bool:
    """Whether a document may be among the examples."""
    return bool({d.where for d in documents} & {d.where for d in pool})


def _sample(
    generator: random.Random,
    document: Document,
    pool: Sequence[Document],
    shots: int,
    extra: int,
) -> list[Document]:
    """Some of the pool without the document itself; none where there are too few."""
    if shots + extra > len(pool):
        return []
    drawn = generator.sample(pool, shots + extra)
    others = [d for d in drawn if d.record != document.record]
    if len(others) < shots:  # the pool holds the document several times
        rest = [d for d in pool if d.record != document.record]
        others = generator.sample(rest, shots) if shots <= len(rest) else []
    return others[:shots]


def contexts(
    task: Task,
    document: Document,
    examples: Sequence[Document],
    template: ChatTemplate | None = None,
) -> list[str]:
    """What stands before an answer: one text, or one for each choice.

    The description, the examples with their answers, and the question. With a chat
    template the description is the system's turn and each example one of the user and
    one of the assistant, without delimiters.

    Args:
      task: of the document.
      document: what is asked.
      examples: see `draw`.
      template: of the conversation that the prompt becomes; None = plain text.

    Raises:
      InputError: the template does not render.
    """
    prompts = document.prompts or (document.prompt,)
    described = task.describe(document)
    if template is None:
        shown = "".join(
            f"{example.shown}{task.delimiter}{example.target}{task.shot_end}"
            for example in examples
        )
        return [f"{described}{shown}{prompt}" for prompt in prompts]
    before: list[Message] = []
    if described:
        before.append({"role": "system", "content": described})
    for example in examples:
        before.append({"role": "user", "content": example.shown})
        before.append({"role": "assistant", "content": example.target})
    try:
        return [
            template.render(
                [*before, {"role": "user", "content": prompt}],
                add_generation_prompt=True,
            )
            for prompt in prompts
        ]
    except TemplateError as error:
        raise InputError(f"{document.where}: {error}; name another template") from error
