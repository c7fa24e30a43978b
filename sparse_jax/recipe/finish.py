"""The end of every stage that makes a model: it is checked, saved and judged."""

import functools
import pathlib
from typing import Any, NamedTuple

from sparse_jax import io, models, quant
from sparse_jax.prune import PrunedModel, QuantizeConfig
from sparse_jax.quant import Activations, Grids
from sparse_jax.recipe import measure
from sparse_jax.sparsity import adapters
from sparse_jax.sparsity.adapters import Adapter
from sparse_jax.sparsity.masks import violations
from sparse_jax.types import InputError, Masks, Params

Result = dict[str, Any]


class Made(NamedTuple):
    """A model that a stage has made.

    Attributes:
      params: pruned weights at zero, rounded matrices on their grids.
      masks: True = kept; None = dense.
      adapter: low-rank factors and outliers beside them.
      grids: of the rounded matrices; None = there are none.
      activations: how the inputs of these are rounded; None = not at all.
    """

    params: Params
    masks: Masks | None
    adapter: Adapter | None = None
    grids: Grids | None = None
    activations: Activations | None = None

    @classmethod
    def of_model(cls, found: io.Model, params: Params) -> "Made":
        """A model as it was found."""
        return cls(params, found.masks, found.adapter, found.grids, found.activations)

    @classmethod
    def of_pruning(cls, pruned: PrunedModel, config: QuantizeConfig | None) -> "Made":
        """A model that was pruned and, with `config`, rounded."""
        rounding = None if config is None else config.activations
        activations = None
        if rounding is not None:
            activations = Activations(kind=rounding, scales=pruned.input_scales)
        return cls(
            pruned.params, pruned.masks, pruned.adapter, pruned.grids, activations
        )


def finish(
    stage,
    context,
    directory: pathlib.Path,
    config: models.LlamaConfig,
    made: Made,
    seen: Result,
) -> Result:
    """Evaluates and saves the stage's model.

    Args:
      stage: its configuration.
      context: shared by all stages.
      directory: where the stage lives.
      config: architecture.
      made: the model.
      seen: `tokens`, `data` and perhaps `finetuning_data` of its training so far.
    """
    params, masks, adapter = made.params, made.masks, made.adapter
    if masks is not None and (broken := violations(params, masks)):
        raise AssertionError(f"{directory.name}: {broken} pruned weights are not zero")
    tokenizer = context.dataset.tokenizer
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size} ids, more than the model's "
            f"vocab_size {config.vocab_size}"
        )
    io.save(
        directory / "model",
        params,
        config,
        masks=masks,
        grids=made.grids,
        activations=made.activations,
        adapter=adapter,
        tokenizer_files=tokenizer.files,
        overwrite=True,
    )
    return {
        "tokens": seen["tokens"],
        "data": seen["data"],
        "finetuning_data": seen.get("finetuning_data", 0),
        **measure.sparsity(params, masks),
        **measure.storage(params, masks, adapter),
        **_judged(stage, context, config, made),
    }


def _judged(stage, context, config: models.LlamaConfig, made: Made) -> Result:
    """Held-out losses; where inputs are rounded, those without it as well."""
    params = made.params
    if made.adapter:
        params = adapters.merge(params, made.adapter)
    sources = context.recipe.sources(stage)
    judge = functools.partial(
        measure.heldout, context.recipe, context.dataset, config, sources=sources
    )
    found = {"domains": judge(params=params)}
    if made.activations is None:
        return found
    rounded = quant.round_inputs(params, made.grids or {}, made.activations)
    return {"domains": judge(params=rounded), "float_inputs": found["domains"]}
