"""`resolve`: what `--model` means everywhere."""

import dataclasses
import logging
from pathlib import Path

import numpy as np

from sparse_jax.data.tokenizer import Tokenizer, load_tokenizer
from sparse_jax.io import huggingface, masks_file
from sparse_jax.io.config_json import load_config, read_json
from sparse_jax.io.names import LINEAR_KERNELS
from sparse_jax.models import sizes
from sparse_jax.models.config import LlamaConfig
from sparse_jax.sparsity.masks import from_zeros
from sparse_jax.sparsity.patterns import Unstructured
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError, Masks, Params

_log = logging.getLogger(__name__)

# Dense weights hold a few zeros by chance, float16 ones about one in a million.
_CHANCE_ZEROS = 1e-3

_ACCEPTED = (
    "a Hugging Face directory (config.json and model.safetensors), a run directory "
    "(recipe.json), a stage directory (model/) or a size, one of "
    f"{list(sizes.SIZES)}"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model that has been found.

    Attributes:
      config: architecture.
      params: float32 weights; None when only a size was named.
      masks: True = kept, None = dense leaf; None for a dense model.
      tokenizer: the model's own; None when it carries none.
      source: in words, what it was and where its masks come from.
    """

    config: LlamaConfig
    params: Params | None
    masks: Masks | None
    tokenizer: Tokenizer | None
    source: str


def resolve(path_or_name: str | Path) -> Model:
    """Finds and loads a model.

    Accepted are
      - a Hugging Face directory; its masks are its `masks.safetensors`, else the exact
        zeros of its seven linear matrices per block, if there are more than one in a
        thousand, which is logged;
      - a stage directory of a recipe, which holds a Hugging Face directory `model/`;
      - a run directory, which stands for the stage that its `recipe.json` calls final;
      - a size, see `models.sizes`: the architecture alone.

    Raises:
      InputError: none of these, a damaged one, or a tokenizer that is larger than the
        vocabulary.

    Example:
      >>> model = resolve("llama2_7b")
      >>> model.config.n_layers, model.params, model.source
      (32, None, 'size llama2_7b, without weights')
    """
    path = Path(path_or_name)
    if path.is_dir():
        return _from_directory(path)
    if path.exists():
        raise InputError(f"{path}: is a file; a model is {_ACCEPTED}")
    if str(path_or_name) not in sizes.SIZES:
        raise InputError(
            f"{str(path_or_name)!r} is neither an existing directory nor a size; a "
            f"model is {_ACCEPTED}"
        )
    return Model(
        config=sizes.get(str(path_or_name)),
        params=None,
        masks=None,
        tokenizer=None,
        source=f"size {path_or_name}, without weights",
    )


def _from_directory(path: Path) -> Model:
    if (path / "config.json").is_file():
        return _hugging_face(path)
    if (path / "recipe.json").is_file():
        return _stage(path / _final_stage(path), f"run {path}, ")
    if (path / "model").is_dir():
        return _stage(path, "")
    raise InputError(
        f"{path}: no config.json, no recipe.json and no model/; a model is {_ACCEPTED}"
    )


def _final_stage(run: Path) -> str:
    final = read_json(run / "recipe.json").get("final")
    if not isinstance(final, str) or Path(final).name != final or final in ("", ".."):
        raise InputError(
            f"{run / 'recipe.json'}: 'final' must name a stage directory, found "
            f"{final!r}"
        )
    return final


def _stage(path: Path, prefix: str) -> Model:
    if not (path / "model").is_dir():
        raise InputError(
            f"{path}: no model/: the stage has not finished; run the same training "
            "command again, or name an earlier stage"
        )
    model = _hugging_face(path / "model")
    return dataclasses.replace(model, source=f"{prefix}stage {path}; {model.source}")


def _hugging_face(path: Path) -> Model:
    config = load_config(path)
    tokenizer = _tokenizer(path, config)
    params = huggingface.load(path, config)
    masks, words = _masks(path, config, params)
    return Model(
        config=config,
        params=params,
        masks=masks,
        tokenizer=tokenizer,
        source=f"Hugging Face directory {path}; {words}",
    )


def _tokenizer(path: Path, config: LlamaConfig) -> Tokenizer | None:
    if not (path / "tokenizer.json").is_file() and not any(path.glob("*.model")):
        return None
    tokenizer = load_tokenizer(path)
    check_tokenizer(tokenizer, config, str(path))
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer, config: LlamaConfig, where: str) -> None:
    """Raises InputError when a tokenizer has more tokens than the model embeds."""
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} tokens but the model's "
            f"vocabulary holds {config.vocab_size}; use the model's own tokenizer"
        )


def _masks(path: Path, config: LlamaConfig, params: Params) -> tuple[Masks | None, str]:
    """The masks of a directory, and where they come from, in words."""
    file = path / huggingface.MASKS
    if file.is_file():
        masks = masks_file.load_masks(file, config)
        _check_masks(file, params, masks)
        return masks, f"masks: from {file.name}"
    kernel = (LINEAR_KERNELS, Unstructured(0.0))
    masks = from_zeros(params, [kernel, (r".*", None)])
    kept = [m for m in leaf_paths(masks).values() if m is not None]
    size = sum(mask.size for mask in kept)
    zeros = size - sum(int(np.count_nonzero(mask)) for mask in kept)
    if zeros <= _CHANCE_ZEROS * size:
        return None, f"masks: none, dense ({zeros} of {size} linear weights are zero)"
    words = (
        f"masks: from exact zeros in the linear matrices ({zeros} of {size} weights, "
        f"{100 * zeros / size:.2f} %)"
    )
    _log.warning("%s: no %s; %s", path, file.name, words)
    return masks, words


def _check_masks(file: Path, params: Params, masks: Masks) -> None:
    weights = leaf_paths(params)
    for leaf_path, mask in leaf_paths(masks).items():
        if mask is None:
            continue
        wrong = int(np.count_nonzero(np.asarray(weights[leaf_path])[~np.asarray(mask)]))
        if wrong:
            raise InputError(
                f"{file}: {wrong} weights of {leaf_path} are not zero but marked as "
                "pruned; the file belongs to other weights, delete or replace it"
            )
