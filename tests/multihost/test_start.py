"""What can be wrong before the processes have met: one sentence each."""

import socket

import pytest

from sparse_jax.distributed import DistributedConfig, PeersMissing, initialize, start
from sparse_jax.types import InputError
from tests.launch.helpers import CONFIGS, error_of, launch
from tests.multihost import helpers


@pytest.fixture
def port():
    return helpers.free_port()


def test_a_coordinator_that_cannot_be_reached(port):
    config = DistributedConfig(
        coordinator=f"localhost:{port}", num_processes=2, process_id=1, start_timeout=1
    )
    with pytest.raises(PeersMissing) as found:
        initialize(config)
    assert str(found.value) == (
        f"--coordinator=localhost:{port}: process 1 cannot reach it (Connection "
        "refused), waited 1 s; start process 0, and give all processes its address"
    )


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        address = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match=r"cannot listen .* in use\); choose anot"):
            initialize(
                DistributedConfig(coordinator=address, num_processes=2, process_id=0)
            )


@pytest.mark.parametrize("index", [-1, 2, 7])
def test_a_number_out_of_range(index):
    config = DistributedConfig(
        coordinator="host:1234", num_processes=2, process_id=index
    )
    with pytest.raises(InputError, match=rf"--process_id .*=2, got {index}"):
        initialize(config)


@pytest.mark.parametrize("address", ["host", "host:", ":80", "host:x", "host:70000"])
def test_an_address_without_a_port(address):
    config = DistributedConfig(coordinator=address, num_processes=2, process_id=0)
    with pytest.raises(InputError, match="--coordinator must be HOST:PORT"):
        initialize(config)


def test_no_cluster_at_all(monkeypatch):
    for name in helpers.slurm(0, 2, 2**16 - 1):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="--coordinator, --process_id: not given, and"):
        initialize(DistributedConfig(num_processes=2))


def test_a_cluster_that_is_half_described(monkeypatch):
    for name, value in helpers.slurm(0, 2, 2**16 - 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_NTASKS", "two")
    with pytest.raises(InputError, match=r"the cluster cannot be asked .*'two'"):
        initialize(DistributedConfig())


@pytest.mark.parametrize("name", ["start_timeout", "peer_timeout", "num_processes"])
def test_numbers_below_one(name):
    with pytest.raises(InputError, match=f"--{name} must be at least 1"):
        DistributedConfig(**{name: 0})


def test_slurm_describes_every_place(monkeypatch):
    port = 2**16 - 2**12 + 17
    for name, value in helpers.slurm(3, 8, port).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[007-010,020]")
    place = start._find(DistributedConfig())
    assert (place.address, place.count, place.index) == (f"node007:{port}", 8, 3)
    # Flags come first.
    place = start._find(DistributedConfig(coordinator="other:80", process_id=1))
    assert (place.address, place.count, place.index) == ("other:80", 8, 1)


def test_processes_that_never_come(port):
    """JAX aborts then; the launcher's last line is still a sentence."""
    done = launch(
        "train",
        f"--config={CONFIGS / 'sparse70.py'}:smoke",
        f"--coordinator=localhost:{port}",
        "--num_processes=2",
        "--process_id=0",
        "--start_timeout=2",
    )
    assert done.returncode == 76
    assert "not all of the 2 processes have met" in error_of(done)


def test_a_coordinator_that_does_not_come_may_come_when_started_again(port):
    done = launch(
        "train",
        f"--config={CONFIGS / 'sparse70.py'}:smoke",
        f"--coordinator=localhost:{port}",
        "--num_processes=2",
        "--process_id=1",
        "--start_timeout=1",
    )
    assert done.returncode == 76
    assert "cannot reach it" in error_of(done)
