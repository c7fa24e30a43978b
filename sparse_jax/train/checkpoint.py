"""Checkpoints of a training state: whole or not there, checked before they are used.

A checkpoint is a folder named after its step, with two items written by orbax and the
list of all its files:

    state/           the pytree of `types.State`, with masks packed to bits and the
                     random key as its uint32 data; written by all processes
    meta/            a small JSON object
    checksums.json   see `train.checksums`; written last

It gets its name when all of it is on disk. What is damaged later is found by its
checksums, reported, moved to `damaged/` and never deleted.
"""

import logging
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from sparse_jax import distributed
from sparse_jax.files import disk_errors
from sparse_jax.train import checksums, saved
from sparse_jax.types import InputError, State, Tree

logger = logging.getLogger(__name__)

_UNFINISHED = ocp.path.atomicity.TMP_DIR_SUFFIX
"""In the name of what a kill has left half written or half deleted."""

_COMPLETE = f"{_UNFINISHED}-complete"

_WRITE_TIMEOUT = 3600  # seconds for one checkpoint, all processes together


class Checkpoints:
    """The checkpoints of one stage; a context manager.

    With several processes all call the same methods together. The lead looks at the
    disk and decides; each reads and writes its share of the arrays.

    Example:
      >>> with Checkpoints("run/checkpoints", keep=2) as checkpoints:  # doctest: +SKIP
      ...     checkpoints.save(10, state, {"seconds": 1.5})
      ...     state, meta = checkpoints.restore(state)
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int = 2,
        scheduled: Callable[[int], bool] = lambda step: True,
    ):
        """Opens or creates `directory`, and clears what was left unfinished there.

        Args:
          directory: of this stage alone.
          keep: how many of the newest scheduled checkpoints stay.
          scheduled: whether a step's checkpoint is one of a run that never stopped.
            The others stay until they are older than all that do.

        Raises:
          InputError: the directory cannot be written.
        """
        self._directory = pathlib.Path(directory).absolute()
        self._keep, self._scheduled = keep, scheduled
        self._writing = False
        distributed.on_lead(self._clear)
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(
                state=ocp.StandardCheckpointHandler(), meta=ocp.JsonCheckpointHandler()
            ),
            async_options=ocp.AsyncOptions(timeout_secs=_WRITE_TIMEOUT),
            temporary_path_class=_ListedPath,
        )

    def _clear(self) -> None:
        with disk_errors(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
            for path in self._directory.iterdir():
                if _UNFINISHED in path.name:
                    shutil.rmtree(path)

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first."""
        return distributed.on_lead(self._steps)

    def _steps(self) -> list[int]:
        folders = (p.name for p in self._directory.iterdir() if p.is_dir())
        return sorted(int(name) for name in folders if name.isdecimal())

    def _path(self, step: int) -> pathlib.Path:
        return self._directory / str(step)

    def save(self, step: int, state: State, meta: dict[str, Any]) -> None:
        """Starts writing a checkpoint; it counts once it is complete on disk.

        A step that is there already is not written again: a run restores its newest
        checkpoint, so what is there is what it restored.

        Args:
          step: name of the checkpoint.
          state: may be donated to the next step right after this returns.
          meta: JSON-able.

        Raises:
          InputError, OSError: this one, or the one before it, cannot be written.
        """
        self.wait()
        if step in self.steps():
            return
        if jax.default_backend() == "cpu":
            # On CPU the writer thread would read the very buffers that the next step
            # is given to overwrite.
            state = jax.tree.map(jnp.copy, jax.block_until_ready(state))
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(saved.to_saved(state)),
            meta=ocp.args.JsonSave(meta),
        )
        self._writing = True
        self._orbax.save(self._path(step), args=arguments)

    def restore(self, like: State) -> tuple[State, dict[str, Any]] | None:
        """The newest whole checkpoint, or None when there is none at all.

        A damaged one is reported, moved aside (never deleted), and the one before it
        is taken.

        Args:
          like: a state, or its shapes.

        Returns:
          The state, sharded for the mesh in use, and its meta.

        Raises:
          InputError: there are checkpoints, but all are damaged; or the newest whole
            one is of another model.
        """
        found = []
        for step in reversed(self.steps()):
            damage = self._damage(step)
            if damage is None:
                return self._restore(step, like)
            distributed.on_lead(lambda step=step, why=damage: self._move(step, why))
            found.append(f"{self._path(step)}/{damage}")
        if found:
            raise InputError(
                f"{self._directory}: none of the checkpoints is whole ("
                + "; ".join(found)
                + "); they were moved to the folder 'damaged', restart the stage with "
                "--restart_from"
            )
        return None

    def _damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint; each process reads a share of its files."""
        part, parts = jax.process_index(), jax.process_count()
        problem = checksums.problem(self._path(step), part=part, parts=parts)
        return next(filter(None, distributed.gather(problem)), None)

    def _move(self, step: int, damage: str) -> None:
        damaged = self._directory / "damaged"
        logger.warning(
            "checkpoint %s is damaged (%s), moved to %s; using the one before it",
            self._path(step),
            damage,
            damaged,
        )
        target = damaged / str(step)
        while target.exists():
            target = target.with_name(target.name + "_")
        with disk_errors(target):
            damaged.mkdir(exist_ok=True)
            self._path(step).rename(target)

    def _restore(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        wanted = jax.eval_shape(saved.to_saved, like)
        self._check_model(step, wanted)
        arguments = ocp.args.Composite(
            state=ocp.args.StandardRestore(saved.with_shardings(wanted)),
            meta=ocp.args.JsonRestore(),
        )
        restored = self._orbax.restore(self._path(step), args=arguments)
        return saved.from_saved(restored["state"], like), restored["meta"]

    def _check_model(self, step: int, wanted: Tree) -> None:
        """Raises InputError at the first leaf that the checkpoint has otherwise."""
        # The files are whole: what does not fit is another model's, not damaged.
        metadata = self._orbax.metadata(self._path(step)).item_metadata
        assert metadata is not None  # both items are there
        found, wanted = saved.shapes(metadata["state"].tree), saved.shapes(wanted)
        for name in sorted({*found, *wanted}):
            if found.get(name) != wanted.get(name):
                raise InputError(
                    f"{self._path(step)}: {name} is {found.get(name, 'not there')}, "
                    f"this run needs {wanted.get(name, 'none')}: the checkpoint is of "
                    "another model; choose another --workdir"
                )

    def remove_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps, which a rollback has made void."""
        self.wait()
        distributed.on_lead(
            lambda: [self._remove(later) for later in self._steps() if later > step]
        )

    def wait(self) -> None:
        """Blocks until everything saved so far is complete on disk.

        Raises:
          InputError, OSError: it could not be written.
          TimeoutError: another process has not written its part.
        """
        try:
            self._orbax.wait_until_finished()
        except TimeoutError as error:
            # Orbax says "timed out" as soon as another process has died; why is in the
            # cause, by which launchers know it.
            raise TimeoutError(f"{error} {error.__cause__ or ''}".strip()) from error
        if self._writing:
            distributed.on_lead(self._remove_old)
        self._writing = False

    def _remove_old(self) -> None:
        steps = self._steps()
        kept = [step for step in steps if self._scheduled(step)][-self._keep :]
        for step in steps:
            if kept and step < kept[0]:
                self._remove(step)

    def _remove(self, step: int) -> None:
        """Deletes a checkpoint; a kill leaves it whole, or no checkpoint."""
        doomed = self._directory / f"{step}{_UNFINISHED}-removed"
        with disk_errors(doomed):
            self._path(step).rename(doomed)
            shutil.rmtree(doomed)

    def close(self) -> None:
        """Waits for the writers and releases them; raises as `wait`."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class _ListedPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """Orbax's folder that is renamed when complete, with checksums.json before that."""

    @classmethod
    def from_final(cls, final_path, **options):
        # Orbax completes the folder under a second temporary name.
        complete = final_path.with_name(f"{final_path.name}{_COMPLETE}")
        return super().from_final(complete, **options)

    def get_final(self):
        complete = super().get_final()
        return complete.with_name(complete.name.removesuffix(_COMPLETE))

    async def finalize(self):
        await super().finalize()
        complete = pathlib.Path(super().get_final())
        checksums.write(complete)
        complete.rename(pathlib.Path(self.get_final()))
