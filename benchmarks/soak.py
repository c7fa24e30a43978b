"""Kills a recipe again and again; it must end with the same bits.

    python benchmarks/soak.py [--kills=60] [--processes=1,2] [--workdir=DIR]
                              [--seed=0] [--json=FILE]

For each number of processes a recipe of every kind of stage but `init` runs once
without a stop. Then it is started, killed with -9 at a random moment, started again by
the same command, and so on; when it ends, all its files (but times, TensorBoard's and
orbax's) must equal the first run's, byte for byte, and the next copy begins. Of several
processes one, or all, are killed; those that are left must end by themselves. The kills
are divided over `--processes`.

A checkpoint is lost when a start finds it damaged, or when the newest of a stage is
older after a start than before. Killed itself, the script goes on where it was, if
`--workdir` is the same.
"""

import argparse
import collections
import ctypes
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

from sparse_jax.files import write_json

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.recipe.helpers import STAGES, assert_same, write_corpus

PEER_TIMEOUT = 20  # seconds
START_TIMEOUT = 60  # seconds
PATIENCE = 180  # seconds after which a process that should have ended has not

CONFIG = """
import dataclasses, pathlib
from jax._src import compiler, distributed
from configs import common
from tests.recipe import helpers

# JAX lets process 0 alone write to its compilation cache, whose keys know the device:
# the other processes would compile everything in every life.
def cache_write(*arguments, write=compiler._cache_write):
    state = distributed.global_state
    index, state.process_id = state.process_id, 0
    try:
        write(*arguments)
    finally:
        state.process_id = index

compiler._cache_write = cache_write

def get_config():
    recipe = helpers.make_recipe(pathlib.Path({corpus!r}))
    data = dataclasses.replace(recipe.data, cache_dir={cache!r})
    train = dataclasses.replace(recipe.train, steps={steps}, checkpoint_every={every})
    stages = {{
        name: dataclasses.replace(stage, steps={steps})
        if stage.kind == "pretrain" else stage
        for name, stage in recipe.stages.items()
    }}
    return common.to_config(
        dataclasses.replace(recipe, data=data, train=train, stages=stages)
    )
"""
STEPS, EVERY = 32, 8  # of every training stage, and between its checkpoints


class Soak:
    """One number of processes: its folder, its record, its copies of the run."""

    def __init__(self, workdir: pathlib.Path, count: int, kills: int, seed: int):
        self._folder, self._count, self._kills = workdir / f"{count}", count, kills
        self._seed = seed
        self._config = workdir / "soak_config.py"
        self._file = self._folder / "soak.json"
        self.record: dict[str, Any] = {"processes": count, "kills": [], "equal": 0}
        if self._file.exists():
            self.record = json.loads(self._file.read_text())

    def run(self) -> dict[str, Any]:
        """Kills as often as there is to kill, compares, and returns the record."""
        whole = self._folder / "whole"
        if "seconds" not in self.record:
            # Twice: the first start compiles, and prepares the data.
            for _ in range(2):
                started = time.monotonic()
                self._finish(whole)
                seconds = time.monotonic() - started
                if not self.record.setdefault("first_seconds", None):
                    self.record["first_seconds"] = seconds
                    whole.rename(whole.with_name("cold"))
            started = time.monotonic()
            self._finish(whole)  # nothing to do: what a start takes
            self.record |= {"seconds": seconds, "idle": time.monotonic() - started}
            self._write()
        while len(self.record["kills"]) < self._kills:
            self._life(self._copy())
        if self._copy().exists():
            self._finish(self._copy())
            self._compare()
        return self.record

    def _copy(self) -> pathlib.Path:
        return self._folder / f"run{self.record['equal']}"

    def _life(self, run: pathlib.Path) -> None:
        """One start, ended by a kill or by the end of the recipe."""
        number = len(self.record["kills"])
        # Seeded by the kill: a soak that goes on draws what it would have drawn.
        rng = random.Random(f"{self._seed} {self._count} {number} {self._copy()}")
        before, started = newest(run), time.monotonic()
        processes = self._start(run)
        self._sleep(rng, run, processes)
        killed = rng.choice(["all", *range(self._count)]) if self._count > 1 else "all"
        victims = processes if killed == "all" else [processes[killed]]
        hit = any(process.poll() is None for process in victims)
        for process in victims:
            process.send_signal(signal.SIGKILL)
        died = time.monotonic()
        codes = self._wait(processes)
        if all(code == 0 for code in codes):
            self._compare()
            return
        after = newest(run)
        stage = next((s for s in STAGES if not (run / s / "result.json").exists()), "")
        row = {
            "copy": self.record["equal"],
            "after_seconds": round(died - started, 2),
            "stage": stage or "report",
            "checkpoints": after.get(stage),
            "killed": killed,
            "codes": codes,
            "others_ended_in": round(time.monotonic() - died, 2),
            "lost": sorted(s for s, step in before.items() if after.get(s, -1) < step),
        }
        allowed = {-signal.SIGKILL, 76, 0}  # killed, told of it, or done already
        if not hit or not {*codes} <= allowed:
            self._fail(f"{run}: exit codes {codes}")
        row["lost"] += sorted(p.parts[-3] for p in run.glob("*/checkpoints/damaged"))
        self.record["kills"].append(row)
        self._write()
        if row["lost"]:
            self._fail(f"{run}: a checkpoint is lost: {row}")
        print(
            f"{self._count} processes, kill {number + 1} of {self._kills}: "
            f"{row['after_seconds']:5.1f} s after the start, in {row['stage']}"
            f" (newest checkpoint {row['checkpoints']}); killed {killed}, exit codes "
            f"{codes}",
            flush=True,
        )

    def _sleep(
        self, rng: random.Random, run: pathlib.Path, processes: list[subprocess.Popen]
    ) -> None:
        """Until a random moment: of the start, or three times in four of the work."""
        if rng.random() < 0.25:
            marks, rest = 0, rng.uniform(0, self.record["idle"])
        else:
            marks, rest = progress(run) + rng.randint(1, 12), rng.uniform(0, 1)
        while any_alive(processes) and progress(run) < marks:
            time.sleep(0.1)
        until = time.monotonic() + rest
        while any_alive(processes) and time.monotonic() < until:
            time.sleep(0.01)

    def _compare(self) -> None:
        assert_same(self._copy(), self._folder / "whole")
        self.record["equal"] += 1
        self._write()
        kills = sum(k["copy"] == self.record["equal"] - 1 for k in self.record["kills"])
        print(f"{self._count} processes: ended after {kills} kills, bit-equal")

    def _finish(self, run: pathlib.Path) -> None:
        codes = self._wait(self._start(run), limit=1800)
        if any(codes):
            self._fail(f"{run}: exit codes {codes}")

    def _start(self, run: pathlib.Path) -> list[subprocess.Popen]:
        """The same command every time, but for the port."""
        run.parent.mkdir(parents=True, exist_ok=True)
        flags: dict[str, Any] = {"config": self._config, "workdir": run}
        if self._count > 1:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                flags["coordinator"] = f"127.0.0.1:{probe.getsockname()[1]}"
            flags |= {"config.mesh.data": self._count, "num_processes": self._count}
            flags |= {"peer_timeout": PEER_TIMEOUT, "start_timeout": START_TIMEOUT}
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": str(self._folder.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        processes = []
        for index in range(self._count):
            which = {"process_id": index} if self._count > 1 else {}
            command = [sys.executable, str(ROOT / "launch" / "train.py")]
            command += [f"--{name}={value}" for name, value in (flags | which).items()]
            with (self._folder / f"process{index}.txt").open("w") as out:
                process = subprocess.Popen(
                    command, stdout=out, stderr=out, env=environment, preexec_fn=die
                )
            processes.append(process)
        return processes

    def _wait(
        self, processes: list[subprocess.Popen], limit: float = PATIENCE
    ) -> list[int]:
        """Exit codes of the processes, none of which may hang."""
        try:
            return [process.wait(limit) for process in processes]
        except subprocess.TimeoutExpired:
            for process in processes:
                process.kill()
            return self._fail(f"a process has not ended within {limit} s")

    def _fail(self, message: str) -> Any:
        printed = "\n".join(
            f"--- {path.name}\n{path.read_text()[-3000:]}"
            for path in sorted(self._folder.glob("process*.txt"))
        )
        raise SystemExit(f"{printed}\nsoak failed: {message}")

    def _write(self) -> None:
        write_json(self._file, self.record)


