"""The planner as a user runs it, without a compiler."""

import json

import pytest

from tests.launch.helpers import CONFIGS, error_of, launch

CONFIG = f"--config={CONFIGS / 'sparse70.py'}:llama2_7b"


def test_it_prints_what_it_writes(tmp_path):
    file = tmp_path / "plan.json"
    done = launch(
        "plan", CONFIG, "--topology=v5e:16x16", "--estimate", f"--json={file}"
    )
    assert done.returncode == 0, done.stderr
    numbers = json.loads(file.read_text())
    assert numbers["memory"]["fits"]
    assert numbers["machine"]["devices"] == 256
    assert "6.74G weights on v5e:16x16" in done.stdout
    assert f"{numbers['memory']['total'] / 2**30:.2f} GiB" in done.stdout
    assert "ESTIMATED" in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--topology=v5e:7x7"], "'v5e:7x7' does not exist"),
        (["--topology=v5e:16x16", "--gpus=8xH100"], "either --topology"),
        (["--gpus=64xH100"], "nearest mesh of 64 devices that works is"),
    ],
)
def test_bad_input_is_one_sentence(flags, words):
    done = launch("plan", CONFIG, *flags)
    assert done.returncode == 2
    assert words in error_of(done)
