"""Changes of a directory are seen once, and only when they are complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxyless.controlplane.watch import DirectoryWatch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.yaml").write_text("a")
    return tmp_path


def test_a_change_is_reported_once_after_it_has_been_quiet(folder: Path) -> None:
    watch = DirectoryWatch(folder, quiet=0.1)
    (folder / "b.yaml").write_text("b")
    assert [watch.poll(now) for now in (0.0, 0.05, 0.11, 0.2)] == [False, False, True, False]


def test_a_change_that_goes_on_is_not_reported_until_it_ends(folder: Path) -> None:
    watch = DirectoryWatch(folder, quiet=0.1)
    for step in range(5):
        (folder / "b.yaml").write_text("b" * (step + 1))
        assert not watch.poll(step * 0.08)
    assert watch.poll(1.0)


def test_removal_is_a_change(folder: Path) -> None:
    watch = DirectoryWatch(folder)
    (folder / "a.yaml").unlink()
    assert [watch.poll(0.0), watch.poll(1.0)] == [False, True]


def test_a_change_that_is_taken_back_is_none(folder: Path) -> None:
    watch = DirectoryWatch(folder)
    (folder / "b.yaml").write_text("b")
    assert not watch.poll(0.0)
    (folder / "b.yaml").unlink()
    assert [watch.poll(1.0), watch.poll(2.0)] == [False, False]


def test_files_of_other_kinds_and_hidden_ones_do_not_count(folder: Path) -> None:
    watch = DirectoryWatch(folder)
    (folder / "notes.txt").write_text("x")
    (folder / ".b.yaml.swp").write_text("x")
    (folder / ".hidden.yaml").write_text("x")
    assert [watch.poll(0.0), watch.poll(1.0)] == [False, False]


def test_a_symlink_swap_is_a_change(tmp_path: Path) -> None:
    """As Kubernetes updates a mounted ConfigMap: file -> ..data/file, ..data -> a directory that is replaced."""
    for name in ("..one", "..two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.yaml").write_text("same size")
    (tmp_path / "..data").symlink_to("..one")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    watch = DirectoryWatch(tmp_path)
    (tmp_path / "..new").symlink_to("..two")
    (tmp_path / "..new").replace(tmp_path / "..data")
    assert [watch.poll(0.0), watch.poll(1.0)] == [False, True]


def test_subdirectories_are_watched(folder: Path) -> None:
    (folder / "team").mkdir()
    watch = DirectoryWatch(folder)
    (folder / "team" / "c.yml").write_text("c")
    assert [watch.poll(0.0), watch.poll(1.0)] == [False, True]


def test_an_empty_or_missing_directory_is_no_error(tmp_path: Path) -> None:
    watch = DirectoryWatch(tmp_path / "missing")
    assert not watch.poll(0.0)
