"""Value classes are what frozen dataclasses with slots are."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as standard_field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyless.values import field, frozen, replace


@frozen
class Point:
    """A place."""

    x: int
    y: int = 0

    def __str__(self) -> str:
        return f"{self.x}/{self.y}"


@frozen(kw_only=True)
class Named:
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    secret: bytes = field(default=b"", repr=False)
    memo: list[int] = field(default_factory=list, compare=False)
    length: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", len(self.name))


@frozen(eq=False)
class Thing:
    name: str


@frozen
class Nothing:
    pass


@frozen
class Caseless:
    text: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Caseless) and self.text.lower() == other.text.lower()


@dataclass(frozen=True, slots=True)
class Standard:
    x: int
    y: int = 0
    z: tuple[int, ...] = standard_field(default=(), repr=False)


@frozen
class Ours:
    x: int
    y: int = 0
    z: tuple[int, ...] = field(default=(), repr=False)


arguments = st.tuples(
    st.lists(st.integers(0, 2), max_size=4), st.dictionaries(st.sampled_from(["x", "y", "z", "w"]), st.integers(0, 2))
)


def outcome(cls: Any, args: list[int], named: dict[str, int]) -> Any:
    try:
        made = cls(*args, **named)
    except TypeError:
        return None
    return made, repr(made).replace(cls.__name__, "")


@given(arguments, arguments)
def test_what_can_be_made_what_is_shown_and_what_is_equal_is_as_with_dataclasses(one: Any, two: Any) -> None:
    ours, standard = [[outcome(cls, *each) for each in (one, two)] for cls in (Ours, Standard)]
    assert [each and each[1] for each in ours] == [each and each[1] for each in standard]
    if all(ours):
        (a, _), (b, _) = ours
        (c, _), (d, _) = standard
        assert (a == b) == (c == d)
        assert (a != b) == (c != d)
        assert (hash(a) == hash(b)) == (hash(c) == hash(d))


@pytest.mark.parametrize(
    ("args", "named", "text"),
    [
        ((), {}, "missing x"),
        ((1,), {"z": 1}, "no field z"),
        ((), {"y": 1, "z": 1}, "missing x; no field z"),
        ((1, 2, 3), {}, "takes 2 positional"),
        ((1,), {"x": 1}, "two values for x"),
    ],
)
def test_what_is_wrong_with_arguments_is_named(args: Any, named: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        Point(*args, **named)


def test_keywords_only() -> None:
    with pytest.raises(TypeError, match="takes 0 positional"):
        Named("a")  # type: ignore[misc]  # what is tested


def test_an_instance_never_changes_and_has_no_room_for_more() -> None:
    point: Any = Point(1)
    for name in ("x", "z"):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(point, name, 2)
    with pytest.raises(AttributeError, match="immutable"):
        del point.x
    assert not hasattr(point, "__dict__")


def test_defaults_are_made_anew_hidden_fields_stay_hidden_and_the_rest_is_computed() -> None:
    one, two = Named(name="ab", secret=b"key"), Named(name="ab", secret=b"key")
    assert one.labels == {}
    assert one.labels is not two.labels
    assert (one.length, "key" in repr(one), one.memo) == (2, False, [])
    one.memo.append(1)
    assert one == two
    assert one != Named(name="ab")


def test_a_class_keeps_its_own_methods_names_and_documentation() -> None:
    assert str(Point(1, 2)) == "1/2"
    assert repr(Point(1, 2)) == "Point(x=1, y=2)"
    assert (Point.__doc__, Point.__qualname__, Point.__module__) == ("A place.", "Point", __name__)
    assert Caseless("A") == Caseless("a") != Caseless("b")
    assert hash(Nothing()) == hash(Nothing())
    assert Nothing() == Nothing() != Point(1)


def test_identity_where_it_was_asked_for() -> None:
    thing = Thing("a")
    assert thing == thing
    assert thing != Thing("a")
    assert thing in {thing}


def test_copies() -> None:
    point, named = Point(1, 2), Named(name="ab", labels={"a": "b"})
    assert replace(point, y=3) == Point(1, 3)
    assert replace(named, name="abc").length == 3
    assert pickle.loads(pickle.dumps(point)) == point
    assert copy.deepcopy(named) == copy.copy(named) == named
    with pytest.raises(TypeError, match="no field q"):
        replace(point, q=1)


def test_patterns_match_by_position() -> None:
    match Point(1, 2):
        case Point(1, y):
            assert y == 2
        case _:
            pytest.fail("no match")
