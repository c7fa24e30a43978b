import numpy as np
import pytest

from sparse_jax.io import names
from sparse_jax.models import LlamaConfig, abstract_params
from sparse_jax.tree import leaf_paths


@pytest.mark.parametrize("options", [{}, {"attention_bias": True, "mlp_bias": True}])
def test_every_leaf_has_names_and_every_name_is_used_once(options):
    config = LlamaConfig(
        vocab_size=8, d_model=8, d_ff=8, n_layers=3, n_heads=2, **options
    )
    slots = names.slots(leaf_paths(abstract_params(config)), range(3))
    found = [slot.name for slot in slots]
    assert len(found) == len(set(found)) == 3 + 3 * (9 + 7 * bool(options))
    assert found[0] == "model.embed_tokens.weight" and found[-1] == "lm_head.weight"


def test_only_the_layers_asked_for_are_named():
    paths = ["layers/mlp/up/kernel", "final_norm/scale"]
    found = [(slot.layer, slot.name) for slot in names.slots(paths, [4])]
    expected = [(4, "model.layers.4.mlp.up_proj.weight"), (None, "model.norm.weight")]
    assert found == expected


def test_a_slot_part_can_be_written_to():
    leaf = np.zeros((2, 3, 5), np.float32)
    slot = names.slots(["layers/mlp/up/kernel"], range(2))[1]
    names.slot_part(slot, leaf)[...] = np.arange(15).reshape(3, 5)
    assert names.slot_shape(slot, leaf.shape) == (5, 3)
    assert (leaf[0] == 0).all() and leaf[1, 2, 4] == 14 and leaf[1, 2, 0] == 10
