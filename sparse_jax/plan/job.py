"""The training step of a recipe on the devices of a machine, with nothing allocated."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from sparse_jax import mesh as mesh_lib
from sparse_jax import models, train
from sparse_jax.mesh import MeshConfig
from sparse_jax.models import Compute, LlamaConfig
from sparse_jax.ops import MaskMode
from sparse_jax.plan.machines import Machine
from sparse_jax.recipe import Pretrain, Recipe
from sparse_jax.recipe.check import root_model
from sparse_jax.sparsity import adapters
from sparse_jax.sparsity.adapters import LoraConfig
from sparse_jax.sparsity.masks import make_masks
from sparse_jax.train import DistillConfig, OptimizerConfig
from sparse_jax.tree import Rules
from sparse_jax.types import Batch, State


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One training step.

    Attributes:
      model: architecture.
      compute: with no `auto` left in it.
      mesh: sizes of the axes.
      batch_size: rows of a step over all devices.
      seq_len: tokens of a row.
      accumulate: micro-batches of a step.
      optimizer: AdamW.
      isolate_documents: attention stays inside a document.
      pattern_rules: which leaves have masks, see `sparsity.masks.make_masks`.
      mask_mode: see `ops.effective_weight`.
      distill: what is learned from a teacher of the same architecture; None = none.
      lora: adapters, which then are what `optimizer.trainable` says; None = none.
    """

    model: LlamaConfig
    compute: Compute
    mesh: MeshConfig
    batch_size: int
    seq_len: int
    accumulate: int
    optimizer: OptimizerConfig
    isolate_documents: bool
    pattern_rules: Rules
    mask_mode: MaskMode = "fixed"
    distill: DistillConfig | None = None
    lora: LoraConfig | None = None

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch_size * self.seq_len

    @property
    def rows(self) -> int:
        """Of a micro-batch on one device."""
        shards = self.mesh.data * self.mesh.fsdp
        return self.batch_size // self.accumulate // shards

    def loss(self, **compute: Any) -> train.NextToken | train.Distill:
        """The loss of the step, with fields of `compute` replaced."""
        options: dict[str, Any] = {
            "model": self.model,
            "compute": dataclasses.replace(self.compute, **compute),
            "isolate_documents": self.isolate_documents,
        }
        if self.distill is not None:
            return train.Distill(config=self.distill, **options)
        return train.NextToken(**options)

    @property
    def runs_teacher(self) -> bool:
        """Whether the step has the teacher's forward pass in it."""
        return self.distill is not None and self.distill.top_k is None

    @property
    def keeps_features(self) -> bool:
        """Whether the outputs of both models' blocks are kept and compared."""
        return self.distill is not None and self.distill.feature_weight > 0

    @property
    def needs(self) -> mesh_lib.Needs:
        """What the axes of the mesh must divide, see `mesh.check`."""
        rows = mesh_lib.batch_needs(self.batch_size, self.accumulate)
        return rows | self.model.mesh_needs

    def check(self, devices: int) -> None:
        """Raises InputError unless the mesh has all devices and cuts everything."""
        mesh_lib.check(self.mesh, devices, self.needs)
        self.model.check_length(self.seq_len)


def make_job(recipe: Recipe, machine: Machine) -> Job:
    """The step of a recipe on a machine.

    It is that of the first stage with a teacher, moving masks or adapters, which needs
    the most; without such a stage, that of the recipe's shared settings.

    Args:
      recipe: the run.
      machine: where; it decides what `auto` means in `recipe.compute`.

    Raises:
      InputError: the mesh does not fit the machine, the model or the batch.
    """
    name, method = _method(recipe)
    config = recipe.train_config(method)
    shared = name is None and recipe.init is None
    model = recipe.model if shared else root_model(recipe, name or recipe.final)
    documents = recipe.isolates_documents(method)
    compute = recipe.compute.on(
        machine.chip.platform, config.seq_len, documents=documents
    )
    job = Job(
        model=model,
        compute=compute,
        mesh=recipe.mesh,
        batch_size=config.batch_size,
        seq_len=config.seq_len,
        accumulate=config.accumulate,
        optimizer=config.optimizer,
        isolate_documents=documents,
        pattern_rules=tuple(recipe.mask_rules(method)),
        mask_mode=method.adaptive.mode if method.adaptive else "fixed",
        distill=method.distill,
        lora=method.lora,
    )
    job.check(machine.devices)
    return job


def _method(recipe: Recipe) -> tuple[str | None, Pretrain]:
    """The first stage with a teacher, moving masks or adapters; else a plain one."""
    for name, stage in recipe.enabled_stages().items():
        if isinstance(stage, Pretrain) and (
            stage.distill or stage.adaptive or stage.lora
        ):
            return name, stage
    return None, Pretrain()


