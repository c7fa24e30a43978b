"""`resolve`: what `--model` means everywhere."""

import dataclasses
from pathlib import Path

import jax
from jax.sharding import Mesh

from sparse_jax import mesh as mesh_lib
from sparse_jax.data.tokenizer import Tokenizer
from sparse_jax.io import huggingface, placed
from sparse_jax.io.adapter_file import find_adapter
from sparse_jax.io.config_json import load_config
from sparse_jax.io.entries import open_entries
from sparse_jax.io.locate import locate, model_tokenizer
from sparse_jax.io.mask_source import MaskSource
from sparse_jax.io.packed_blocks import unpack
from sparse_jax.io.packed_file import read_packed
from sparse_jax.io.packed_layout import is_packed
from sparse_jax.io.quantized_reader import found_activations, found_grids
from sparse_jax.models import sizes
from sparse_jax.models.config import LlamaConfig
from sparse_jax.models.llama import abstract_params
from sparse_jax.quant import Activations, Grids
from sparse_jax.sparsity import adapters
from sparse_jax.types import Masks, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model that has been found.

    Attributes:
      config: architecture.
      params: float32 weights; None when only a size was named.
      masks: True = kept, None = dense leaf; None for a dense model.
      tokenizer: the model's own; None when it carries none.
      source: in words, what it was and where its masks come from.
      adapter: low-rank factors beside the pruned matrices, by leaf path; None when
        there are none. Whoever computes with `params` alone drops them: take
        `effective_params`, or put them beside the weights to go on training
        (`sparsity.adapters.attach`).
      grids: (leaf path, layer) -> the grid of a matrix that is quantised; None when
        there are none.
      activations: how the inputs of these matrices are rounded; None = not at all.
    """

    config: LlamaConfig
    params: Params | None
    masks: Masks | None
    tokenizer: Tokenizer | None
    source: str
    adapter: dict[str, jax.Array] | None = None
    grids: Grids | None = None
    activations: Activations | None = None

    @property
    def effective_params(self) -> Params | None:
        """The weights to compute with: `params` with the adapter's term added, dense.

        They are made anew each time.
        """
        if self.params is None or self.adapter is None:
            return self.params
        return adapters.merge(self.params, self.adapter)


def resolve(path_or_name: str | Path, mesh: Mesh | None = None) -> Model:
    """Finds and loads a model.

    Accepted are
      - a Hugging Face directory; its masks are its `masks.safetensors`, else the exact
        zeros of its seven linear matrices per block, if there are more than one in a
        thousand, which is logged; its `adapter.safetensors` holds low-rank factors;
      - a stage directory of a recipe, which holds a Hugging Face directory `model/`;
      - a packed file: its weights, unpacked; masks are the zeros of the matrices whose
        storage type is not a dense one;
      - a run directory, which stands for the stage that its `recipe.json` calls final;
      - a size, see `models.sizes`: the architecture alone.

    `open_blocks` finds the same models and reads them block by block.

    Args:
      path_or_name: the model.
      mesh: where weights and masks are placed, by `mesh.shardings`. All processes
        call this, and each reads what its devices hold; only a packed file is read
        whole by each. None = this process's default device.

    Raises:
      InputError: none of these, a damaged one, or a tokenizer that is larger than the
        vocabulary.

    Example:
      >>> model = resolve("llama2_7b")
      >>> model.config.n_layers, model.params, model.source
      (32, None, 'size llama2_7b, without weights')
    """
    path = Path(path_or_name)
    if str(path_or_name) in sizes.SIZES and not path.exists():
        return Model(
            config=sizes.get(str(path_or_name)),
            params=None,
            masks=None,
            tokenizer=None,
            source=f"size {path_or_name}, without weights",
        )
    if is_packed(path):
        return _resolve_packed(path, mesh)
    directory, words = locate(path)
    config = load_config(directory)
    tokenizer = model_tokenizer(directory, config)
    entries = open_entries(directory, config)
    masks = MaskSource(directory, config, entries, shared=mesh is not None)
    adapter = find_adapter(directory, config)
    shardings = None
    if mesh is not None:
        shardings = mesh_lib.shardings(mesh, abstract_params(config))
    return Model(
        config=config,
        params=huggingface.read_params(entries, config, shardings=shardings),
        masks=masks.read(shardings) if masks.found else None,
        tokenizer=tokenizer,
        source="; ".join([words, masks.words, *([adapter.words] if adapter else [])]),
        adapter=adapter.read(mesh) if adapter else None,
        grids=found_grids(entries, config, mesh) or None,
        activations=found_activations(entries, config),
    )


def _resolve_packed(path: Path, mesh: Mesh | None) -> Model:
    packed = read_packed(path)
    params, masks = unpack(packed)
    if mesh is not None:
        params, masks = (
            jax.tree.map(placed.place, tree, mesh_lib.shardings(mesh, tree))
            for tree in (params, masks)
        )
    words = (
        "from the zeros of its sparse types" if masks else "none, all types are dense"
    )
    return Model(
        config=packed.config,
        params=params,
        masks=masks,
        tokenizer=packed.tokenizer,
        source=f"{packed.source}; masks: {words}",
    )
