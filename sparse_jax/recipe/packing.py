"""The stage that packs a model into one file, and measures what that is."""

from collections import Counter
from typing import Any

import jax

from sparse_jax import infer, io, mesh
from sparse_jax.evaluate import evaluate_blocks
from sparse_jax.infer import measure
from sparse_jax.mesh import MeshConfig
from sparse_jax.models import sizes
from sparse_jax.recipe.stage_kinds import Pack
from sparse_jax.types import InputError

PACKED = "model.packed"
BASE = "dense_float32"


def check(stage: Pack) -> None:
    """Raises InputError for what cannot work."""
    if jax.process_count() > 1:
        raise InputError(
            "pack stages run in one process; set enabled=False and pack the model with "
            "launch/export.py afterwards"
        )
    infer.PackConfig(format=stage.format, dtype=stage.dtype, head=stage.head)
    if stage.decode_size is not None:
        sizes.get(stage.decode_size)


def run(name, stage, context, parent_dir, parent, directory) -> dict[str, Any]:
    """Writes `model.packed`; its size, its loss by its own kernels, and its speed."""
    path = directory / PACKED
    path.unlink(missing_ok=True)  # of a stage that was killed while it measured
    settings = infer.PackConfig(format=stage.format, dtype=stage.dtype, head=stage.head)
    # Of a mesh of several devices one packs and measures.
    with jax.set_mesh(mesh.make_mesh(MeshConfig())):
        reader = io.open_blocks(parent_dir)
        with context.bar(name, 1, "file") as bar:
            report = infer.pack_checkpoint(reader, path, settings)
            bar.update()
        model = io.read_packed(path)
        matrices = report["totals"]["packed matrices"]
        found = {
            "model": stage.parent,
            "formats": _formats(report["tensors"]),
            "sparsity": matrices["sparsity"],
            "bits_per_weight": matrices["bits_per_weight"],
            "matrix_bytes": matrices["bytes_after"],
            "file_bytes": report["totals"]["file"]["bytes_after"],
            "domains": _losses(context, stage, model),
        }
        if stage.decode_size is not None:
            found["decode"] = _decode(stage, stage.decode_size, found)
    return {"packed": found}


def _formats(tensors: list[dict[str, Any]]) -> dict[str, int]:
    """Storage type -> weights of the layers' matrices in it, the most first."""
    counted: Counter[str] = Counter()
    for row in tensors:
        if row["part"] == "packed matrices":
            counted[row["format"]] += row["shape"][0] * row["shape"][1]
    return dict(counted.most_common())


def _losses(context, stage: Pack, model: io.PackedModel) -> dict[str, Any]:
    """Held-out loss on the domains that are documents, computed by its kernels."""
    recipe, dataset, domains = context.recipe, context.dataset, {}
    blocks = io.PackedBlocks(model)
    for domain in recipe.sources(stage):
        if dataset.heldout_examples(domain) is not None:
            continue  # conversations are scored in rows, by whole models
        ids, nbytes = dataset.heldout(domain)
        domains[domain] = evaluate_blocks(
            blocks,
            ids,
            nbytes,
            window=recipe.evaluate.window,
            batch_size=recipe.evaluate.batch_size,
            data=domain,
            split="heldout",
            tokenizer=dataset.tokenizer.fingerprint,
        ).numbers()
    return domains


def _decode(stage: Pack, size: str, found: dict[str, Any]) -> dict[str, Any]:
    """Decoding with random weights of a size that no cache holds, and such zeros."""
    config, bandwidth = sizes.get(size), measure.read_bandwidth()
    kind = next(iter(found["formats"]))
    rows = {}
    for name in dict.fromkeys((BASE, kind)):
        sparsity = 0.0 if name.startswith("dense_") else found["sparsity"]
        # The head in the baseline's own dtype, as it is in the file.
        model = infer.random_model(config, name, sparsity=sparsity, alike=True)
        rows[name] = measure.measure(
            model,
            name,
            bandwidth,
            prompt_tokens=stage.prompt_tokens,
            tokens=stage.decode_tokens,
            repeats=stage.repeats,
        )
        del model  # before the next one is made
    base, packed = rows[BASE], rows[kind]
    return {
        "size": size,
        "format": kind,
        "bandwidth": bandwidth,
        "dense": base.decode,
        "packed": packed.decode,
        "speedup": packed.decode / base.decode,
        "share_of_limit": {"dense": base.share_of_limit, kind: packed.share_of_limit},
        "limit": base.bytes_per_token / packed.bytes_per_token,
    }
