import pytest

from sparse_jax.models import LlamaConfig, RopeConfig, abstract_params, sizes
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError

SHAPE = {"vocab_size": 8, "d_model": 16, "d_ff": 8, "n_layers": 1, "n_heads": 4}


def count(name: str) -> int:
    return sum(
        leaf.size for leaf in leaf_paths(abstract_params(sizes.get(name))).values()
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama2_7b", 6_738_415_616),
        ("llama2_13b", 13_015_864_320),
        ("llama2_70b", 68_976_648_192),
        ("llama3_8b", 8_030_261_248),
        ("llama3_70b", 70_553_706_496),
        ("llama3.2_1b", 1_235_814_400),
        ("llama3.2_3b", 3_212_749_824),
    ],
)
def test_sizes_have_the_published_number_of_parameters(name, parameters):
    assert count(name) == parameters


def test_an_unknown_size_lists_the_known_ones():
    with pytest.raises(InputError, match=r"'llama9' is unknown; choose one of .*tiny"):
        sizes.get("llama9")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, r"model\.vocab_size must be >= 1, got 0"),
        ({"n_heads": 3}, "n_heads: 3 does not divide d_model 16"),
        ({"n_kv_heads": 3}, "n_kv_heads: 3 does not divide n_heads 4"),
        ({"n_kv_heads": 0}, r"n_kv_heads must be >= 1, got 0"),
        ({"head_dim": 3}, "head_dim must be even"),
        ({"head_dim": -2}, "head_dim must be >= 1"),
        ({"rope": RopeConfig(kind="llama3")}, "original_max_seq_len must be set"),
        ({"rope": RopeConfig(theta=0.0)}, r"rope\.theta must be positive"),
        ({"rope": RopeConfig(factor=-1.0)}, r"rope\.factor must be positive"),
        (
            {"rope": RopeConfig(low_freq_factor=4.0)},
            r"high_freq_factor 4\.0 must be larger than low_freq_factor 4\.0",
        ),
    ],
)
def test_a_bad_shape_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        LlamaConfig(**(SHAPE | changes))


def test_the_longest_sequence():
    config = LlamaConfig(**SHAPE, max_seq_len=10)
    config.check_length(10)
    with pytest.raises(InputError, match=r"11 tokens .* allows \(10\)"):
        config.check_length(11)
    dynamic = RopeConfig(kind="dynamic", factor=2.0)
    config = LlamaConfig(**SHAPE, max_seq_len=10, rope=dynamic)
    config.check_length(20)
    with pytest.raises(InputError, match=r"21 tokens .* allows \(20\)"):
        config.check_length(21)
