"""A checkpoint on disk pruned block by block into a new one, whatever its size.

Unfinished work lies beside the output, in `OUT.unfinished/`:

    work.json           what is being done; another command does not go on with it
    allocation.jsonl    measurements of dense blocks, where the allocation needs them
    ...                 finished blocks, see `io.BlockWriter`

A run that is killed goes on at the first block that is not there. Calibration
activations are not kept: they are computed again from the blocks that are, in the same
arithmetic, so that the result has the same bits.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Array, Int

from sparse_jax import quant, schema
from sparse_jax.files import disk_errors, lock, read_json, write_json
from sparse_jax.io import BlockReader, BlockWriter, check_free
from sparse_jax.models import Compute
from sparse_jax.prune.blockwise import Progress
from sparse_jax.prune.config import PruneConfig
from sparse_jax.prune.finish_block import merge_layer
from sparse_jax.prune.one_shot import check, prune_blocks
from sparse_jax.prune.solve_block import PrunedBlock, Row
from sparse_jax.types import InputError, Params

Tokens = Int[Array | np.ndarray, "samples length"]
WORK, ALLOCATION, LOCK = "work.json", "allocation.jsonl", ".lock"


def prune_directory(
    reader: BlockReader,
    out: pathlib.Path,
    tokens: Tokens | None,
    config: PruneConfig,
    *,
    compute: Compute = Compute(),
    dtype: str | None = None,
    spool: pathlib.Path | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Prunes a model on disk into a new Hugging Face directory.

    One block's weights and Hessians are in memory at a time, and the activations that
    enter it. Killed anywhere, the same call continues, with the same bits in the end.

    Args:
      reader: the model, see `io.open_blocks`.
      out: the new directory; absent or empty.
      tokens: calibration sequences; None only for magnitude.
      config: what to do.
      compute: the activations' dtype.
      dtype: of the stored weights; None = the model's.
      spool: folder for the activations; None keeps them in memory.
      progress: called after every block as (done, total).

    Returns:
      Rows as `prune`'s.

    Raises:
      InputError: as `prune`; or `out` is not empty, or holds other unfinished work.
    """
    check_free(out)
    check(reader, reader.layer_masks, tokens, config)
    identity = work_identity(reader, tokens, config, compute)
    options = {"compute": compute, "spool": spool, "progress": progress}
    with open_work(reader, out, identity, dtype) as writer:
        rows = prune_into(reader, writer, tokens, config, **options)
        writer.finish(out, reader)
    return rows


def prune_into(
    reader: BlockReader,
    writer: BlockWriter,
    tokens: Tokens | None,
    config: PruneConfig,
    *,
    compute: Compute = Compute(),
    spool: pathlib.Path | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Prunes the blocks that `writer` does not hold yet; arguments as above.

    Returns:
      The rows of all blocks.
    """
    rounding = None if config.quantize is None else config.quantize.activations

    def store(index: int, block: PrunedBlock) -> Params:
        activations = None
        if rounding is not None:
            scales = {(p, index): value for p, value in block.input_scales.items()}
            activations = quant.Activations(kind=rounding, scales=scales)
        writer.write(
            index,
            block.params,
            block.masks,
            block.rows,
            grids=block.grids or None,
            activations=activations,
            adapter=block.adapter or None,
        )
        # As stored, rounded: a resumed run sees these bits, so this one must, too.
        return stored_layer(writer, index)

    def done(index: int) -> Params:
        return stored_layer(writer, index)

    prune_blocks(
        reader,
        reader.layer_masks,
        tokens,
        config,
        store,
        compute=compute,
        first=writer.n_done,
        done=done,
        spool=spool,
        log=writer.work_dir / ALLOCATION,
        progress=progress,
    )
    return [row for i in range(reader.config.n_layers) for row in writer.rows(i)]


def stored_layer(writer: BlockWriter, index: int) -> Params:
    """A stored block with what stands beside its matrices added to them."""
    return merge_layer(writer.layer(index), writer.layer_adapter(index))


def work_directory(out: pathlib.Path) -> pathlib.Path:
    """Where the unfinished work for an output lies."""
    return out.with_name(f"{out.name}.unfinished")


@contextlib.contextmanager
def open_work(
    reader: BlockReader,
    out: pathlib.Path,
    identity: dict[str, Any],
    dtype: str | None = None,
) -> Iterator[BlockWriter]:
    """Gives the blocks done so far of the work that `identity` describes.

    The work is locked against other processes, and is removed at the end, unless an
    error comes first.

    Raises:
      InputError: there is unfinished work of another description, or another process
        is working on it.
    """
    dtype = dtype or reader.dtype
    identity = json.loads(json.dumps(identity | {"dtype": dtype}))  # as read back
    work_dir = work_directory(out)
    with disk_errors(work_dir):
        work_dir.mkdir(parents=True, exist_ok=True)
    with lock(work_dir / LOCK):
        if not (work_dir / WORK).exists():
            write_json(work_dir / WORK, identity)
        _check_identity(work_dir, identity)
        yield BlockWriter(work_dir, reader.config, dtype)
        # Renamed first: of half-removed work there is nothing to continue.
        removed = work_dir.with_name(f".{work_dir.name}.removed")
        shutil.rmtree(removed, ignore_errors=True)
        os.replace(work_dir, removed)
        shutil.rmtree(removed, ignore_errors=True)


def _check_identity(work_dir: pathlib.Path, identity: dict[str, Any]) -> None:
    found = read_json(work_dir / WORK)
    for name, value in identity.items():
        if found.get(name) != value:
            raise InputError(
                f"{work_dir}: holds unfinished work with another {name} "
                f"({_difference(found.get(name), value)}); delete it or choose "
                "another place"
            )


def _difference(found: Any, wanted: Any) -> str:
    """The first field that differs, of dicts."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        name = next(n for n in {**wanted, **found} if found.get(n) != wanted.get(n))
        return f"{name}: {_difference(found.get(name), wanted.get(name))}"
    return f"{found!r:.60}, not {wanted!r:.60}"


def work_identity(
    reader: BlockReader,
    tokens: Tokens | None,
    config: PruneConfig,
    compute: Compute = Compute(),
) -> dict[str, Any]:
    """What must be the same for unfinished work to be continued."""
    files = sorted(reader.directory.glob("*.safetensors*"))
    ids = None if tokens is None else np.ascontiguousarray(tokens, np.int32)
    return {
        "model": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files],
        "tokens": None if ids is None else hashlib.sha256(ids.data).hexdigest(),
        "config": schema.to_dict(config),
        "compute": schema.to_dict(compute),
    }
