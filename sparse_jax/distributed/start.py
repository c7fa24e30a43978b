"""Joins this process to the others of a run: by flags, or as a cluster describes it."""

import dataclasses
import platform
import socket
import time
from typing import Any

import jax
import jaxlib
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils

import sparse_jax
from sparse_jax.distributed.end import PeersMissing, catch_aborts
from sparse_jax.distributed.talk import check_same
from sparse_jax.types import InputError

CLUSTERS = "SLURM, Open MPI, Kubernetes (pip install jax[k8s]) or a Cloud TPU pod"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """Where the processes meet. Fields that are None are those of the cluster.

    Attributes:
      coordinator: HOST:PORT of process 0, which listens there.
      num_processes: of the run.
      process_id: of this one, from 0.
      start_timeout: seconds to wait for all processes to come.
      peer_timeout: seconds without a sign of life after which a process counts as
        dead and all others stop.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    start_timeout: int = 300
    peer_timeout: int = 60

    def __post_init__(self):
        for name in ("start_timeout", "peer_timeout"):
            if getattr(self, name) < 1:
                found = getattr(self, name)
                raise InputError(f"--{name} must be at least 1 second, got {found}")
        if self.num_processes is not None and self.num_processes < 1:
            raise InputError(
                f"--num_processes must be at least 1, got {self.num_processes}"
            )


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where the coordinator is, how many processes there are, which this one is."""

    host: str
    port: int
    count: int
    index: int
    local_devices: list[int] | None

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


def initialize(config: DistributedConfig) -> None:
    """Joins the other processes; to be called before anything else of JAX.

    Processes on CPUs talk through gloo. Once it returns, the death of any process ends
    all others, see `end`.

    Args:
      config: what is None is asked of JAX's detection of clusters.

    Raises:
      PeersMissing: the coordinator cannot be reached.
      InputError: no cluster is found, a number is out of range, or the processes run
        different versions.
    """
    place = _find(config)
    started = time.monotonic()
    if place.index == 0:
        _check_free(place)
    else:
        _reach(place, config.start_timeout)
    waited = int(time.monotonic() - started)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    catch_aborts(
        f"process {place.index}: not all of the {place.count} processes have met at "
        f"{place.address} within {config.start_timeout} s; start all of them, each "
        "with another --process_id and all with the same --num_processes"
    )
    jax.distributed.initialize(
        place.address,
        place.count,
        place.index,
        local_device_ids=place.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=max(1, config.start_timeout - waited),
        heartbeat_timeout_seconds=config.peer_timeout,
        shutdown_timeout_seconds=config.peer_timeout,
    )
    catch_aborts(
        f"process {place.index} stops because another one has stopped or has not "
        f"answered for {config.peer_timeout} s (JAX's lines above name it); run the "
        "same command again to continue"
    )
    versions = {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "sparse_jax": sparse_jax.__version__,
    }
    check_same(versions, "versions")
    if jax.default_backend() == "cpu":
        # At their first exchange gloo waits half a minute for a peer, later for long;
        # here all have just met.
        multihost_utils.sync_global_devices("start")


def _find(config: DistributedConfig) -> _Place:
    """The fields of the config, else what the cluster's environment says."""
    found: Any = (config.coordinator, config.num_processes, config.process_id)
    local_devices = None
    if None in found:
        *found, local_devices = _detect(config)
    names = ("coordinator", "num_processes", "process_id")
    missing = [f"--{name}" for name, v in zip(names, found, strict=True) if v is None]
    if missing:
        raise InputError(
            f"{', '.join(missing)}: not given, and this is no process of {CLUSTERS}; "
            "start it there, or give --coordinator=HOST:PORT --num_processes=N "
            "--process_id=I"
        )
    address, count, index = found
    host, port = _split(address)
    if not 0 <= index < count:
        raise InputError(
            f"--process_id must be at least 0 and less than --num_processes={count}, "
            f"got {index}"
        )
    return _Place(host, port, count, index, local_devices)


def _detect(config: DistributedConfig) -> tuple[Any, ...]:
    """What is None is filled in as the cluster says; devices of this process last."""
    try:
        return ClusterEnv.auto_detect_unset_distributed_params(
            config.coordinator,
            config.num_processes,
            config.process_id,
            None,
            None,
            config.start_timeout,
        )
    except Exception as error:  # whatever a half-described cluster makes JAX raise
        raise InputError(
            f"--distributed: the cluster cannot be asked about its processes ({error});"
            " give --coordinator, --num_processes and --process_id"
        ) from error


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(
            f"--coordinator must be HOST:PORT of process 0, got {address!r}"
        )
    return host, int(port)


def _check_free(place: _Place) -> None:
    """Raises InputError when another program listens where the coordinator should."""
    # JAX would end the process without a word.
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", place.port))
        except OSError as error:
            raise InputError(
                f"--coordinator={place.address}: process 0 cannot listen on port "
                f"{place.port} ({error.strerror}); choose another port"
            ) from error


def _reach(place: _Place, timeout: int) -> None:
    """Waits until the coordinator answers; JAX's own time-out would abort."""
    until, problem = time.monotonic() + timeout, ""
    while (left := until - time.monotonic()) > 0:
        try:
            socket.create_connection((place.host, place.port), timeout=left).close()
            return
        except OSError as error:
            problem = error.strerror or str(error)
            time.sleep(min(0.2, left))
    raise PeersMissing(
        f"--coordinator={place.address}: process {place.index} cannot reach it "
        f"({problem}), waited {timeout} s; start process 0, and give all processes "
        "its address"
    )
