"""Everything that can be said about manifests before they are served: what ``proxyless validate`` prints."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from proxyless.errors import Place

from .loader import MESH_FILES, LoadResult, load_paths
from .meshconfig import MeshConfig, MeshResult, load_mesh_file
from .messages import Message
from .references import check_references

__all__ = ["validate_paths"]


def validate_paths(paths: Iterable[str | Path] | Literal["-"], mesh_file: str | Path | None = None) -> LoadResult:
    """Loads files, directories or standard input (``-``), with mesh settings, and checks references.

    The settings are ``mesh_file``, else the ``mesh.yaml`` among the paths or directly in a directory of them, else the
    defaults.
    """
    wanted = [Path(path) for path in paths] if paths != "-" else []
    mesh = _mesh(wanted, Path(mesh_file) if mesh_file is not None else None)
    config = mesh.config or MeshConfig()
    manifests = [path for path in wanted if path.name not in MESH_FILES]
    if wanted and not manifests:
        return LoadResult((), mesh.messages)
    loaded = load_paths("-" if paths == "-" else manifests, config.proxyless.default_namespace)
    return loaded.with_messages([*mesh.messages, *check_references(loaded.resources, config)])


def _mesh(paths: list[Path], explicit: Path | None) -> MeshResult:
    if explicit is not None:
        if not explicit.exists():
            return MeshResult(None, (Message("error", "file", Place(str(explicit), 1, 1), "", "no such file"),))
        return load_mesh_file(explicit)
    candidates = [path for path in paths if path.name in MESH_FILES]
    candidates += [path / name for path in paths if path.is_dir() for name in MESH_FILES]
    for candidate in candidates:
        if os.path.lexists(candidate) or not os.access(candidate.parent, os.X_OK):
            return load_mesh_file(candidate)  # which says why it cannot be read
    return MeshResult(MeshConfig())
