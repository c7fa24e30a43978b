"""Fine-tuning steps on a mesh of 8 devices and on one; prints JSON for the test.

Run in a process of its own: the number of devices is fixed when JAX starts.
"""

import json
from typing import Any

import jax
import numpy as np

from sparse_jax import mesh as mesh_lib
from sparse_jax import train
from sparse_jax.mesh import MeshConfig
from sparse_jax.sparsity import adapters
from sparse_jax.sparsity.masks import violations
from sparse_jax.tree import leaf_paths
from sparse_jax.types import Batch
from tests.sharded.models8 import MODEL, params_and_masks

MESHES = {"one": MeshConfig(), "eight": MeshConfig(data=2, fsdp=2, tensor=2)}
ROWS, LENGTH, STEPS = 8, 16, 4
LORA = adapters.LoraConfig(rank=4)


def batches() -> list[Batch]:
    """Examples of several lengths with prompts, and a row that is all padding."""
    rng, made = np.random.default_rng(0), []
    for _ in range(STEPS):
        tokens = rng.integers(0, MODEL.vocab_size, (ROWS, LENGTH + 1), np.int32)
        ends = rng.integers(4, LENGTH + 1, (ROWS, 1))
        ends[-1] = 0
        place = np.arange(LENGTH, dtype=np.int32)
        real = place < ends
        made.append(
            Batch(
                tokens=tokens[:, :-1],
                targets=tokens[:, 1:],
                loss_weights=(real & (place >= ends // 3)).astype(np.float32),
                segment_ids=np.where(real, 0, -1).astype(np.int32),
                positions=np.where(real, place, 0).astype(np.int32),
            )
        )
    return made


def fit(mesh: MeshConfig, *, tokens: Any, lora: bool) -> dict[str, Any]:
    """Steps with SquareHead; of the trained state, what the test looks at."""
    made = mesh_lib.make_mesh(mesh)
    loss = train.Distill(
        model=MODEL,
        isolate_documents=True,
        config=train.DistillConfig(
            kl_weight=0.0, feature_weight=1.0, feature_tokens=tokens
        ),
    )
    trainable = adapters.LORA_TRAINED if lora else None
    optimizer = train.OptimizerConfig(trainable=trainable)

    def place(tree):
        return jax.device_put(tree, mesh_lib.shardings(made, tree))

    with jax.set_mesh(made):
        params, masks = (place(tree) for tree in params_and_masks())
        teacher = place(jax.tree.map(lambda w: 1.3 * w, params_and_masks()[0]))
        if lora:
            params, masks = adapters.add_lora(params, masks, LORA)
        key = jax.random.key(1)
        state = place(train.init_state(params, masks, optimizer, rng=key))
        rows = []
        for batch in batches():
            state, metrics = train.train_step(
                state,
                train.to_devices(batch),
                1e-3,
                teacher,
                loss=loss,
                optimizer=optimizer,
                accumulate=2,
            )
            rows.append({name: float(value) for name, value in metrics.items()})
        folded, kept = adapters.fold_lora(state.params, state.masks)
    leaves = leaf_paths(folded)
    return {
        "rows": rows,
        "violations": int(violations(folded, kept)),
        "specs": {p: str(leaf.sharding.spec) for p, leaf in leaves.items()},
        "sums": {
            p: float(np.abs(np.asarray(leaf)).sum()) for p, leaf in leaves.items()
        },
    }


def main() -> None:
    kinds = {
        "whole": {"tokens": "all", "lora": False},
        "lora": {"tokens": "response", "lora": True},
    }
    print(
        json.dumps(
            {
                kind: {name: fit(mesh, **options) for name, mesh in MESHES.items()}
                for kind, options in kinds.items()
            }
        )
    )


if __name__ == "__main__":
    main()
