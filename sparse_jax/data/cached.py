"""Folders made once from files, and found ever after.

A folder is named by a hash of what it is made from, built shard by shard, and renamed
into place when it is whole: a killed build goes on at the first unfinished shard, and
of two processes one builds while the other waits.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from sparse_jax.data.sources import Shard
from sparse_jax.types import InputError

Write = Callable[[Shard, Path, tqdm], None]
"""Writes what comes of a shard into an empty folder; the bar counts bytes of text."""

Merge = Callable[[Sequence[Path], Path], None]
"""Puts the folders of all shards together in an empty one."""

_log = logging.getLogger(__name__)


def find_or_build(
    shards: Sequence[Shard],
    identity: Sequence[object],
    cache_dir: Path,
    *,
    name: str,
    write: Write,
    merge: Merge,
    progress: bool = True,
) -> Path:
    """The folder made from a source's shards, built if it is not there.

    Args:
      shards: what to read.
      identity: all that the content depends on.
      cache_dir: where such folders live.
      name: of the source, for messages.
      write: see `Write`.
      merge: see `Merge`; not called for a single shard.
      progress: show a progress bar if there is a terminal.

    Raises:
      InputError: a shard cannot be read, or the cache not be written.
    """
    key = hashlib.sha256(repr(list(identity)).encode()).hexdigest()[:32]
    final = cache_dir / "tokens" / key
    if not final.exists():
        with writing(cache_dir), _locked(final.with_suffix(".lock")):
            if not final.exists():  # another process may have built it meanwhile
                bar = tqdm(
                    desc=f"tokenise {name}",
                    total=_text_bytes(shards),
                    unit="B",
                    unit_scale=True,
                    disable=None if progress else True,  # None: off unless a terminal
                    leave=False,
                )
                with bar:
                    _build(shards, final, write, merge, bar)
    return final


@contextlib.contextmanager
def writing(cache_dir: Path) -> Iterator[None]:
    """Turns a read-only or full disk into one clear sentence."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cache directory {cache_dir} cannot be written ({error.strerror or error}"
            "): free some space, or set data.cache_dir"
        ) from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock that the system drops with the process, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems have no locks
            _log.warning(
                "%s: no lock (%s); build from one process at a time", path, error
            )
        yield


def _build(
    shards: Sequence[Shard], final: Path, write: Write, merge: Merge, bar: tqdm
) -> None:
    parts_dir = final.with_suffix(".parts")
    parts_dir.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, shard in enumerate(shards):
        part = parts_dir / f"{number:06d}"
        if not part.exists():
            temporary = _emptied(part.with_suffix(".tmp"))
            write(shard, temporary, bar)
            os.replace(temporary, part)
        parts.append(part)
    whole = parts[0]
    if len(parts) > 1:
        whole = _emptied(parts_dir / "merged.tmp")
        merge(parts, whole)
    os.replace(whole, final)
    shutil.rmtree(parts_dir, ignore_errors=True)


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _text_bytes(shards: Sequence[Shard]) -> int | None:
    sizes = [shard.text_bytes() for shard in shards]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def concatenate(parts: Sequence[Path], folder: Path, names: Sequence[str]) -> None:
    """Puts files of the same name in several folders together, one after another."""
    for name in names:
        with open(folder / name, "wb") as target:
            for part in parts:
                with open(part / name, "rb") as source:
                    shutil.copyfileobj(source, target, 1 << 22)


def map_array(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    """A file of `count` numbers, mapped into memory.

    Raises:
      ValueError: the file has another size.
    """
    size = os.path.getsize(path)
    if size != count * dtype.itemsize:
        raise ValueError(
            f"{path.name} has {size} bytes, expected {count * dtype.itemsize}"
        )
    if count == 0:  # cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")


def damaged(path: Path, error: Exception) -> InputError:
    """The sentence for a folder, or a file of it, that is not what was written."""
    return InputError(
        f"cached tokens in {path} are damaged ({error}): delete them, they will be "
        "built again"
    )
