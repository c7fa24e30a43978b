"""Models in and out: Hugging Face directories, masks, and what `--model` means."""

from sparse_jax.io.config_json import config_from_json, config_to_json, load_config
from sparse_jax.io.directory import replace_directory
from sparse_jax.io.export import save
from sparse_jax.io.huggingface import load
from sparse_jax.io.masks_file import load_masks, save_masks
from sparse_jax.io.resolve import Model, check_tokenizer, resolve

__all__ = [
    "Model",
    "check_tokenizer",
    "config_from_json",
    "config_to_json",
    "load",
    "load_config",
    "load_masks",
    "replace_directory",
    "resolve",
    "save",
    "save_masks",
]
