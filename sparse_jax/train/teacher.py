"""A teacher's most probable tokens, computed once per batch and kept on disk.

    DIR/teacher.json            what the records were made from
    DIR/00000012.0of1           the rows of batch 12 that process 0 of 1 feeds

A record is int32 ids [B, T, k], float16 logarithms [B, T, k] and the CRC-32 of both,
little-endian. It is written whole or not at all; one that is damaged is made again.
"""

import dataclasses
import functools
import logging
import pathlib
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import distributed, mesh, models
from sparse_jax.files import read_json, write_file, write_json
from sparse_jax.train.losses import TopK, hidden_states
from sparse_jax.train.placement import place
from sparse_jax.types import Batch, InputError, Params

logger = logging.getLogger(__name__)

IDENTITY = "teacher.json"

_LEAST = -1e4  # a logarithm of probability zero that float16 can hold, and multiply


@dataclasses.dataclass(frozen=True)
class _Head:
    """What of a teacher's logits is kept; hashable, so that stages share its jit."""

    model: models.LlamaConfig
    compute: models.Compute
    isolate_documents: bool
    temperature: float
    top_k: int


class CachedTeacher:
    """Gives the `TopK` of a teacher on the batches of a run.

    Example:
      >>> teacher = CachedTeacher(  # doctest: +SKIP
      ...     "run/teacher", params, model, identity={"teacher": digest}, top_k=64)
      >>> teacher(12, batch).ids.shape  # doctest: +SKIP
      (8, 128, 64)
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        params: Params,
        model: models.LlamaConfig,
        *,
        identity: dict[str, Any],
        top_k: int,
        temperature: float,
        compute: models.Compute = models.Compute(),
        isolate_documents: bool = False,
    ):
        """Claims a directory; called by all processes.

        Args:
          directory: shared by the processes; made when it is not there.
          params: the teacher's weights.
          model: its architecture.
          identity: JSON-able, all that the batches depend on and the teacher's hash as
            `teacher`; the options below are added.
          top_k: tokens to keep of every distribution.
          temperature: of the loss.
          compute: dtype and chunk sizes.
          isolate_documents: see `NextToken`.

        Raises:
          InputError: `top_k` is larger than the vocabulary, or the directory holds the
            records of another teacher or of other batches.
        """
        if top_k > model.vocab_size:
            raise InputError(
                f"distill.top_k = {top_k} is more than the {model.vocab_size} token "
                "ids of the teacher; lower it"
            )
        self._directory = pathlib.Path(directory)
        self._params, self._top_k = params, top_k
        self._head = _Head(model, compute, isolate_documents, temperature, top_k)
        made_from = identity | {
            "top_k": top_k,
            "temperature": temperature,
            "dtype": compute.dtype,
            "isolate_documents": isolate_documents,
        }
        distributed.on_lead(lambda: self._claim(made_from))

    def _claim(self, made_from: dict[str, Any]) -> None:
        path = self._directory / IDENTITY
        if not path.exists():
            write_json(path, made_from)
            return
        found = distributed.first_difference(read_json(path), made_from, "")
        if found:
            name, there, here = found
            what = "another teacher" if "teacher" in name else "other settings"
            raise InputError(
                f"{path}: was made by {what}: {name.strip('.')} is {there!r}, this run "
                f"has {here!r}; choose another distill.cache_dir, or delete this one"
            )

    def __call__(self, position: int, batch: Batch, on_devices: Batch) -> TopK:
        """What the teacher says of a batch, on the mesh in use.

        Args:
          position: of the batch in the data stream.
          batch: this process's rows.
          on_devices: the same batch on the devices.
        """
        shape = (*batch.tokens.shape, self._top_k)
        index, count = jax.process_index(), jax.process_count()
        path = self._directory / f"{position:08d}.{index}of{count}"
        record = _read(path, shape)
        # The devices of all processes compute a batch together, or not at all.
        found = all(distributed.gather(record is not None))
        if record is None or not found:
            record = self._compute(on_devices)
            ids, log_probs = record
            content = ids.tobytes() + log_probs.tobytes()
            write_file(path, content + zlib.crc32(content).to_bytes(4, "little"))
        sharding = mesh.batch_sharding(mesh.current())
        whole = (on_devices.tokens.shape[0], *shape[1:])
        return TopK(*(place(sharding, x, whole) for x in record))

    def _compute(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        ids, log_probs = _most_probable(self._params, batch, head=self._head)
        return (
            _local_rows(ids).astype("<i4"),
            _local_rows(log_probs).astype("<f2"),
        )


@functools.partial(jax.jit, static_argnames="head")
def _most_probable(params, batch, *, head: _Head) -> tuple[jax.Array, jax.Array]:
    """Ids and logarithms of the k highest probabilities, [B, T, k]."""
    x_BTD = hidden_states(
        params, batch, head.model, head.compute, head.isolate_documents
    )

    def keep(logits_BCV):
        log_p_BCV = jax.nn.log_softmax(logits_BCV / head.temperature)
        log_p_BCk, ids_BCk = jax.lax.top_k(log_p_BCV, head.top_k)
        return ids_BCk, jnp.maximum(log_p_BCk, _LEAST).astype(jnp.float16)

    weights = models.head(params, x_BTD.dtype)
    found = models.map_logits(keep, head.compute.loss_chunk, x_BTD, weights)
    return jax.tree.map(lambda x: mesh.constrain(x, mesh.BATCH, None, None), found)


def _local_rows(array: jax.Array) -> np.ndarray:
    """The rows of a batch that lie on this process's devices, in order."""
    parts = {s.index[0].start or 0: s.data for s in array.addressable_shards}
    return np.concatenate([jax.device_get(parts[start]) for start in sorted(parts)])


def _read(
    path: pathlib.Path, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray] | None:
    """A record; None when there is none, or it is damaged."""
    if not path.exists():
        return None
    size = int(np.prod(shape))
    content = path.read_bytes()
    body, checksum = content[:-4], content[-4:]
    if len(body) != size * 6 or zlib.crc32(body).to_bytes(4, "little") != checksum:
        logger.warning("%s: is damaged; the teacher computes it again", path)
        return None
    ids = np.frombuffer(body, "<i4", size).reshape(shape)
    return ids, np.frombuffer(body, "<f2", size, offset=size * 4).reshape(shape)
