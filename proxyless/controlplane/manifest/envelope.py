"""What is around a spec: apiVersion, kind, metadata; and which documents are ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from .context import Context, child_path
from .decode import FAILED, decode_value, is_null, report_duplicates
from .hints import did_you_mean
from .messages import Subject
from .model import SPECS
from .schema import MapShape, StringShape
from .syntax import Node, YamlMapping, YamlScalar, YamlSequence

__all__ = ["Identity", "Metadata", "identify", "list_items", "read_metadata"]

_VERSIONS: Final = {
    "networking.istio.io": ("v1", "v1beta1", "v1alpha3"),
    "security.istio.io": ("v1", "v1beta1"),
    "telemetry.istio.io": ("v1", "v1alpha1"),
    "extensions.istio.io": ("v1alpha1",),
}
_OTHER_ISTIO_GROUPS: Final = frozenset({"install.istio.io", "operator.istio.io"})
_METADATA_FIELDS: Final = frozenset(
    {
        "name",
        "namespace",
        "labels",
        "annotations",
        "creationTimestamp",
        "generateName",
        "uid",
        "resourceVersion",
        "generation",
        "selfLink",
        "managedFields",
        "ownerReferences",
        "finalizers",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "clusterName",
    }
)
_TOP_FIELDS: Final = frozenset({"apiVersion", "kind", "metadata", "spec", "status"})
_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,251}[A-Za-z0-9])?")  # istiod takes more than Kubernetes
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Identity:
    """A document of an Istio kind, by its first two fields."""

    group: str
    api_version: str
    kind: str
    spec: type[Any]


@dataclass(frozen=True, slots=True)
class Metadata:
    name: str
    namespace: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    creation: float | None


def text_of(node: Node | None) -> str:
    """A string as written; empty when it is anything else."""
    return node.text if isinstance(node, YamlScalar) and node.type == "string" else ""


def peek_subject(document: YamlMapping, default_namespace: str) -> Subject:
    """Kind, namespace and name for messages, as far as they can be read."""
    metadata = document.get("metadata")
    found = metadata if isinstance(metadata, YamlMapping) else YamlMapping(document.place)
    name = text_of(found.get("name"))
    return Subject(text_of(document.get("kind")), text_of(found.get("namespace")) or default_namespace, name)


def list_items(document: YamlMapping) -> list[Node] | None:
    """The items of a ``List`` or ``<Kind>List`` as kubectl prints it; None for any other document."""
    items = document.get("items")
    if not text_of(document.get("kind")).endswith("List") or not isinstance(items, YamlSequence):
        return None
    return items.items


def identify(context: Context, document: YamlMapping) -> Identity | None:
    """Which Istio kind it is. None: an error or the notice of a skipped document has been reported."""
    missing = [name for name in ("apiVersion", "kind") if not text_of(document.get(name))]
    if missing:
        hint = did_you_mean(missing[0], (key.text for key, _ in document.entries if key.text not in _TOP_FIELDS))
        reason = f"no {' and no '.join(missing)}: not a Kubernetes manifest"
        context.report("error", "not-a-manifest", "", reason, hint.replace("did you mean", "is that"))
        return None
    api_version, kind = text_of(document.get("apiVersion")), text_of(document.get("kind"))
    group, _, version = api_version.rpartition("/")
    _note_place(context, document, "apiVersion")
    _note_place(context, document, "kind")
    if group not in _VERSIONS:
        _foreign_group(context, group, api_version, kind)
        return None
    spec = SPECS.get((group, kind))
    if spec is None:
        _unknown_kind(context, group, kind)
        return None
    if version not in _VERSIONS[group]:
        known = ", ".join(f"{group}/{word}" for word in _VERSIONS[group])
        context.error("apiVersion", f"unknown version {version!r}", f"one of {known}", code="unknown-kind")
        return None
    return Identity(group, api_version, kind, spec)


def _note_place(context: Context, document: YamlMapping, name: str) -> None:
    for key, _ in document.entries:
        if key.text == name:
            context.places[name] = key.place


def _foreign_group(context: Context, group: str, api_version: str, kind: str) -> None:
    homes = sorted(home for home, name in SPECS if name == kind)
    near = did_you_mean(group, _VERSIONS)
    if group.endswith(".istio.io") and group not in _OTHER_ISTIO_GROUPS:
        context.error("apiVersion", f"unknown Istio API group {group!r}", near, code="unknown-kind")
    elif homes and (near or api_version in ("v1", "v1beta1", "v1alpha3")):
        hint = f"{kind} belongs to {homes[0]}/{_VERSIONS[homes[0]][0]}"
        context.error("apiVersion", f"{kind} of {api_version!r} is no Istio kind", hint, code="unknown-kind")
    else:
        context.report("notice", "skipped", "", f"skipped: {api_version} {kind} is not a kind of the mesh")


def _unknown_kind(context: Context, group: str, kind: str) -> None:
    here = [name for home, name in SPECS if home == group]
    homes = [home for home, name in SPECS if name == kind]
    hint = f"{kind} belongs to {homes[0]}" if homes else did_you_mean(kind, here) or f"known: {', '.join(here)}"
    context.error("kind" if not homes else "apiVersion", f"no kind {kind!r} in {group}", hint, code="unknown-kind")


def read_metadata(context: Context, document: YamlMapping, default_namespace: str) -> Metadata | None:
    """Checks the top level and the metadata; None when the resource has no usable name."""
    report_duplicates(context, document, "")
    for key, value in document.entries:
        if key.text not in _TOP_FIELDS:
            hint = did_you_mean(key.text, _TOP_FIELDS) or "resource fields stand below spec"
            context.report("error", "unknown-field", key.text, "unknown field", hint, key.place)
        elif key.text in ("metadata", "spec") and not is_null(value):
            context.places[key.text] = key.place
    node = document.get("metadata")
    if not isinstance(node, YamlMapping):
        context.error("metadata", "must be a mapping with a name", code="required")
        return None
    report_duplicates(context, node, "metadata")
    for key, _ in node.entries:
        here = child_path("metadata", key.text)
        context.places[here] = key.place
        if key.text not in _METADATA_FIELDS:
            hint = did_you_mean(key.text, _METADATA_FIELDS)
            context.report("error", "unknown-field", here, "unknown field", hint, key.place)
    name = _word(context, node, "name", _NAME)
    namespace = _word(context, node, "namespace", _NAMESPACE) or default_namespace
    labels, annotations = _strings(context, node, "labels"), _strings(context, node, "annotations")
    if not name:
        if node.get("name") is None:
            context.error("metadata.name", "required field is missing", code="required")
        return None
    return Metadata(name, namespace, labels, annotations, _creation(context, node))


def _word(context: Context, metadata: YamlMapping, field: str, pattern: re.Pattern[str]) -> str:
    node = metadata.get(field)
    if node is None or is_null(node):
        return ""
    path = f"metadata.{field}"
    value = decode_value(context, StringShape(), node, path)
    if value is FAILED:
        return ""
    if not pattern.fullmatch(value):
        context.error(path, f"{value[:80]!r} is not a Kubernetes name", "letters, digits and '-'")
        return ""
    return str(value)


def _strings(context: Context, metadata: YamlMapping, field: str) -> Mapping[str, str]:
    node = metadata.get(field)
    if node is None or is_null(node):
        return {}
    value = decode_value(context, MapShape(StringShape(), False), node, f"metadata.{field}")
    return {} if value is FAILED else value


def _creation(context: Context, metadata: YamlMapping) -> float | None:
    node = metadata.get("creationTimestamp")
    if node is None or is_null(node):
        return None
    path = "metadata.creationTimestamp"
    if not isinstance(node, YamlScalar):
        context.error(path, "must be a time", "for example 2025-04-03T18:52:36Z", code="type")
        return None
    try:
        moment = datetime.fromisoformat(node.text)
    except ValueError:
        context.error(path, f"{node.text[:40]!r} is not a time", "for example 2025-04-03T18:52:36Z", code="type")
        return None
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
