"""Files, directories and text to resources and messages.

Nothing here raises for what a file holds: every problem is a message with its place, and one bad document takes no
other with it. Whether a configuration with errors is used is the caller's decision (the control plane keeps the last
good one).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from proxyless.errors import ManifestError, Place

from .context import Context
from .decode import FAILED, decode_message
from .envelope import Identity, Metadata, identify, list_items, peek_subject, read_metadata
from .messages import Message, Subject, sorted_messages
from .model import AnyResource, EnvoyOnly, Resource
from .rules import check_spec
from .schema import schema_of
from .support import report_unsupported
from .syntax import Node, SyntaxProblem, YamlMapping, read_documents

__all__ = ["MESH_FILES", "LoadResult", "load_paths", "load_text", "manifest_files"]

MESH_FILES: Final = ("mesh.yaml", "mesh.yml")
"""Names of the file with mesh settings in a configuration directory: not manifests."""
_SUFFIXES: Final = (".yaml", ".yml", ".json")
SpecT = TypeVar("SpecT")


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What was accepted, in the order of files and documents, and everything there is to say."""

    resources: tuple[AnyResource, ...] = ()
    messages: tuple[Message, ...] = ()

    @property
    def errors(self) -> list[ManifestError]:
        return [message.as_error() for message in self.messages if message.severity == "error"]

    @property
    def warnings(self) -> list[Message]:
        return [message for message in self.messages if message.severity == "warning"]

    @property
    def notices(self) -> list[Message]:
        return [message for message in self.messages if message.severity == "notice"]

    @property
    def refused(self) -> tuple[Subject, ...]:
        """The resources with errors, as far as they could be told; for a security policy the caller has to deny."""
        return tuple(dict.fromkeys(m.subject for m in self.messages if m.severity == "error" and m.subject.kind))

    def of(self, spec: type[SpecT]) -> list[Resource[SpecT]]:
        """The resources with that type of spec."""
        return [resource for resource in self.resources if isinstance(resource.spec, spec)]

    def with_messages(self, more: Iterable[Message]) -> LoadResult:
        return LoadResult(self.resources, tuple(sorted_messages((*self.messages, *more))))


def load_text(content: bytes | str, file: str, default_namespace: str = "default") -> LoadResult:
    """Reads one file's content; ``file`` is what messages call it."""
    loading = _Loading(default_namespace)
    loading.read(content, file)
    return loading.result()


def load_paths(paths: Iterable[str | Path] | Literal["-"], default_namespace: str = "default") -> LoadResult:
    """Reads files and directories (recursively: .yaml, .yml, .json); ``-`` is standard input."""
    loading = _Loading(default_namespace)
    for path in ["-"] if paths == "-" else paths:
        if str(path) == "-":
            loading.read(sys.stdin.buffer.read(), "<stdin>")
            continue
        try:
            found = list(manifest_files(Path(path)))
            if not found:
                loading.file_problem(str(path), "no YAML file here" if Path(path).is_dir() else "no such file")
        except OSError as error:
            found = []
            loading.file_problem(str(path), f"cannot be read: {error.strerror or error}")
        for file in found:
            loading.read_file(file)
    return loading.result()


