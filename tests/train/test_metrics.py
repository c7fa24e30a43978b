"""Metrics: rows survive kills, resumption leaves one history, terminals see a bar."""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from sparse_jax.train import metrics as module
from sparse_jax.train.metrics import Metrics, read_metrics
from sparse_jax.types import InputError


def train(directory, first, last, *, every=2, **options):
    """Writes what a loop from step `first` to `last` would."""
    with Metrics(directory, 20, "dense", **options) as metrics:
        metrics.resume(first)
        for step in range(first + 1, last + 1):
            metrics.advance(step)
            if step % every == 0:
                metrics.write(step, {"tokens": 64 * step, "loss": 1 / step})


def events(directory):
    """(session starts, {(tag, step): value}) over the event files, as TensorBoard."""
    starts, scalars = [], {}
    files = sorted((directory / "tensorboard").iterdir(), key=os.path.getmtime)
    for file in files:
        stream = io.BytesIO(file.read_bytes())
        while header := stream.read(12):
            length = int.from_bytes(header[:8], "little")
            event = Event.FromString(stream.read(length))
            stream.read(4)
            if event.HasField("session_log"):
                starts.append(event.step)
                hidden = [key for key in scalars if key[1] >= event.step]
                for key in hidden:
                    del scalars[key]
            for value in event.summary.value:
                scalars[value.tag, event.step] = value.simple_value
    return starts, scalars


def test_rows_are_plain_json(tmp_path):
    with Metrics(tmp_path, 3, "dense", quiet=True) as metrics:
        values = {"loss": jnp.float32(0.5), "tokens": np.int64(7), "grad_norm": None}
        metrics.write(1, values)
        metrics.write(2, {"loss": float("nan"), "heldout/code": np.float32(np.inf)})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[0] == '{"step": 1, "loss": 0.5, "tokens": 7, "grad_norm": null}'
    assert json.loads(lines[1]) == {"step": 2, "loss": None, "heldout/code": None}


def test_rows_are_on_disk_before_close(tmp_path):
    metrics = Metrics(tmp_path, 3, "dense", quiet=True)
    metrics.write(1, {"loss": 0.5})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]
    assert events(tmp_path)[1] == {("loss", 1): 0.5}
    metrics.close()


def test_rows_survive_an_exception(tmp_path, capsys):
    with pytest.raises(ZeroDivisionError), Metrics(tmp_path, 3, "dense") as metrics:
        metrics.write(1, {"loss": 0.5})
        raise ZeroDivisionError
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]
    assert capsys.readouterr().err == ""  # the error says what happened


@pytest.mark.parametrize("killed_at", [5, 9, 13])
@pytest.mark.parametrize("resumed_at", [0, 4])
def test_resumed_equals_uninterrupted(tmp_path, killed_at, resumed_at):
    train(tmp_path / "whole", 0, 20, quiet=True)
    train(tmp_path / "killed", 0, killed_at, quiet=True)
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 14, "lo')  # a torn line
    train(tmp_path / "killed", resumed_at, 20, quiet=True)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = (whole / "metrics.jsonl").read_bytes()
    assert (killed / "metrics.jsonl").read_bytes() == expected
    assert events(killed)[0] == [1, resumed_at + 1]
    assert events(killed)[1] == events(whole)[1]
    assert sorted(p.name for p in killed.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_kill_minus_nine_loses_no_row(tmp_path):
    script = (
        "import sys, time\n"
        "from sparse_jax.train.metrics import Metrics\n"
        "metrics = Metrics(sys.argv[1], 10**6, 'dense', process_index=0)\n"
        "for step in range(1, 10**6):\n"
        "    metrics.write(step, {'loss': 1 / step})\n"
        "    print(step, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    seen = [int(process.stdout.readline()) for _ in range(20)]
    time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    rows = read_metrics(tmp_path)
    assert len(rows) >= 20
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert all((("loss", step) in events(tmp_path)[1]) for step in seen)


def test_a_broken_line_inside_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:2 is not a JSON object"):
        read_metrics(tmp_path)


def test_no_file_is_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []


def test_other_processes_are_silent(tmp_path, capsys):
    train(tmp_path, 0, 4, process_index=1)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_one_line_per_stage_without_a_terminal(tmp_path, capsys):
    train(tmp_path, 0, 20)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith("dense: step 20 of 20, loss 0.0500, ")


def test_closing_line_of_a_resumed_stage(tmp_path, capsys):
    train(tmp_path, 10, 20)
    assert "step 20 of 20 (resumed at 10), loss 0.0500" in capsys.readouterr().err


def test_bar_on_a_terminal(tmp_path, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with Metrics(tmp_path, 20, "dense") as metrics:
        metrics.resume(10)
        for step in range(11, 21):
            metrics.write(step, {"loss": 2.0, "tokens_per_second": 12345.6})
        metrics._bar.refresh()
    shown = terminal.getvalue()
    assert "dense" in shown and "20/20" in shown
    assert "loss 2.000, 12,346 tokens/s" in shown
    assert "dense: step" not in shown  # the bar itself is the closing line


def test_read_only_directory(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/run/metrics\.jsonl: cannot be written"):
        Metrics(tmp_path / "file" / "run", 3, "dense").write(1, {"loss": 1.0})


def test_full_disk_is_one_sentence(tmp_path):
    if not pathlib.Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with Metrics(tmp_path, 3, "dense", quiet=True) as metrics:
        metrics.write(1, {"loss": 1.0})
        metrics._file.close()
        metrics._file = pathlib.Path("/dev/full").open("w")  # noqa: SIM115
        with pytest.raises(InputError, match="No space left on device"):
            metrics.write(2, {"loss": 1.0})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]


def test_truncation_failure_keeps_the_file(tmp_path, monkeypatch):
    train(tmp_path, 0, 10, quiet=True)
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", fail)
    with pytest.raises(InputError, match="No space left"):
        Metrics(tmp_path, 20, "dense").resume(4)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp*"))
