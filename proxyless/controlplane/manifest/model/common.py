"""What all kinds share: the resource around a spec, selectors, and the scalar types of the schema.

The dataclasses of this package *are* the schema: the decoder reads their type hints. Attribute names are the proto
names of istio.io/api (``per_try_timeout``); the YAML name is its camelCase form (``perTryTimeout``); a trailing
underscore avoids a Python keyword (``from_``). Rules of the shapes:

* an attribute without default is required;
* ``None`` is "absent" wherever absent and zero differ (numbers, wrappers, members of a oneof, messages); plain strings,
  lists, maps, booleans and enums hold their proto default when absent, as Istio cannot tell the two apart either;
* a duration is a float of seconds, a percentage a float from 0 to 100.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar

from proxyless.errors import Place

__all__ = [
    "AnyDuration",
    "Double",
    "Duration",
    "DurationRule",
    "Int32",
    "IstioBytes",
    "LabelSelector",
    "Limit",
    "PercentMessage",
    "Percentage",
    "PolicyTargetReference",
    "PortNumber",
    "PortSelector",
    "Range",
    "Resource",
    "Struct",
    "Text",
    "UInt32",
    "UInt64",
    "WorkloadSelector",
    "json_name",
]


@dataclass(frozen=True, slots=True)
class Range:
    """Inclusive bounds of a number."""

    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True)
class DurationRule:
    """A Go duration of at least ``minimum`` seconds, in whole milliseconds unless the minimum is 0."""

    minimum: float


@dataclass(frozen=True, slots=True)
class PercentMessage:
    """Written as a message with one field, ``{value: 12.5}``; held as a float."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Number of elements of a list, or characters of a string."""

    maximum: int
    minimum: int = 0


@dataclass(frozen=True, slots=True)
class Text:
    """A string that must match ``pattern`` as a whole; ``example`` shows a right one."""

    pattern: str
    example: str


Duration = Annotated[float, DurationRule(minimum=0.001)]
AnyDuration = Annotated[float, DurationRule(minimum=0.0)]
Percentage = Annotated[float, PercentMessage()]
Double = float
Int32 = Annotated[int, Range(-(2**31), 2**31 - 1)]
UInt32 = Annotated[int, Range(0, 2**32 - 1)]
UInt64 = Annotated[int, Range(0, 2**64 - 1)]
PortNumber = Annotated[int, Range(1, 65535)]
IstioBytes = bytes
Struct = Mapping[str, Any]

NOWHERE = Place("", 1, 1)
SpecT = TypeVar("SpecT", covariant=True)


def json_name(attribute: str) -> str:
    """YAML name of an attribute: ``consecutive_5xx_errors`` -> ``consecutive5xxErrors``, ``from_`` -> ``from``."""
    head, *rest = attribute.rstrip("_").split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource(Generic[SpecT]):
    """One accepted document.

    Attributes:
        creation: metadata.creationTimestamp as POSIX seconds; decides between competing rules.
        place: of the document (its first key).
        places: field path (``spec.http[0].timeout``) to the place of its key; the value's place for list elements.
    """

    kind: str
    api_version: str
    namespace: str
    name: str
    spec: SpecT
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    creation: float | None = None
    place: Place = NOWHERE
    places: Mapping[str, Place] = field(default_factory=dict, repr=False, compare=False)

    @property
    def key(self) -> tuple[str, str, str]:
        """Identity within a configuration: kind, namespace, name."""
        return self.kind, self.namespace, self.name

    @property
    def age_key(self) -> tuple[float, str]:
        """Sorts the oldest first as istiod does: creation time (absent is oldest), then ``name.namespace``."""
        return (float("-inf") if self.creation is None else self.creation), f"{self.name}.{self.namespace}"

    def place_of(self, path: str) -> Place:
        """Place of a field path, or of the nearest enclosing one that is in the file."""
        while path:
            place = self.places.get(path)
            if place is not None:
                return place
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.place


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSelector:
    """istio.type.v1beta1.WorkloadSelector: labels that a workload must all have."""

    match_labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSelector:
    """istio.networking.v1alpha3.WorkloadSelector: the same under another name of the field."""

    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTargetReference:
    """istio.type.v1beta1.PolicyTargetReference: attaches a policy to a Gateway, Service or ServiceEntry."""

    group: str = ""
    kind: str
    name: str
    namespace: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PortSelector:
    """istio.networking.v1alpha3.PortSelector."""

    number: PortNumber
