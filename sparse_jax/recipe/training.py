"""What a pretrain stage trains: a state, a loss, a teacher; and what comes of it."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax

from sparse_jax import distributed, io, train
from sparse_jax.data import Dataset
from sparse_jax.quant import Grids
from sparse_jax.recipe import inputs
from sparse_jax.recipe.config import Recipe
from sparse_jax.recipe.finish import Made
from sparse_jax.recipe.stage_kinds import Pretrain
from sparse_jax.sparsity import adapters
from sparse_jax.sparsity import masks as masks_lib
from sparse_jax.sparsity.adapters import QuantTrainConfig
from sparse_jax.train import Adaptive, CachedTeacher, Distill, NextToken
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError, Masks, Params, State


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beginning:
    """What training starts from.

    Attributes:
      state: at step 0.
      loss: of the stage.
      adaptive: what draws the masks again, if they move.
      whole: whether the masks keep everything, and go when the stage ends.
    """

    state: State
    loss: NextToken | Distill
    adaptive: Adaptive | None
    whole: bool


def begin(
    stage: Pretrain, recipe: Recipe, workdir: pathlib.Path, data: int
) -> Beginning:
    """Builds the state and the loss of a stage; its data goes on at batch `data`.

    Raises:
      InputError: the stage does not fit the model it starts from.
    """
    parent_dir = workdir / stage.parent if stage.parent else None
    model, params, masks, grids = inputs.start(stage, recipe, parent_dir)
    config, rules = recipe.train_config(stage), recipe.mask_rules(stage)
    model.check_length(config.seq_len)
    # A dense model trains with masks that keep everything, so that one compiled step
    # serves every stage and the control does exactly the arithmetic of a sparse run.
    whole = masks is None and stage.adaptive is None
    parent_masks = masks
    if masks is None:
        masks = inputs.whole_masks(params, rules)
    adaptive, mode = None, "fixed"
    if stage.adaptive is not None:
        if stage.adaptive.sparsity is None and parent_masks is None:
            raise InputError(
                "adaptive.sparsity None takes over the sparsity of a pruned parent, "
                f"but the model of {stage.parent} has no masks; set it, or prune first"
            )
        adaptive = Adaptive.of(
            *(stage.adaptive, rules, model, recipe.compute),
            parent=parent_masks,
            quantize=stage.quantize,
        )
        mode = stage.adaptive.mode
    params, masks = _with_adapters(stage, params, masks, adaptive, grids)
    state = train.init_state(
        params,
        masks,
        config.optimizer,
        rng=jax.random.key(recipe.seed),
        data=data,
        mode=mode,
    )
    if adaptive is not None:
        state = adaptive.begin(state)
    options: dict[str, Any] = {
        "model": model,
        "compute": recipe.compute,
        "isolate_documents": recipe.isolates_documents(stage),
    }
    loss = NextToken(**options)
    if stage.distill is not None:
        teacher_model = distributed.everywhere(
            lambda: io.load_config(_model_dir(stage, workdir))
        )
        loss = Distill(config=stage.distill, teacher_model=teacher_model, **options)
    return Beginning(state=state, loss=loss, adaptive=adaptive, whole=whole)


def _with_adapters(
    stage: Pretrain,
    params: Params,
    masks: Masks,
    adaptive: Adaptive | None,
    grids: Grids | None,
) -> tuple[Params, Masks]:
    """Params and masks with all leaves that a stage adds beside its kernels."""
    if stage.low_rank is not None:
        # The factors stand in for what the masks of the first step take away.
        first = adaptive.first_masks(params, masks) if adaptive else masks
        params, _ = adapters.add_low_rank(params, first, stage.low_rank)
        masks = adapters.masks_of(params, masks)
    if stage.learned_scales:
        params, masks = adapters.add_scales(params, masks)
    if stage.lora is not None:
        params, masks = adapters.add_lora(params, masks, stage.lora)
    if stage.quantize is not None:
        # Where masks move, a pruned weight may come back: the grids cover it as well.
        fixed = adaptive is None or adaptive.config.mode == "fixed"
        kept = masks if fixed else from_paths(dict.fromkeys(leaf_paths(masks)))
        params, _ = adapters.add_grids(params, kept, stage.quantize, grids)
        masks = adapters.masks_of(params, masks)
    return params, masks


def end(state: State, quantize: QuantTrainConfig | None = None) -> Made:
    """The final model: zeros in place, scales and LoRA folded in, weights on grids.

    Args:
      state: after training.
      quantize: of the stage.

    Returns:
      Plain weights, their masks, the low-rank factors, which may be none, and the
      grids.
    """
    params, masks = adapters.fold_lora(state.params, state.masks)
    params, masks = adapters.fold_scales(params, masks)
    grids = None
    if quantize is not None:
        options = {"refit": quantize.refit}
        params, masks, grids = adapters.fold_grids(
            params, masks, quantize.grid, **options
        )
    params, adapter = adapters.split(params)
    masks = adapters.split(masks)[0]
    return Made(masks_lib.apply(params, masks), masks, adapter, grids)


def teacher(
    stage: Pretrain, recipe: Recipe, dataset: Dataset, workdir: pathlib.Path
) -> Params | CachedTeacher | None:
    """The frozen teacher of a stage: its weights, or the cache of its logits."""
    if stage.teacher is None or stage.distill is None:
        return None
    found, params = inputs.load(workdir / stage.teacher)
    if found.adapter:
        params = adapters.merge(params, found.adapter)
    if stage.distill.top_k is None:
        return params
    identity = distributed.on_lead(lambda: _identity(stage, recipe, dataset, workdir))
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    default = workdir / "teachers" / f"{stage.teacher}_{name[:8]}"
    return CachedTeacher(
        stage.distill.cache_dir or default,
        params,
        found.config,
        identity=identity,
        top_k=stage.distill.top_k,
        temperature=stage.distill.temperature,
        compute=recipe.compute,
        isolate_documents=recipe.isolates_documents(stage),
    )


def _identity(
    stage: Pretrain, recipe: Recipe, dataset: Dataset, workdir: pathlib.Path
) -> dict[str, Any]:
    """The hash of the teacher's files, and all that its batches depend on."""
    digest = hashlib.sha256()
    for path in sorted(_model_dir(stage, workdir).glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    config, data = recipe.train_config(stage), dataset.fingerprint
    sources = {name: recipe.data.sources[name] for name in recipe.sources(stage)}
    return {
        "teacher": digest.hexdigest(),
        "corpus": {name: data["sources"][name]["sha256"] for name in sources},
        "weights": {name: source.weight for name, source in sources.items()},
        "too_long": {n: s.too_long for n, s in sources.items() if s.task},
        "tokenizer": data["tokenizer"]["sha256"],
        "seed": recipe.seed if stage.seed is None else stage.seed,
        "data_seed": recipe.data.seed,
        "batch_size": config.batch_size,
        "seq_len": config.seq_len,
    }


def _model_dir(stage: Pretrain, workdir: pathlib.Path) -> pathlib.Path:
    return workdir / str(stage.teacher) / "model"