def manifest_files(path: Path) -> Iterator[Path]:
    """The files that ``path`` stands for, sorted; hidden ones (of a mounted ConfigMap) and mesh settings are left out.

    A link that leads nowhere is a file that cannot be read: a policy must not be gone without a word.

    Raises:
        OSError: a directory below cannot be read.
    """
    if not path.is_dir():
        if path.exists():
            yield path
        return
    found: list[Path] = []
    for folder, folders, names in os.walk(path, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += (Path(folder, name) for name in names if not name.startswith(".") and name not in MESH_FILES)
    for file in sorted(found):
        if file.suffix in _SUFFIXES and (file.is_file() or not file.exists()):
            yield file


def _raise(error: OSError) -> None:
    raise error


@dataclass(slots=True)
class _Loading:
    default_namespace: str
    resources: dict[tuple[str, str, str], AnyResource] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    without_namespace: dict[str, list[Place]] = field(default_factory=dict)

    def file_problem(self, file: str, reason: str) -> None:
        self.messages.append(Message("error", "file", Place(file, 1, 1), "", reason))

    def read_file(self, file: Path) -> None:
        try:
            content = file.read_bytes()
        except OSError as error:
            self.file_problem(str(file), f"cannot be read: {error.strerror or error}")
        else:
            self.read(content, str(file))

    def read(self, content: bytes | str, file: str) -> None:
        for document in read_documents(content, file):
            if isinstance(document, SyntaxProblem):
                problem = document
                self.messages.append(Message("error", "yaml", problem.place, "", problem.reason, problem.hint))
            else:
                self._document(document)

    def result(self) -> LoadResult:
        for places in self.without_namespace.values():
            count = f"{len(places)} resources have" if len(places) > 1 else "the resource has"
            reason = f"{count} no metadata.namespace and got {self.default_namespace!r}"
            hint = "in a bare istiod they would bind to nothing"
            self.messages.append(Message("notice", "namespace", places[0], "metadata.namespace", reason, hint))
        return LoadResult(tuple(self.resources.values()), tuple(sorted_messages(self.messages)))

    def _document(self, document: Node) -> None:
        if not isinstance(document, YamlMapping):
            reason = "a manifest is a mapping with apiVersion, kind, metadata and spec"
            self.messages.append(Message("error", "not-a-manifest", document.place, "", reason))
            return
        items = list_items(document)
        if items is not None:
            for item in items:
                self._document(item)
            return
        context = Context(document.place, peek_subject(document, self.default_namespace))
        resource = read_resource(context, document, self.default_namespace)
        if resource is not None:
            self._add(context, resource)
        self.messages += context.messages

    def _add(self, context: Context, resource: AnyResource) -> None:
        if "metadata.namespace" not in resource.places:
            self.without_namespace.setdefault(resource.place.file, []).append(resource.place)
        if (first := self.resources.get(resource.key)) is not None:
            context.error("metadata.name", "the same resource stands twice", f"first at {first.place}", code="twice")
            return
        self.resources[resource.key] = resource


def read_resource(context: Context, document: YamlMapping, default_namespace: str) -> AnyResource | None:
    """One document to a resource; None when it was refused or skipped, with the reasons in the context."""
    identity = identify(context, document)
    if identity is None:
        return None
    metadata = read_metadata(context, document, default_namespace)
    if metadata is not None:
        context.annotations, context.labels = metadata.annotations, metadata.labels
    spec = _read_spec(context, identity, document)
    if spec is FAILED or context.failed:
        return None
    check_spec(context, spec)
    report_unsupported(context, identity.kind)
    if context.refused or metadata is None:
        return None
    return _resource(context, identity, metadata, spec)


def _read_spec(context: Context, identity: Identity, document: YamlMapping) -> Any:
    node = document.get("spec")
    if identity.spec is EnvoyOnly:
        return EnvoyOnly()
    if node is None or (not isinstance(node, YamlMapping) and "spec" not in context.places):
        if any(field.required for field in schema_of(identity.spec).fields.values()) or not _may_be_empty(identity):
            context.error("spec", "required field is missing", code="required")
            return FAILED
        return identity.spec()
    return decode_message(context, identity.spec, node, "spec")


def _may_be_empty(identity: Identity) -> bool:
    return identity.group in ("security.istio.io", "telemetry.istio.io")


def _resource(context: Context, identity: Identity, metadata: Metadata, spec: Any) -> AnyResource:
    return Resource(
        kind=identity.kind,
        api_version=identity.api_version,
        namespace=metadata.namespace,
        name=metadata.name,
        spec=spec,
        labels=metadata.labels,
        annotations=metadata.annotations,
        creation=metadata.creation,
        place=context.place,
        places=context.places,
    )
