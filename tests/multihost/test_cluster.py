"""The files of launch/cluster, as far as they can be checked without a cluster."""

import os
import re
import shutil
import subprocess

import pytest
import yaml

from tests.multihost.helpers import ROOT

CLUSTER = ROOT / "launch" / "cluster"
SCRIPTS = sorted(CLUSTER.glob("*.sh"))
FLAGS = {
    *re.findall(r'DEFINE_\w+\(\s*"(\w+)"', (ROOT / "launch" / "train.py").read_text())
}


@pytest.fixture
def commands(tmp_path):
    """A folder first on the PATH, whose commands print how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def add(name, code=0):
        file = folder / name
        file.write_text(f'#!/bin/bash\nprintf "%s\\n" {name} "$@"\nexit {code}\n')
        file.chmod(0o755)
        return file

    add.path = f"{folder}:{os.environ['PATH']}"
    return add


def run(script, *arguments, **environment):
    return subprocess.run(
        ["bash", str(script), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    if checker := shutil.which("shellcheck"):
        done = subprocess.run([checker, script], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [
        (0, 0, False),
        (1, 0, False),
        (2, 3, False),
        (75, 0, True),
        (76, 3, True),
        (137, 0, True),
        (76, 100, False),
    ],
)
def test_slurm_queues_what_can_go_on(commands, code, restarts, again):
    commands("srun", code)
    commands("scontrol")
    done = run(
        CLUSTER / "slurm.sh",
        "--config=a b.py:smoke",
        PATH=commands.path,
        SLURM_JOB_ID="17",
        SLURM_SUBMIT_DIR=str(ROOT),
        SLURM_RESTART_COUNT=str(restarts),
    )
    assert done.returncode == code, done.stderr
    called = done.stdout.splitlines()
    assert called[0] == "srun"
    train = called.index("launch/train.py")
    assert called[train + 1 : train + 3] == ["--distributed", "--config=a b.py:smoke"]
    assert called[train + 3 :] == (["scontrol", "requeue", "17"] if again else [])


def test_tpu_vm_runs_the_same_words_on_every_host(commands, tmp_path):
    commands("gcloud")
    arguments = ("--config=a b.py:smoke", "--config.name='x'", "--workdir=$HOME/run")
    environment = {"PATH": commands.path, "TPU": "pod", "ZONE": "z"}
    done = run(CLUSTER / "tpu_vm.sh", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    called = done.stdout.splitlines()
    assert called[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"]
    assert called[6:8] == ["--zone=z", "--worker=all"]
    # What a host's shell makes of it.
    python = tmp_path / "sparse_jax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    shutil.move(commands("python"), python)
    command = called[8].removeprefix("--command=")
    host = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path
    )
    words = ["python", "-u", "launch/train.py", "--distributed", *arguments]
    assert host.stdout.splitlines() == words, host.stderr


def test_tpu_vm_asks_for_its_name(commands):
    done = run(CLUSTER / "tpu_vm.sh", PATH=commands.path, TPU="", ZONE="z")
    assert done.returncode != 0 and "set TPU to the name" in done.stderr


def test_the_jobset_is_one(commands):
    manifest = yaml.safe_load((CLUSTER / "jobset.yaml").read_text())
    assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert manifest["kind"] == "JobSet"
    assert re.fullmatch("[a-z0-9-]+", manifest["metadata"]["name"])
    assert {*manifest["spec"]} == {"failurePolicy", "replicatedJobs"}
    assert all(
        {"name", "action"} <= {*r} for r in manifest["spec"]["failurePolicy"]["rules"]
    )
    (job,) = manifest["spec"]["replicatedJobs"]
    assert {*job} == {"name", "replicas", "template"}
    pods = job["template"]["spec"]
    assert pods["completionMode"] == "Indexed"
    hosts = pods["parallelism"]
    assert pods["completions"] == hosts and pods["backoffLimit"] == 0
    pod = pods["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # what podFailurePolicy asks for
    (container,) = pod["containers"]
    (rule,) = pods["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    # All chips of the slice.
    chips = container["resources"]["limits"]["google.com/tpu"]
    across, down = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    assert hosts * chips == int(across) * int(down)
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_jobset_calls_the_launcher(commands):
    manifest = yaml.safe_load((CLUSTER / "jobset.yaml").read_text())
    (job,) = manifest["spec"]["replicatedJobs"]
    pods = job["template"]["spec"]
    (container,) = pods["template"]["spec"]["containers"]
    # Kubernetes puts $(NAME) in, the container's shell ${NAME}.
    (variable,) = container["env"]
    line = container["args"][0].replace(f"$({variable['name']})", "sparse-jax")
    commands("python")
    done = subprocess.run(
        [*container["command"], line],
        capture_output=True,
        text=True,
        env={"PATH": commands.path, "JOB_COMPLETION_INDEX": "5"},
    )
    words = done.stdout.splitlines()
    assert words[:3] == ["python", "-u", "launch/train.py"], done.stderr
    flags = dict(word.removeprefix("--").split("=", 1) for word in words[3:])
    assert {name for name in flags if "." not in name} <= FLAGS | {"config"}
    # The name that JobSet gives to its first pod, and a port that it opens.
    host, port = flags["coordinator"].split(":")
    assert host == f"sparse-jax-{job['name']}-0-0.sparse-jax"
    assert int(port) in {p["containerPort"] for p in container["ports"]}
    assert flags["num_processes"] == str(pods["parallelism"])
    assert flags["process_id"] == "5"
