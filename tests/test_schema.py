"""Plain data to dataclasses: round trips, names, types, unions by kind."""

import dataclasses
import json
from typing import ClassVar, Literal

import pytest

from sparse_jax import recipe, schema
from sparse_jax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cat:
    kind: ClassVar[str] = "cat"
    lives: int = 9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dog:
    kind: ClassVar[str] = "dog"
    name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Garden:
    """Its `kind` is a field, not what tells it apart."""

    kind: str = "lawn"


@dataclasses.dataclass(frozen=True, kw_only=True)
class House:
    rooms: int
    heat: float = 20.0
    open: bool = False
    color: Literal["red", "blue"] = "red"
    pet: Cat | Dog = Cat()
    pets: dict[str, Cat | Dog] = dataclasses.field(default_factory=dict)
    sizes: tuple[float, ...] = ()
    rules: tuple[tuple[str, int], ...] = ()
    limit: int | None = None
    garden: Garden | None = None
    style: Literal["old", "new"] | None = None


FULL = House(
    rooms=3,
    pet=Dog(name="Rex"),
    pets={"a": Cat(lives=2), "b": Dog(name="Ida")},
    sizes=(1.0, 2.5),
    rules=(("x", 1), ("y", 2)),
    limit=4,
    garden=Garden(kind="orchard"),
    style="old",
)


@pytest.mark.parametrize("house", [FULL, House(rooms=1)])
def test_round_trip_through_json(house):
    assert schema.build(House, json.loads(json.dumps(schema.to_dict(house)))) == house


def test_text_from_the_command_line_becomes_a_none_able_field():
    assert schema.build(House, {"rooms": 1, "limit": "7"}).limit == 7


def test_an_int_becomes_a_float_but_not_the_reverse():
    assert schema.build(House, {"rooms": 1, "heat": 3}).heat == 3.0
    with pytest.raises(InputError, match=r"config.rooms must be int, got 1.5"):
        schema.build(House, {"rooms": 1.5})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rooms": 1, "haet": 2.0}, "haet is not a field; did you mean config.heat"),
        ({}, "config.rooms is missing"),
        ({"rooms": True}, "config.rooms must be int, got True"),
        ({"rooms": 1, "open": 1}, "config.open must be bool"),
        ({"rooms": 1, "color": "green"}, "config.color must be one of"),
        ({"rooms": 1, "pet": {"kind": "cow"}}, "config.pet.kind must be one of"),
        ({"rooms": 1, "pets": {"a": {"kind": "cat", "live": 1}}}, "pets.a.live is not"),
        ({"rooms": 1, "sizes": (1.0, "x")}, r"config.sizes\[1\] must be float"),
        ({"rooms": 1, "rules": (("x",),)}, r"config.rules\[0\] must have 2 items"),
        ({"rooms": 1, "limit": "many"}, "config.limit must be int"),
        ({"rooms": 1, "pets": 3}, "config.pets must be a mapping"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(InputError, match=message):
        schema.build(House, values)


def test_a_recipe_round_trips():
    from configs import sparse70

    whole = sparse70.embedded()
    plain = json.loads(json.dumps(schema.to_dict(whole)))
    assert schema.build(recipe.Recipe, plain) == whole
