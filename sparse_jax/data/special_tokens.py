"""The tokens that begin and end a sequence."""

import json
from collections.abc import Mapping
from typing import Any

from sparse_jax.types import InputError

# Used only where no file names the special tokens.
_USUAL_NAMES = {
    "bos_token": ("<s>", "<|begin_of_text|>", "<|endoftext|>"),
    "eos_token": ("</s>", "<|end_of_text|>", "<|endoftext|>"),
}


def special_tokens(
    files: Mapping[str, bytes], vocab: Mapping[str, int], where: str
) -> dict[str, int | None]:
    """The ids of bos and eos, by the files beside tokenizer.json or by usual names."""
    named: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if name in files:
            try:
                named |= json.loads(files[name])
            except (ValueError, TypeError) as error:
                raise InputError(
                    f"{name} beside {where} is not a JSON object ({error}): repair or "
                    "remove it"
                ) from error
    special = {}
    for role, usual in _USUAL_NAMES.items():
        if role in named:
            token = named[role]
            token = token.get("content") if isinstance(token, dict) else token
            if token is not None and token not in vocab:
                raise InputError(
                    f"tokenizer_config.json beside {where} names {role} {token!r}, "
                    "which is not in the vocabulary: correct the name"
                )
        else:
            token = next((name for name in usual if name in vocab), None)
        special[role] = None if token is None else vocab[token]
    return special
