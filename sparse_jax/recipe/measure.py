"""What is measured of every model that a recipe makes."""

from collections.abc import Iterable
from typing import Any

from sparse_jax.data import Dataset
from sparse_jax.evaluate import evaluate, evaluate_responses
from sparse_jax.models import LlamaConfig
from sparse_jax.recipe.config import Recipe
from sparse_jax.sparsity import adapters, sparsity_report
from sparse_jax.sparsity.adapters import Adapter
from sparse_jax.sparsity.masks import count
from sparse_jax.types import Masks, Params


def sparsity(params: Params, masks: Masks | None) -> dict[str, Any]:
    """Exact counts of zeros, of the pruned matrices and of the whole model."""
    counts = sparsity_report(params, masks or {})
    return {
        "parameters": counts["model"]["total"],
        "sparsity_pruned": counts["pruned_matrices"]["sparsity"],
        "sparsity_total": counts["model"]["sparsity"],
        "kept": count(masks or {})[0],
        "layers": counts["matrices"],
    }


def storage(
    params: Params, masks: Masks | None, adapter: Adapter | None
) -> dict[str, Any]:
    """What a low-rank adapter costs; nothing for a model without one.

    `bits_per_weight` counts what a pruned matrix needs for each of its entries: kept
    weights and factors at 16 bits, and the masks at one.
    """
    if not adapter or masks is None:
        return {}
    factors = sum(leaf.size for leaf in adapter.values())
    bits = adapters.storage_bits(adapters.attach(params, adapter), masks)
    return {"adapter_parameters": factors, "bits_per_weight": bits["total"]}


def heldout(
    recipe: Recipe,
    dataset: Dataset,
    config: LlamaConfig,
    params: Params,
    sources: Iterable[str],
) -> dict[str, dict[str, Any]]:
    """Loss, perplexity and bits per byte of these held-out domains.

    Of a task's conversations the responses count, and `examples` says how many of them
    fit into a window, see `data.Plan`; of documents all of the text counts.
    """
    domains = {}
    for domain in sources:
        options: dict[str, Any] = {
            "window": recipe.evaluate.window,
            "batch_size": recipe.evaluate.batch_size,
            "compute": recipe.compute,
            "data": domain,
            "split": "heldout",
            "tokenizer": dataset.tokenizer.fingerprint,
        }
        examples = dataset.heldout_examples(domain)
        if examples is None:
            ids, nbytes = dataset.heldout(domain)
            result = evaluate(params, config, ids, nbytes, **options)
            domains[domain] = result.numbers()
        else:
            result = evaluate_responses(params, config, examples, **options)
            counts = examples.plan(recipe.evaluate.window).counts
            domains[domain] = result.numbers() | {"examples": counts}
    return domains
