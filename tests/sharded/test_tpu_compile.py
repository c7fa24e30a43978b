"""The paper's training steps compile for real TPU pods, with no TPU.

Slow, minutes each: `pip install libtpu`, then `pytest -m slow` on this file.
"""

import json
import pathlib
import subprocess
import sys

import pytest

from tests.launch.helpers import CONFIGS, environment, error_of, launch

ROOT = pathlib.Path(__file__).parents[2]
TOKENS = 1024 * 4096


def planned(folder, variant, topology, *flags):
    """The numbers of the planner, and what it wrote on its standard error."""
    pytest.importorskip("libtpu", reason="pip install libtpu, a compile-only client")
    file = folder / "plan.json"
    config = f"--config={CONFIGS / 'sparse70.py'}:{variant}"
    done = launch("plan", config, f"--topology={topology}", f"--json={file}", *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(file.read_text()), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "topology"),
    [
        ("llama2_7b", "v5e:16x16"),
        ("llama2_7b", "v6e:16x16"),
        ("llama2_70b", "v5p:8x8x8"),
    ],
)
def test_a_step_of_4m_tokens_fits_its_pod(tmp_path, variant, topology):
    found, stderr = planned(tmp_path, variant, topology)
    assert found["source"]["kind"] == "compiled"
    assert found["job"]["tokens"] == TOKENS
    memory = found["memory"]
    assert memory["fits"] and memory["compiled"]
    assert memory["arguments"] == memory["compiled_arguments"]
    assert "rematerialization" not in stderr
    assert found["loops_of_unknown_length"] == 0
    # Weights are gathered and gradients summed in every micro-batch.
    weights = 2 * found["job"]["weights"] * found["job"]["accumulate"]
    sent = {c["kind"]: c["payload"] for c in found["collectives"]}
    assert sent["all-gather"] + sent["all-reduce"] > 2 * weights
    assert found["source"]["host_memory"] < 8 * 2**30


RESHARD = """
import jax, jax.numpy as jnp
from jax import P
from jax.sharding import AxisType, NamedSharding
from sparse_jax.plan import compiled, topology

devices = compiled.devices(topology("v5e:2x4"))
kinds = (AxisType.Auto,) * 3
mesh = jax.make_mesh((2, 2, 2), ("a", "b", "c"), axis_types=kinds, devices=devices)
rows = NamedSharding(mesh, P(("a", "b", "c")))
columns = NamedSharding(mesh, P(None, ("c", "a")))
x = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=rows)
with compiled.captured_stderr() as log:
    jax.jit(lambda x: jax.lax.with_sharding_constraint(jnp.sin(x), columns) * 2).lower(
        x
    ).compile()
compiled.check_log(log())
"""


@pytest.mark.slow
def test_a_rematerialisation_would_be_seen():
    # libtpu writes its warnings to a file unless it is told otherwise.
    pytest.importorskip("libtpu", reason="pip install libtpu, a compile-only client")
    done = subprocess.run(
        [sys.executable, "-c", RESHARD],
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )
    assert "InputError: mesh: XLA reports 1 times" in done.stderr, done.stderr


@pytest.mark.slow
def test_the_program_does_not_grow_with_depth(tmp_path):
    sizes = []
    for layers in (8, 80):
        depth = f"--config.model.n_layers={layers}"
        found, _ = planned(tmp_path, "llama2_7b", "v5e:16x16", depth)
        sizes.append(found["source"]["instructions"])
    assert abs(sizes[1] / sizes[0] - 1) < 0.02


@pytest.mark.slow
def test_a_mesh_off_the_links_is_refused_with_the_nearest():
    pytest.importorskip("libtpu", reason="pip install libtpu, a compile-only client")
    config = f"--config={CONFIGS / 'sparse70.py'}:llama2_70b"
    mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=256")
    found = error_of(launch("plan", config, "--topology=v5p:8x8x8", *mesh))
    assert "cannot be laid along the links" in found
    assert "data=1, fsdp=512, tensor=1" in found


@pytest.mark.slow
def test_what_does_not_fit_is_planned_all_the_same(tmp_path):
    flags = ("--config.train.accumulate=1", "--config.compute.attention=scores")
    found, _ = planned(tmp_path, "llama2_7b", "v5e:16x16", *flags)
    assert not found["memory"]["fits"]
    assert any(option["fits"] for option in found["options"])


@pytest.mark.slow
def test_the_pallas_kernels_compile(tmp_path):
    found, _ = planned(
        tmp_path, "smoke", "v5e:1x1", "--compile_stages", "--config.train.seq_len=128"
    )
    assert set(found["kernels"]) >= {"attention/splash", "weight_stream/product"}
