"""Models in and out: Hugging Face directories, masks, and what `--model` means."""

from sparse_jax.io.block_reader import BlockReader, open_blocks
from sparse_jax.io.block_writer import BlockWriter
from sparse_jax.io.config_json import config_from_json, config_to_json, load_config
from sparse_jax.io.directory import check_free, replace_directory
from sparse_jax.io.huggingface import load
from sparse_jax.io.locate import check_tokenizer, locate
from sparse_jax.io.masks_file import load_masks, save_masks
from sparse_jax.io.packed_blocks import PackedBlocks
from sparse_jax.io.packed_file import PackedModel, read_packed
from sparse_jax.io.packed_table import look_up
from sparse_jax.io.packed_writer import PackedWriter, write_packed
from sparse_jax.io.resolve import Model, resolve
from sparse_jax.io.save_model import save

__all__ = [
    "BlockReader",
    "BlockWriter",
    "Model",
    "PackedBlocks",
    "PackedModel",
    "PackedWriter",
    "check_free",
    "check_tokenizer",
    "config_from_json",
    "config_to_json",
    "load",
    "load_config",
    "load_masks",
    "locate",
    "look_up",
    "open_blocks",
    "read_packed",
    "replace_directory",
    "resolve",
    "save",
    "save_masks",
    "write_packed",
]