def die() -> None:
    """With the soak, on Linux; this process would keep the run's lock."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def newest(run: pathlib.Path) -> dict[str, int]:
    """The step of every stage's newest checkpoint."""
    found: dict[str, int] = {}
    for path in run.glob("*/checkpoints/*"):
        if path.name.isdecimal():
            stage = path.parts[-3]
            found[stage] = max(found.get(stage, -1), int(path.name))
    return found


def progress(run: pathlib.Path) -> int:
    """How far a run has come: stages begun and ended, rows, and checkpoints."""
    names = ("stage.json", "result.json", "rows.jsonl")
    files = [path for name in names for path in run.glob(f"*/{name}")]
    lines = sum(p.read_bytes().count(b"\n") for p in files if p.name == "rows.jsonl")
    return len(files) + lines + sum(step // EVERY for step in newest(run).values())


def any_alive(processes: list[subprocess.Popen]) -> bool:
    """Whether one of the processes still runs."""
    return any(process.poll() is None for process in processes)


def summary(record: dict[str, Any]) -> str:
    """What came of one number of processes, as a row of a table."""
    stages = collections.Counter(kill["stage"] for kill in record["kills"])
    where = ", ".join(f"{stages[s]} {s}" for s in [*STAGES, "report"] if stages[s])
    lost = sum(len(kill["lost"]) for kill in record["kills"])
    slowest = max((kill["others_ended_in"] for kill in record["kills"]), default=0)
    return (
        f"| {record['processes']} | {record['seconds']:.1f} s "
        f"({record['idle']:.1f} s of it to start) | {len(record['kills'])} | {where} | "
        f"{record['equal']} | {lost} | {slowest:.1f} s |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--workdir", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    workdir = (arguments.workdir or pathlib.Path(tempfile.mkdtemp("soak"))).absolute()
    print(f"soak in {workdir}", flush=True)
    corpus = workdir / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    config = workdir / "soak_config.py"
    if not config.exists():
        write_corpus(corpus)
        cache = str(workdir / "cache")
        config.write_text(
            CONFIG.format(corpus=str(corpus), cache=cache, steps=STEPS, every=EVERY)
        )
    counts = [int(count) for count in arguments.processes.split(",")]
    records = []
    for index, count in enumerate(counts):
        kills = arguments.kills // len(counts) + (index < arguments.kills % len(counts))
        records.append(Soak(workdir, count, kills, arguments.seed).run())
    print(
        "| processes | uninterrupted | kills | in | ended, all bit-equal "
        "| checkpoints lost | others end within |\n|---|---|---|---|---|---|---|"
    )
    for record in records:
        print(summary(record))
    if arguments.json:
        write_json(arguments.json, records)


if __name__ == "__main__":
    main()
