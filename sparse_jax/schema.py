"""Plain nested mappings to frozen dataclasses, and back, with errors that help."""

import ast
import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from sparse_jax.types import InputError

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Builds a frozen dataclass from a plain mapping, checking names and types.

    Nested dataclasses, `dict[str, Dataclass]`, tuples and `X | None` are followed.
    A dataclass whose `kind` class variable is set is picked from a union by the
    mapping's `kind` field.

    Args:
      cls: the dataclass.
      values: plain data, e.g. from JSON or `ConfigDict.to_dict()`.
      where: name of `values` in error messages.

    Raises:
      InputError: an unknown field (with the nearest known name), a missing field, or
        a value of the wrong type.

    Example:
      >>> @dataclasses.dataclass(frozen=True, kw_only=True)
      ... class Train:
      ...     steps: int = 10
      >>> build(Train, {"steps": 20})
      Train(steps=20)
      >>> build(Train, {"step": 20})
      Traceback (most recent call last):
      sparse_jax.types.InputError: config.step is not a field; did you mean ...
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # pyrefly: ignore[bad-argument-type]
    for name in values:
        if name not in fields and not (name == "kind" and kind_of(cls) is not None):
            raise InputError(unknown_field(where, name, fields))
    arguments = {
        name: convert(hints[name], values[name], f"{where}.{name}")
        for name in fields
        if name in values
    }
    missing = [
        name
        for name, field in fields.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InputError(f"{where}.{missing[0]} is missing and has no default; set it")
    return cls(**arguments)


def kind_of(cls: Any) -> str | None:
    """The `kind` class variable that tells a union's dataclasses apart, if it has one.

    Other members of a union have none, and a field that happens to be called `kind` is
    a setting like any other.
    """
    fields = (
        {f.name for f in dataclasses.fields(cls)}
        if dataclasses.is_dataclass(cls)
        else ()
    )
    return None if "kind" in fields else getattr(cls, "kind", None)


def unknown_field(where: str, name: str, known: typing.Iterable[str]) -> str:
    """The sentence for a mistyped field name, with the nearest known one."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {where}.{near[0]}?" if near else f"known fields: {known}"
    return f"{where}.{name} is not a field; {hint}"


def to_dict(value: Any) -> Any:
    """Turns dataclasses into plain JSON-able data; the inverse of `build`.

    Example:
      >>> @dataclasses.dataclass(frozen=True, kw_only=True)
      ... class Train:
      ...     betas: tuple[float, ...] = (0.9, 0.95)
      >>> to_dict(Train())
      {'betas': [0.9, 0.95]}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = kind_of(type(value))
        return ({} if kind is None else {"kind": kind}) | {
            f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {name: to_dict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(item) for item in value]
    return value


def convert(hint: Any, value: Any, where: str) -> Any:
    """Checks `value` against a type annotation, converting where nothing is lost."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(options, value, where)
    if origin is typing.Literal:
        if value not in options:
            raise InputError(f"{where} must be one of {list(options)}, got {value!r}")
        return value
    if origin is tuple:
        return _convert_tuple(options, value, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{where} must be a mapping, got {value!r}")
        return {k: convert(options[1], v, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if not isinstance(value, Mapping):
            raise InputError(f"{where} must be a {hint.__name__}, got {value!r}")
        return build(hint, value, where)
    if hint is Any:
        return value
    return _convert_scalar(hint, value, where)


def _convert_scalar(hint: type, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    right_type = isinstance(value, hint) and isinstance(value, bool) == (hint is bool)
    if not right_type:
        raise InputError(
            f"{where} must be {hint.__name__}, got {value!r} ({type(value).__name__})"
        )
    return value


def _convert_tuple(options: tuple[Any, ...], value: Any, where: str) -> tuple:
    if not isinstance(value, list | tuple):
        raise InputError(f"{where} must be a tuple, got {value!r}")
    if len(options) == 2 and options[1] is Ellipsis:
        hints = [options[0]] * len(value)
    else:
        hints = list(options)
        if len(hints) != len(value):
            raise InputError(f"{where} must have {len(hints)} items, got {value!r}")
    return tuple(
        convert(hint, item, f"{where}[{i}]")
        for i, (hint, item) in enumerate(zip(hints, value, strict=True))
    )


def _convert_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    options = tuple(o for o in options if o is not type(None))
    kinds = {kind: o for o in options if (kind := kind_of(o)) is not None}
    if kinds and isinstance(value, Mapping):
        kind = value.get("kind")
        if kind not in kinds:
            raise InputError(
                f"{where}.kind must be one of {sorted(kinds)}, got {kind!r}"
            )
        return build(kinds[kind], value, where)
    # A field that is None by default arrives from the command line as text.
    if isinstance(value, str) and str not in options:
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
    errors = []
    for option in options:
        try:
            return convert(option, value, where)
        except InputError as error:
            errors.append(error)
    raise errors[0]
