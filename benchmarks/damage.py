"""What becomes of damaged checkpoints: the table of docs/faults.md.

    python benchmarks/damage.py [--json=FILE]

Three checkpoints of a small state are written, at steps 4, 8 and 12. For every kind of
damage a copy of them is damaged and restored; the table says which step was used, and
what was said about the others. No damaged checkpoint is ever deleted.
"""

import argparse
import contextlib
import functools
import json
import logging
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from sparse_jax import models, train
from sparse_jax.models import LlamaConfig
from sparse_jax.prune import PruneConfig
from sparse_jax.sparsity.masks import make_masks
from sparse_jax.types import InputError, State

MODEL = LlamaConfig(
    vocab_size=64, d_model=32, d_ff=64, n_layers=2, n_heads=4, n_kv_heads=2
)
STEPS = (4, 8, 12)
NEWEST, BEFORE, OLDEST, REFUSED = "12", "8", "4", "refused"


def truncate(path: pathlib.Path) -> None:
    """Keeps the first half."""
    os.truncate(path, path.stat().st_size // 2)


def flip(path: pathlib.Path) -> None:
    """Inverts one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: pathlib.Path) -> None:
    """Leaves no bytes."""
    os.truncate(path, 0)


def remove(path: pathlib.Path) -> None:
    """Deletes a file or a folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def to_folder(path: pathlib.Path) -> None:
    """Puts an empty folder in a file's place."""
    path.unlink()
    path.mkdir()


def forbid(path: pathlib.Path) -> None:
    """Takes away all permissions."""
    path.chmod(0)


def exchange(state: pathlib.Path) -> None:
    """Gives two data files each other's content."""
    one, other = sorted(state.glob("ocdbt.process_*/d/*"))[:2]
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def age(state: pathlib.Path) -> None:
    """Takes the arrays of the checkpoint before: all whole, but of another step."""
    shutil.rmtree(state)
    shutil.copytree(state.parents[1] / BEFORE / "state", state)


def slander(checksums: pathlib.Path) -> None:
    """Changes one checksum in the list; the file it is about is right."""
    text = checksums.read_text()
    start = text.index('"crc32": "') + len('"crc32": "')
    other = "1" if text[start] == "0" else "0"
    checksums.write_text(text[:start] + other + text[start + 1 :])


def clear(checkpoint: pathlib.Path) -> None:
    """Empties a folder."""
    for path in checkpoint.iterdir():
        remove(path)


def litter(state: pathlib.Path) -> None:
    """Adds a file."""
    (state / "stray").write_text("?")


def abandon(checkpoint: pathlib.Path) -> None:
    """Leaves beside it what a kill leaves of the checkpoint after it."""
    half = checkpoint.with_name("16.orbax-checkpoint-tmp")
    shutil.copytree(checkpoint, half)
    truncate(data_file(half))


DAMAGES: dict[str, tuple[str, Callable[[pathlib.Path], None], str]] = {
    "array data truncated": ("12/DATA", truncate, BEFORE),
    "array data, one bit flipped": ("12/DATA", flip, BEFORE),
    "array data emptied": ("12/DATA", empty, BEFORE),
    "array data missing": ("12/DATA", remove, BEFORE),
    "array data unreadable": ("12/DATA", forbid, BEFORE),
    "array data a folder": ("12/DATA", to_folder, BEFORE),
    "two data files exchanged": ("12/state", exchange, BEFORE),
    "all arrays of an older step": ("12/state", age, BEFORE),
    "index of the arrays truncated": ("12/state/manifest.ocdbt", truncate, BEFORE),
    "names and shapes, one bit flipped": ("12/state/_METADATA", flip, BEFORE),
    "shardings missing": ("12/state/_sharding", remove, BEFORE),
    "state folder missing": ("12/state", remove, BEFORE),
    "orbax's description truncated": ("12/_CHECKPOINT_METADATA", truncate, BEFORE),
    "orbax's commit marker missing": ("12/commit_success.txt", remove, BEFORE),
    "meta, one bit flipped": ("12/meta/metadata", flip, BEFORE),
    "meta folder missing": ("12/meta", remove, BEFORE),
    "checksums missing": ("12/checksums.json", remove, BEFORE),
    "checksums truncated": ("12/checksums.json", truncate, BEFORE),
    "one checksum changed": ("12/checksums.json", slander, BEFORE),
    "checkpoint emptied": ("12", clear, BEFORE),
    "checkpoint missing": ("12", remove, BEFORE),
    "stray file": ("12/state", litter, NEWEST),
    "another, half written": ("12", abandon, NEWEST),
    "the two newest, one bit flipped": ("12/DATA 8/DATA", flip, OLDEST),
    "all truncated": ("12/DATA 8/DATA 4/DATA", truncate, REFUSED),
}
"""Name -> (what is damaged, how, the step that is used then)."""


def data_file(checkpoint: pathlib.Path) -> pathlib.Path:
    """The file with the arrays' bytes."""
    files = checkpoint.glob("state/ocdbt.process_*/d/*")
    return max(files, key=lambda path: path.stat().st_size)


@functools.cache
def first_state() -> State:
    """A training state with masks."""
    params = models.init(jax.random.key(0), MODEL)
    masks = make_masks(params, PruneConfig(sparsity=0.7).pattern_rules())
    optimizer = train.OptimizerConfig()
    return train.init_state(params, masks, optimizer, rng=jax.random.key(0))


def make_state(step: int) -> State:
    """The state at a step, in which it differs from every other step's."""
    state, count = first_state(), np.int32(step)
    params = jax.tree.map(lambda w: np.asarray(w) + step, state.params)
    return state.replace(step=count, data=count, params=params)


def write_checkpoints(folder: pathlib.Path) -> None:
    """Fills a folder with the checkpoints of all steps."""
    with train.Checkpoints(folder, keep=len(STEPS)) as checkpoints:
        for step in STEPS:
            checkpoints.save(step, make_state(step), {"step": step})


def meet(name: str, whole: pathlib.Path) -> dict[str, Any]:
    """Does a damage to a copy of a folder of checkpoints, and restores.

    Returns:
      `used` (the step, or "refused"), `said` (warnings and errors) and `lost`, the
      checkpoints that are neither in their place nor set aside.
    """
    with tempfile.TemporaryDirectory() as temporary:
        os.chmod(temporary, 0o755)  # for `without_root`
        folder = pathlib.Path(temporary, "checkpoints")
        shutil.copytree(whole, folder)
        return _meet(name, folder)


def _meet(name: str, folder: pathlib.Path) -> dict[str, Any]:
    targets, change, expected = DAMAGES[name]
    for target in targets.split():
        step, _, file = target.partition("/")
        data = file == "DATA"
        change(data_file(folder / step) if data else folder / target)
    with heard() as said, without_root(folder), train.Checkpoints(folder) as saved:
        try:
            state, meta = saved.restore(first_state())
            assert meta["step"] == int(state.step) == int(state.data)
            used = str(meta["step"])
        except InputError as error:
            used = REFUSED
            said.append(str(error))
    there = {p.name for p in [*folder.iterdir(), *folder.glob("damaged/*")]}
    gone = change is remove and targets == NEWEST
    lost = sorted({*map(str, STEPS)} - there - ({NEWEST} if gone else set()))
    text = "; ".join(said).replace(f"{folder}/", "")
    return {"damage": name, "used": used, "said": text, "lost": lost} | {
        "expected": expected
    }


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """Collects what is logged about checkpoints."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("sparse_jax.train.checkpoint")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def without_root(folder: pathlib.Path) -> Iterator[None]:
    """Works as an ordinary user when started as root, who may read everything."""
    if os.geteuid() != 0:
        yield
        return
    user = 65534  # nobody
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, user, user)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


def reasons(said: str) -> str:
    """What the warnings say is wrong, with orbax's long names of files shortened."""
    found = re.findall(r"checkpoint (\d+) is damaged \((.*?)\), moved", said)
    text = "; ".join(f"{step}: {reason}" for step, reason in found)
    return re.sub(r"/d/([0-9a-f]{6})[0-9a-f]+", r"/d/\1…", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json")
    arguments = parser.parse_args()
    logging.getLogger("sparse_jax").propagate = False
    with tempfile.TemporaryDirectory() as temporary:
        whole = pathlib.Path(temporary, "whole")
        write_checkpoints(whole)
        rows = [meet(name, whole) for name in DAMAGES]
    print("| damage | step used | what is said to be damaged |\n|---|---|---|")
    for row in rows:
        print(f"| {row['damage']} | {row['used']} | {reasons(row['said'])} |")
    wrong = [r["damage"] for r in rows if r["used"] != r["expected"] or r["lost"]]
    print(f"{len(rows)} kinds, {len(wrong)} not as they should be {wrong or ''}")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
