"""Checkpoints of a training state: atomic, asynchronous, the last few kept (orbax).

A checkpoint holds two items. `state` is the pytree of `types.State` with masks packed
to bits and the random key as its uint32 data; `meta` is a small JSON object.
"""

import logging
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from sparse_jax import mesh as mesh_lib
from sparse_jax.sparsity import masks as masks_lib
from sparse_jax.types import InputError, State, Tree

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one stage, newest last; a context manager.

    Example:
      >>> with Checkpoints("run/checkpoints", keep=2) as checkpoints:  # doctest: +SKIP
      ...     checkpoints.save(10, state, {"seconds": 1.5})
      ...     state, meta = checkpoints.restore(state)
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 2):
        """Opens or creates `directory`; `keep` checkpoints stay, older ones go."""
        self._directory = pathlib.Path(directory).absolute()
        self._keep = keep
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep, enable_async_checkpointing=True
        )
        return ocp.CheckpointManager(self._directory, options=options)

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: State, meta: dict[str, Any]) -> None:
        """Starts writing a checkpoint; it counts once it is complete on disk.

        Args:
          step: name of the checkpoint.
          state: may be donated to the next step right after this returns.
          meta: JSON-able.
        """
        if jax.default_backend() == "cpu":
            # On CPU the writer thread would read the very buffers that the next step
            # is given to overwrite.
            state = jax.tree.map(jnp.copy, state)
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(_to_saved(state)),
            meta=ocp.args.JsonSave(meta),
        )
        self._manager.save(step, args=arguments)

    def restore(self, like: State) -> tuple[State, dict[str, Any]] | None:
        """The newest readable checkpoint, or None when there is none at all.

        A checkpoint that cannot be read is reported, moved aside (never deleted) and
        the one before it is taken.

        Args:
          like: a state, or its shapes, with the shardings wanted.

        Raises:
          InputError: there are checkpoints, but none can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self._restore(step, like)
            except Exception as error:  # whatever a damaged file makes orbax raise
                self._set_aside(step, error)
        if steps:
            raise InputError(
                f"{self._directory}: none of the checkpoints {steps} can be read; they "
                "were moved to the folder 'damaged', restart the stage with "
                "--restart_from"
            )
        return None

    def _restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        saved = jax.eval_shape(_to_saved, like)
        saved = _with_shardings(saved)
        arguments = ocp.args.Composite(
            state=ocp.args.StandardRestore(saved), meta=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(step, args=arguments)
        return _from_saved(restored["state"], like), restored["meta"]

    def _set_aside(self, step: int, error: Exception) -> None:
        damaged = self._directory / "damaged"
        logger.warning(
            "checkpoint %s is damaged (%s), moved to %s; using the one before it",
            self._directory / str(step),
            str(error).splitlines()[0] if str(error) else type(error).__name__,
            damaged,
        )
        self._manager.close()
        damaged.mkdir(exist_ok=True)
        target = damaged / str(step)
        while target.exists():
            target = target.with_name(target.name + "_")
        (self._directory / str(step)).rename(target)
        self._manager = self._open()

    def wait(self) -> None:
        """Blocks until everything saved so far is complete on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the writers and releases them."""
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _to_saved(state: State) -> Tree:
    """What is written: bits for masks, raw key data for the random key."""
    return {
        "step": state.step,
        "params": state.params,
        "masks": masks_lib.pack_masks(state.masks),
        "opt": state.opt,
        "rng": jax.random.key_data(state.rng),
        "data": state.data,
        "extra": state.extra,
    }


def _from_saved(saved: Tree, like: State) -> State:
    return State(
        **saved
        | {
            "masks": masks_lib.unpack_masks(saved["masks"], like.params),
            "rng": jax.random.wrap_key_data(saved["rng"]),
        }
    )


def _with_shardings(shapes: Tree) -> Tree:
    """Attaches the sharding of every leaf on the mesh in use."""
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        mesh_lib.shardings(mesh_lib.current(), shapes),
    )
