"""The sharding table: every leaf of the models it is meant for, and bad meshes."""

import pathlib

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from sparse_jax import mesh, models, train
from sparse_jax.models import sizes
from sparse_jax.prune import PruneConfig
from sparse_jax.sparsity.masks import make_masks
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
    with pytest.raises(InputError, match=r"mesh: .* needs .* devices, found 1; the"):
        mesh.make_mesh(mesh.MeshConfig(**sizes_))


def check(batch_size=8, accumulate=1, *, devices=8, **axes):
    """The check of an 8-device mesh for a model with 8 heads, 4 of them key heads."""
    model = models.LlamaConfig(
        vocab_size=96, d_model=64, d_ff=160, n_layers=1, n_heads=8, n_kv_heads=4
    )
    needs = mesh.batch_needs(batch_size, accumulate) | model.mesh_needs
    mesh.check(mesh.MeshConfig(**axes), devices, needs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"fsdp": 5},
            "{'data': 1, 'fsdp': 5, 'tensor': 1} needs 5 devices, found 8; the nearest "
            "mesh of 8 devices that works is data=1, fsdp=8, tensor=1",
        ),
        (
            {"tensor": 8},
            "tensor = 8 does not divide model.n_kv_heads 4; the nearest mesh of 8 "
            "devices that works is data=1, fsdp=2, tensor=4",
        ),
        (
            {"batch_size": 10, "data": 2, "fsdp": 4},
            "data x fsdp = 8 does not divide train.batch_size 10; the nearest mesh of "
            "8 devices that works is data=1, fsdp=2, tensor=4",
        ),
        (
            {"batch_size": 32, "accumulate": 8, "data": 8},
            "data x fsdp = 8 does not divide train.batch_size / train.accumulate = "
            "32 / 8 = 4; the nearest mesh of 8 devices that works is data=4, fsdp=1, "
            "tensor=2",
        ),
        (
            {"batch_size": 1, "data": 8},
            "data x fsdp = 8 does not divide train.batch_size 1; no mesh of 8 devices "
            "works, use fewer devices",
        ),
        (
            {"fsdp": 3, "devices": 3},
            "data x fsdp = 3 does not divide train.batch_size 8; no mesh of 3 devices "
            "works, use fewer devices",
        ),
    ],
)
def test_what_a_mesh_does_not_divide_is_named_with_the_nearest_mesh(options, message):
    with pytest.raises(InputError) as error:
        check(**options)
    assert str(error.value) == f"mesh: {message}"


@pytest.mark.parametrize(
    "axes", [{"data": 8}, {"data": 2, "fsdp": 4}, {"fsdp": 2, "tensor": 4}]
)
def test_meshes_that_work(axes):
    check(**axes)


def test_one_device_of_many_is_enough_here_but_not_in_a_plan(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    mesh.check_here(mesh.MeshConfig())
    with pytest.raises(InputError, match="needs 1 devices, found 8; the nearest"):
        check()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match="needs 1 devices, found 8; the nearest"):
        mesh.check_here(mesh.MeshConfig())


def test_a_mesh_that_does_not_follow_the_links_is_refused(monkeypatch):
    """JAX lays axes along a torus; here all must be powers of 4."""
    made = mesh.make_mesh()

    def make_mesh(sizes, *_, **__):
        if not {*sizes} <= {1, 4, 16}:
            raise NotImplementedError
        return made

    monkeypatch.setattr(jax, "make_mesh", make_mesh)
    with pytest.raises(InputError) as error:
        mesh.make_mesh(mesh.MeshConfig(fsdp=8, tensor=2), devices=[None] * 16)
    assert str(error.value) == (
        "mesh: data=1, fsdp=8, tensor=2 cannot be laid along the links of these "
        "devices; the nearest mesh that can is data=1, fsdp=4, tensor=4"
    )
    with pytest.raises(InputError, match="no other mesh that works; use other"):
        mesh.make_mesh(mesh.MeshConfig(fsdp=2), devices=[None] * 2)


@pytest.mark.parametrize(
    ("held", "shares"),
    [
        ({0: {0}}, [(0, 1)]),
        ({0: {0, 1}, 1: {2, 3}}, [(0, 2), (1, 2)]),
        ({0: {2, 3}, 1: {0, 1}}, [(1, 2), (0, 2)]),
        ({0: {0, 2}, 1: {1, 3}}, [(0, 2), (1, 2)]),  # interleaved, as on a torus
        ({0: {0, 1}, 1: {0, 1}}, [(0, 1), (0, 1)]),  # a tensor axis spans both
    ],
)
def test_every_process_feeds_its_own_rows(held, shares):
    assert [mesh.share_of(held, process) for process in held] == shares


@pytest.mark.parametrize("held", [{0: {0, 1}, 1: {1}}, {0: {0, 1}, 1: {1, 2}}])
def test_rows_that_overlap_in_part_are_refused(held):
    with pytest.raises(InputError, match="overlap in part; choose sizes of which"):
        mesh.share_of(held, 0)


def test_one_process_feeds_all_rows():
    assert mesh.batch_share(mesh.make_mesh()) == (0, 1)


GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    ("size", "axes"),
    [
        ("llama2_7b", {"data": 1, "fsdp": 256, "tensor": 1}),
        ("llama2_7b", {"data": 2, "fsdp": 16, "tensor": 8}),
        ("llama2_70b", {"data": 1, "fsdp": 512, "tensor": 1}),
        ("llama2_70b", {"data": 1, "fsdp": 64, "tensor": 8}),
    ],
)
def test_specs_of_large_models_are_pinned(size, axes):
    """What a sharding rule changes shows as a difference of a readable file."""
    name = f"{size}_{'x'.join(map(str, axes.values()))}.txt"
    assert spec_table(size, axes) == (GOLDEN / name).read_text()


def spec_table(size, axes):
    """Leaf, shape, spec and the share of one device, for the state of a model."""
    config = sizes.get(size)
    params = models.abstract_params(config)
    masks = make_masks_of_shapes(params)
    moments = train.OptimizerConfig().transformation().init
    state = {"params": params, "masks": masks, "opt": jax.eval_shape(moments, params)}
    cut = leaf_paths(mesh.specs(abstract(**axes), state["params"]))
    where = ", ".join(f"{axis}={n}" for axis, n in axes.items())
    lines = [f"{size} on {where}: leaf, shape, spec, share of the leaf on a device"]
    for path, leaf in leaf_paths(params).items():
        spec, names = cut[path], [n for part in cut[path] if part for n in [part]]
        share = 1
        for name in names:
            share *= axes[name]
        lines.append(f"{path:32}{leaf.shape!s:22}{tuple(spec)!s:28}1/{share}")
    for part in ("masks", "opt"):
        same = jax.tree_util.tree_leaves_with_path(
            mesh.specs(abstract(**axes), state[part]),
            is_leaf=lambda s: isinstance(s, P),
        )
        for key_path, spec in same:
            path = "/".join(str(getattr(k, "key", "")) for k in key_path)
            path = path.lstrip("/")
            if path in cut:
                assert spec == cut[path], (part, path)
    return "\n".join([*lines, "masks and moments: as their weight", ""])


def make_masks_of_shapes(params):
    return jax.eval_shape(
        lambda p: make_masks(p, PruneConfig().pattern_rules()), params
    )
