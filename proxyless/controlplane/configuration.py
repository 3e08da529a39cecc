"""A configuration directory as one value: manifests and mesh settings, read together or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from proxyless.controlplane.manifest.loader import MESH_FILES, load_paths, manifest_files
from proxyless.controlplane.manifest.meshconfig import MeshConfig, load_mesh_file
from proxyless.controlplane.manifest.messages import Message
from proxyless.controlplane.manifest.model import AnyResource
from proxyless.controlplane.manifest.references import check_references
from proxyless.errors import ConfigError

__all__ = ["Configuration", "Loaded", "load_configuration"]


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the control plane serves from, beside the workloads that have registered."""

    mesh: MeshConfig = MeshConfig()  # noqa: RUF009 - immutable
    resources: tuple[AnyResource, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """`configuration` None: something is wrong, and the messages say what."""

    configuration: Configuration | None
    messages: tuple[Message, ...] = ()

    @property
    def errors(self) -> tuple[Message, ...]:
        return tuple(message for message in self.messages if message.severity == "error")

    def require(self) -> Configuration:
        """The configuration.

        Raises:
            ConfigError: there is none; the text holds every error.
        """
        if self.configuration is None:
            raise ConfigError("\n".join(str(message) for message in self.errors))
        return self.configuration


def load_configuration(directory: Path) -> Loaded:
    """Read a directory: ``mesh.yaml`` and every other manifest in it and below.

    Raises:
        ConfigError: there is no such directory, or one below cannot be read.
    """
    if not directory.is_dir():
        raise ConfigError(f"{directory} is not a directory")
    settings = next((path for name in MESH_FILES if (path := directory / name).exists()), directory / MESH_FILES[0])
    mesh = load_mesh_file(settings)
    if mesh.config is None:
        return Loaded(None, mesh.messages)
    try:
        files = list(manifest_files(directory))
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from None
    result = load_paths(files, mesh.config.proxyless.default_namespace)
    messages = (*mesh.messages, *result.messages)
    if result.errors:
        return Loaded(None, messages)
    messages += tuple(check_references(result.resources, mesh.config))
    return Loaded(Configuration(mesh.config, result.resources), messages)
