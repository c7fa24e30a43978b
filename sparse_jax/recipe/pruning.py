"""A checkpoint on disk pruned and rounded in one shot, with its report."""

import dataclasses
import hashlib
import json
import os
import pathlib
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Array, Float, Int

from sparse_jax import __version__, io, mesh, models, prune, quant
from sparse_jax.evaluate import Evaluation, evaluate_blocks
from sparse_jax.files import read_json, read_lines, write_line
from sparse_jax.models import LlamaConfig
from sparse_jax.recipe.prune_job import (
    PruneJob,
    Text,
    check_apart,
    read_calibration,
    read_texts,
)
from sparse_jax.report import PRUNE_REPORT, pruning_files, pruning_report
from sparse_jax.schema import to_dict
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError, Params

Row = dict[str, Any]
BEFORE = "before.jsonl"
"""File of the unfinished work with the evaluations of the model before pruning."""


@dataclasses.dataclass(frozen=True)
class _Pruned:
    """The model as it will be written and run: all else is as it is, in its dtype."""

    reader: io.BlockReader
    writer: io.BlockWriter

    @property
    def config(self) -> LlamaConfig:
        return self.reader.config

    def layer(self, index: int) -> Params:
        layer = prune.stored_layer(self.writer, index)
        activations = self.writer.layer_activations(index)
        if activations is None:
            return layer
        paths = self.writer.layer_grids(index)
        return quant.round_layer_inputs(layer, index, paths, activations)

    def embed(self, ids: Int[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape D"]:
        return self._round(self.reader.embed(ids))

    def rows(self, path: str, start: int, stop: int) -> Float[np.ndarray, "_ D"]:
        return self._round(self.reader.rows(path, start, stop))

    def leaf(self, path: str) -> Array:
        return jnp.asarray(self._round(self.reader.leaf(path)))

    def _round(self, values) -> np.ndarray:
        dtype = jnp.dtype(self.writer.dtype)
        return np.asarray(values).astype(dtype).astype(np.float32)


def run_prune(
    job: PruneJob,
    model: str | pathlib.Path,
    out: str | pathlib.Path,
    *,
    quiet: bool = False,
) -> dict[str, Any]:
    """Prunes a model on disk into a new Hugging Face directory that holds its report.

    One decoder block is in memory at a time. Killed anywhere, the same call goes on at
    the first unfinished block, and ends with the same files, times apart.

    Args:
      job: what to do.
      model: a Hugging Face, run or stage directory.
      out: the new directory; absent or empty. Unfinished work lies beside it.
      quiet: no progress bars.

    Returns:
      The report, see `report.pruning`.

    Raises:
      InputError: anything about the job, the model, the texts or `out` that a user can
        put right; raised before any work where it can be known then.
    """
    with jax.set_mesh(mesh.make_mesh(job.mesh)):
        # Absolute: "." has no name.
        return _run(job, model, pathlib.Path(os.path.abspath(out)), quiet)


def _run(job, model, out, quiet) -> dict[str, Any]:
    """`run_prune` on the mesh that is set."""
    if not prune.work_directory(out).exists():
        io.check_free(out)
    reader = io.open_blocks(model)
    _check_unquantized(job, reader)
    config = job.prune_config(reader.config)
    check_apart(job)
    tokens, calibration = read_calibration(job, config, reader)
    prune.check(reader, reader.layer_masks, tokens, config)
    texts = read_texts(job, reader)
    identity = prune.work_identity(reader, tokens, config, job.compute)
    with prune.open_work(reader, out, identity, job.dtype) as writer:
        fingerprint = _fingerprint(identity, writer, texts)
        if (found := _finished(out, fingerprint)) is not None:
            return found
        io.check_free(out)
        rows = _prune(job, reader, writer, tokens, config, quiet)
        report = pruning_report(
            {
                "fingerprint": fingerprint,
                "model": {"path": str(model), "source": reader.source}
                | {"dtype": writer.dtype, "parameters": _parameters(reader.config)},
                "settings": to_dict(config) | {"compute": to_dict(job.compute)},
                "calibration": calibration,
                "evaluation": _evaluate(job, reader, writer, texts, quiet),
                "matrices": _with_weights(rows, reader.config, writer.dtype),
                "versions": {"sparse_jax": __version__, "jax": jax.__version__}
                | {"python": platform.python_version()},
            }
        )
        writer.finish(out, reader, extra_files=pruning_files(report))
    return report


def _check_unquantized(job: PruneJob, reader: io.BlockReader) -> None:
    if job.quantize is not None and reader.quantized:
        found = " and ".join(reader.quantized)
        raise InputError(
            f"{reader.directory}: is quantised already ({found}), and rounding again "
            "would add a second error to the first; name the model in floats that it "
            "was made from"
        )


def _prune(job, reader, writer, tokens, config, quiet) -> list[Row]:
    spool = None if job.spool is None else pathlib.Path(job.spool)
    with _progress("prune", quiet) as progress:
        options = {"compute": job.compute, "spool": spool, "progress": progress}
        return prune.prune_into(reader, writer, tokens, config, **options)


def _fingerprint(identity: Row, writer: io.BlockWriter, texts: list[Text]) -> str:
    """Of everything that the output follows from."""
    described = [identity, writer.dtype, [text.key for text in texts]]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _finished(out: pathlib.Path, fingerprint: str) -> Row | None:
    """The report in `out`, if a run killed at its very end has put it there."""
    file = out / PRUNE_REPORT
    found = read_json(file) if file.exists() else {}
    return found if found.get("fingerprint") == fingerprint else None


def _parameters(config: LlamaConfig) -> int:
    return sum(
        leaf.size for leaf in leaf_paths(models.abstract_params(config)).values()
    )


def _with_weights(rows: list[Row], config: LlamaConfig, dtype: str) -> list[Row]:
    """The rows with the number of weights in their matrices, and all their bits."""
    shapes = leaf_paths(models.abstract_params(config))
    whole = []
    for row in rows:
        added: Row = {"weights": shapes[row["path"]].size // config.n_layers}
        if "bits" in row and row["bits"] is None:
            floats = 8 * jnp.dtype(dtype).itemsize * (1 - row["sparsity"])
            added["bits"] = floats + row["index_bits"] + row["extra_bits"]
        whole.append(row | added)
    return whole


def _evaluate(
    job: PruneJob,
    reader: io.BlockReader,
    writer: io.BlockWriter,
    texts: list[Text],
    quiet: bool,
) -> list[Row]:
    """Rows of the report; what is known of the unpruned model is not done again."""

    def evaluate(name: str, blocks, text: Text) -> Evaluation:
        with _progress(f"evaluate {name}", quiet) as progress:
            return evaluate_blocks(
                blocks,
                text.ids,
                text.nbytes,
                compute=job.compute,
                progress=progress,
                **text.options,
            )

    log = writer.work_dir / BEFORE
    rows = []
    for text in texts:
        kept = [row["numbers"] for row in read_lines(log) if row["key"] == text.key]
        if kept:
            before = kept[0]
        else:
            before = evaluate("before", reader, text).numbers()
            write_line(log, {"key": text.key, "numbers": before})
        after = evaluate("after", _Pruned(reader, writer), text).numbers()
        names = ("loss", "perplexity", "bits_per_byte")
        sides = {
            side: {name: numbers[name] for name in names}
            for side, numbers in (("before", before), ("after", after))
        }
        rows.append({k: v for k, v in after.items() if k not in names} | sides)
    return rows


@contextmanager
def _progress(name: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar with rate and time left, as (done, total); off unless on a terminal."""
    off = True if quiet or jax.process_index() else None
    with tqdm.tqdm(desc=name, unit="block", disable=off) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield advance
