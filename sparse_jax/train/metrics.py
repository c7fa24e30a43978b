"""What a long stage says while it runs: metrics.jsonl, TensorBoard and a progress bar.

metrics.jsonl holds one JSON object a line, the step first. The names that the report
reads are

    step, tokens              tokens seen so far, those of earlier stages included
    loss                      training loss, nats per token
    heldout/<domain>          held-out loss, in rows of their own
    learning_rate, grad_norm, tokens_per_second, ...

Writers of a killed run and of its resumption agree line by line with one that never
stopped, except in rates and times: write the row of a step before the checkpoint of
that step, and call `Metrics.resume` with the step of the checkpoint.
"""

import contextlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import tqdm
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import (
    Event,  # pyrefly: ignore [missing-module-attribute]
    SessionLog,  # pyrefly: ignore [missing-module-attribute]
)
from tensorboardX.summary import scalar

from sparse_jax.files import disk_errors, write_file
from sparse_jax.types import InputError

FILE = "metrics.jsonl"


class Metrics:
    """Writer of one stage's metrics; a context manager, silent but on process 0.

    On a terminal it shows a bar with rate and time left; elsewhere it prints one line
    when the stage ends. Every row is on its way to disk when `write` returns.

    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp()
      >>> with Metrics(folder, 20, "dense", quiet=True) as metrics:
      ...     metrics.resume(0)
      ...     metrics.write(10, {"tokens": 640, "loss": 2.5})
      >>> read_metrics(folder)
      [{'step': 10, 'tokens': 640, 'loss': 2.5}]
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        total_steps: int,
        name: str,
        *,
        quiet: bool = False,
        process_index: int | None = None,
    ):
        """Opens nothing yet; the first row or `resume` does.

        Args:
          directory: where metrics.jsonl and the `tensorboard` folder go.
          total_steps: steps of the whole stage, for the time left.
          name: the stage's name, shown before the bar.
          quiet: no bar and no closing line.
          process_index: this process; None asks JAX.
        """
        if process_index is None:
            process_index = jax.process_index()
        self._active = process_index == 0
        self._quiet = quiet or not self._active
        self._directory = pathlib.Path(directory)
        self._total, self._name = total_steps, name
        self._step = self._first = 0
        self._last: dict[str, Any] = {}
        self._file: Any = None
        self._events: EventsWriter | None = None
        self._bar: tqdm.tqdm | None = None
        self._started = time.monotonic()

    def resume(self, step: int) -> None:
        """Continues after `step` (0: from the start), dropping rows of later steps.

        A last line torn by a kill is dropped too.

        Raises:
          InputError: the directory cannot be written.
        """
        if not self._active:
            return
        self.close()
        self._step = self._first = step
        with disk_errors(self._directory / FILE):
            self._directory.mkdir(parents=True, exist_ok=True)
            truncate(self._directory / FILE, step)
            self._file = (self._directory / FILE).open("a", encoding="utf-8")
            self._events = _open_events(self._directory / "tensorboard", step)
        if not self._quiet and sys.stderr.isatty():
            self._bar = tqdm.tqdm(
                initial=step,
                total=self._total,
                desc=self._name,
                unit="step",
                dynamic_ncols=True,
            )
        self._started = time.monotonic()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one row.

        Args:
          step: optimizer steps taken.
          values: numbers by name; NumPy and JAX scalars are welcome, None and
            non-finite numbers become null.

        Raises:
          InputError: the disk is full or read-only.
        """
        if not self._active:
            return
        if self._file is None:
            self.resume(0)
        assert self._file is not None and self._events is not None
        row = {"step": int(step)} | {k: _plain(v) for k, v in values.items()}
        with disk_errors(self._directory / FILE):
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
            _write_event(self._events, row)
        self._last |= {k: v for k, v in row.items() if v is not None}
        self.advance(step)

    def advance(self, step: int) -> None:
        """Moves the progress bar to `step`; cheap enough for every step."""
        if not self._active:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(_postfix(self._last), refresh=False)
            self._bar.update(step - self._step)
        self._step = step

    def close(self) -> None:
        """Closes the files; rows already written are safe without it."""
        bar, self._bar = self._bar, None
        events, self._events = self._events, None
        file, self._file = self._file, None
        for opened in (bar, events, file):
            if opened is not None:
                # Every row was flushed, or its failure raised, when it was written.
                with contextlib.suppress(OSError):
                    opened.close()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        shown = self._bar is not None
        self.close()
        if kind is None and not self._quiet and not shown:
            print(self._closing_line(), file=sys.stderr, flush=True)

    def _closing_line(self) -> str:
        seconds = time.monotonic() - self._started
        steps = self._step - self._first
        parts = [f"step {self._step} of {self._total}"]
        if self._first:
            parts[0] += f" (resumed at {self._first})"
        if "loss" in self._last:
            parts.append(f"loss {self._last['loss']:.4f}")
        rate = f"{steps / seconds:.1f} steps/s" if steps and seconds else ""
        parts += [f"{seconds:.1f} s", *([rate] if rate else [])]
        if "tokens_per_second" in self._last:
            parts.append(f"{self._last['tokens_per_second']:,.0f} tokens/s")
        return f"{self._name}: " + ", ".join(parts)


def read_metrics(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a directory's metrics.jsonl, in order; none when there is no file.

    A last line without its newline, torn by a kill, is left out.

    Raises:
      InputError: another line is not a JSON object with a step.
    """
    path = pathlib.Path(directory) / FILE
    if not path.exists():
        return []
    rows = []
    *lines, _torn = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({"step": int(row["step"])} | row)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path}:{number} is not a JSON object with a step; "
                "delete the line, or the file to lose its curves only"
            ) from error
    return rows


def truncate(path: pathlib.Path, step: int) -> None:
    """Keeps the rows of a metrics file up to `step`, in one atomic replacement."""
    if not path.exists():
        return
    rows = [row for row in read_metrics(path.parent) if row["step"] <= step]
    lines = (json.dumps(row, allow_nan=False) + "\n" for row in rows)
    write_file(path, "".join(lines).encode())


def _open_events(directory: pathlib.Path, step: int) -> EventsWriter:
    """A new event file after which TensorBoard hides older events of later steps.

    The plain writer is used, not `SummaryWriter`: that one writes from a thread, which
    loses its queue in a kill and blocks for ever on a full disk.
    """
    directory.mkdir(exist_ok=True)
    # The writer's own part of the name changes only once a second.
    events = EventsWriter(str(directory / "events"), f".{time.time_ns()}")
    start = SessionLog(status=SessionLog.START)
    events.write_event(Event(step=step + 1, wall_time=time.time(), session_log=start))
    return events


def _write_event(events: EventsWriter, row: Mapping[str, Any]) -> None:
    numbers = {k: v for k, v in row.items() if isinstance(v, int | float)}
    step = numbers.pop("step")
    for name, value in numbers.items():
        summary = scalar(name, value)
        events.write_event(Event(step=step, wall_time=time.time(), summary=summary))
    events.flush()


def _plain(value: Any) -> int | float | str | None:
    """A Python number, None for what JSON has no number for."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _postfix(values: Mapping[str, Any]) -> str:
    parts = []
    if "loss" in values:
        parts.append(f"loss {values['loss']:.3f}")
    if "tokens_per_second" in values:
        parts.append(f"{values['tokens_per_second']:,.0f} tokens/s")
    return ", ".join(parts)
