"""Which Hugging Face directory a path means, and the tokenizer that lies in it."""

from pathlib import Path

from sparse_jax.data.tokenizer import Tokenizer, load_tokenizer
from sparse_jax.io.config_json import read_json
from sparse_jax.io.packed_layout import is_packed
from sparse_jax.models import sizes
from sparse_jax.models.config import LlamaConfig
from sparse_jax.types import InputError

ACCEPTED = (
    "a Hugging Face directory (config.json and model.safetensors), a run directory "
    "(recipe.json), a stage directory (model/), a packed file (launch/export.py) or a "
    "size, one of "
    f"{list(sizes.SIZES)}"
)


def locate(path: Path) -> tuple[Path, str]:
    """Finds the Hugging Face directory of a model.

    Args:
      path: see `resolve`.

    Returns:
      The directory, and in words what it was.

    Raises:
      InputError: there is no model.
    """
    if is_packed(path):
        raise InputError(
            f"{path}: is a packed file, which is generated from and evaluated, not "
            "worked on further; name the directory that it was made from"
        )
    if path.is_file():
        raise InputError(f"{path}: is a file; a model is {ACCEPTED}")
    if not path.is_dir():
        raise InputError(
            f"{str(path)!r} is neither an existing directory nor a size; a model is "
            f"{ACCEPTED}"
        )
    if (path / "config.json").is_file():
        return path, f"Hugging Face directory {path}"
    if (path / "recipe.json").is_file():
        model, words = _stage(path / _final_stage(path))
        return model, f"run {path}, {words}"
    if (path / "model").is_dir():
        return _stage(path)
    raise InputError(
        f"{path}: no config.json, no recipe.json and no model/; a model is {ACCEPTED}"
    )


def _final_stage(run: Path) -> str:
    final = read_json(run / "recipe.json").get("final")
    if not isinstance(final, str) or Path(final).name != final or final in ("", ".."):
        raise InputError(
            f"{run / 'recipe.json'}: 'final' must name a stage directory, found "
            f"{final!r}"
        )
    return final


def _stage(path: Path) -> tuple[Path, str]:
    model = path / "model"
    if not model.is_dir():
        raise InputError(
            f"{path}: no model/: the stage has not finished; run the same training "
            "command again, or name an earlier stage"
        )
    return model, f"stage {path}; Hugging Face directory {model}"


def model_tokenizer(directory: Path, config: LlamaConfig) -> Tokenizer | None:
    """The tokenizer of a Hugging Face directory; None when it carries none.

    Raises:
      InputError: it is damaged, or larger than the vocabulary.
    """
    if not (directory / "tokenizer.json").is_file() and not any(
        directory.glob("*.model")
    ):
        return None
    tokenizer = load_tokenizer(directory)
    check_tokenizer(tokenizer, config, str(directory))
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer, config: LlamaConfig, where: str) -> None:
    """Raises InputError when a tokenizer has more tokens than the model embeds."""
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} tokens but the model's "
            f"vocabulary holds {config.vocab_size}; use the model's own tokenizer"
        )
