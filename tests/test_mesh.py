"""The sharding table: every leaf of the models it is meant for, and bad meshes."""

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from sparse_jax import mesh, models
from sparse_jax.models import sizes
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError


def abstract(**shape):
    return AbstractMesh(
        tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape)
    )


def test_every_large_leaf_of_llama2_7b_is_cut():
    shapes = models.abstract_params(sizes.get("llama2_7b"))
    specs = leaf_paths(mesh.specs(abstract(data=2, fsdp=16, tensor=4), shapes))
    for path, leaf in leaf_paths(shapes).items():
        whole = specs[path] == P()
        assert whole == path.endswith("scale"), path
        assert len(specs[path]) <= len(leaf.shape)
    assert specs["layers/mlp/down/kernel"] == P(None, "tensor", "fsdp")
    assert specs["layers/attention/q/kernel"] == P(None, "fsdp", "tensor")


def test_an_axis_that_does_not_divide_is_left_out():
    leaf = {"lm_head": {"kernel": jax.ShapeDtypeStruct((30, 64), "float32")}}
    specs = mesh.specs(abstract(data=1, fsdp=4, tensor=4), leaf)
    assert specs["lm_head"]["kernel"] == P(None, "tensor")


def test_optimizer_moments_are_sharded_as_their_weight():
    moments = ({"layers": {"mlp": {"up": {"kernel": jax.numpy.zeros((2, 8, 8))}}}},)
    spec = mesh.specs(abstract(data=1, fsdp=2, tensor=2), moments)
    assert jax.tree.leaves(spec, is_leaf=lambda s: isinstance(s, P)) == [
        P(None, "fsdp", "tensor")
    ]


@pytest.mark.parametrize("sizes_", [{"fsdp": 3}, {"data": 0}, {"tensor": -1}])
def test_a_mesh_of_another_size_is_refused(sizes_):
    with pytest.raises(InputError, match=r"mesh: .* needs .* devices, found 1"):
        mesh.make_mesh(mesh.MeshConfig(**sizes_))


def test_a_batch_must_divide_over_the_devices():
    with pytest.raises(InputError, match="10 does not divide over 4 devices"):
        mesh.check_batch(10, abstract(data=2, fsdp=2, tensor=8))
    mesh.check_batch(12, abstract(data=2, fsdp=2, tensor=8))