def abstract_state(job: Job) -> State:
    """Shapes and dtypes of what a step reads and writes, on one device."""
    params = models.abstract_params(job.model)

    def init(params: Any) -> State:
        masks = make_masks(params, job.pattern_rules)
        if job.lora is not None:
            params, masks = adapters.add_lora(params, masks, job.lora)
        key = jax.random.key(0)
        mode = job.mask_mode
        return train.init_state(params, masks, job.optimizer, rng=key, mode=mode)

    return jax.eval_shape(init, params)


def abstract_teacher(job: Job) -> Any:
    """Shapes and dtypes of what the loss is given of a teacher; None without one."""
    if job.distill is None:
        return None
    if job.runs_teacher:
        return models.abstract_params(job.model)
    shape = job.batch_size, job.seq_len, job.distill.top_k
    kept: Any = [jax.ShapeDtypeStruct(shape, d) for d in (jnp.int32, jnp.float16)]
    return train.TopK(*kept)


def lower(job: Job, mesh: Mesh) -> Any:
    """The training step as the training loop would lower it on a mesh."""
    teacher = abstract_teacher(job)
    per_token = isinstance(teacher, train.TopK)
    with jax.set_mesh(mesh):
        return train.train_step.lower(
            placed(abstract_state(job), mesh),
            placed(abstract_batch(job), mesh, batch=True),
            1e-4,
            None if teacher is None else placed(teacher, mesh, batch=per_token),
            loss=job.loss(),
            optimizer=job.optimizer,
            accumulate=job.accumulate,
            mask_mode=job.mask_mode,
        )


def abstract_batch(job: Job) -> Batch:
    """Shapes and dtypes of a step's batch, over all devices."""
    shape = job.batch_size, job.seq_len
    dtypes = (jnp.int32, jnp.int32, jnp.float32, jnp.int32, jnp.int32)
    # Any: shapes stand where the type has arrays.
    leaves: Any = [jax.ShapeDtypeStruct(shape, dtype) for dtype in dtypes]
    return Batch(*leaves)


def placed(tree: Any, mesh: Mesh, *, batch: bool = False) -> Any:
    """The tree of shapes with the sharding that the training loop gives each leaf."""

    def place(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    rows = mesh_lib.batch_sharding(mesh)
    if batch:
        return jax.tree.map(lambda leaf: place(leaf, rows), tree)
    return jax.tree.map(place, tree, mesh_lib.shardings(mesh, tree))


def batch_bytes(job: Job, mesh: AbstractMesh | Mesh, granule: int = 1) -> int:
    """Bytes of a step's batch on one device; what the step does not read is left out.

    JAX drops the segment ids where documents are not kept apart, nor padding told from
    other tokens.
    """
    read = abstract_batch(job)._asdict()
    tokens = job.distill.feature_tokens if job.distill else None
    padding = job.keeps_features and tokens == "all"
    if not job.isolate_documents and not padding:
        del read["segment_ids"]
    rows = NamedSharding(mesh, jax.P(mesh_lib.BATCH))
    return sum(_size(leaf, rows, granule) for leaf in read.values())


def teacher_bytes(job: Job, mesh: AbstractMesh | Mesh, granule: int = 1) -> int:
    """Bytes on one device of what a step is given of a teacher."""
    teacher = abstract_teacher(job)
    if isinstance(teacher, train.TopK):
        rows = NamedSharding(mesh, jax.P(mesh_lib.BATCH))
        return sum(_size(leaf, rows, granule) for leaf in teacher)
    return device_bytes(teacher, mesh, granule)


def device_bytes(tree: Any, mesh: AbstractMesh | Mesh, granule: int = 1) -> int:
    """Bytes of a state's leaves, or of a part of it, on one device.

    Args:
      tree: arrays or shapes.
      mesh: over which `mesh.specs` divides them.
      granule: every leaf takes a multiple of so many bytes.
    """

    def size(leaf: Any, spec: jax.P) -> int:
        return _size(leaf, NamedSharding(mesh, spec), granule)

    return sum(jax.tree.leaves(jax.tree.map(size, tree, mesh_lib.specs(mesh, tree))))


def _size(leaf: Any, sharding: NamedSharding, granule: int) -> int:
    # A random key is two words, which numpy does not know.
    key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    itemsize = 8 if key else jnp.dtype(leaf.dtype).itemsize
    size = math.prod(sharding.shard_shape(leaf.shape)) * itemsize
    return -(-size // granule) * granule
