"""Promises about the package as a whole: what an import costs and starts, and what its public names are."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest

PUBLIC = (
    "asgi",
    "wsgi",
    "httpx",
    "grpc",
    "uvicorn",
    "gunicorn",
    "gateway",
    "launch",
    "testing",
    "errors",
    "spiffe",
    "settings",
)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def import_ms(before: str, modules: str) -> float:
    """The best of several runs: what else the machine does only adds."""
    code = f"import sys, time\n{before}\nt = time.perf_counter()\nimport {modules}\nprint((time.perf_counter() - t) * 1000)"
    return min(float(run(code)) for _ in range(5))


def test_importing_proxyless_is_below_30_ms() -> None:
    assert import_ms("", "proxyless") < 30


def test_importing_the_adapters_is_below_150_ms_beyond_their_host_libraries() -> None:
    assert import_ms("import starlette.applications, httpx", "proxyless.asgi, proxyless.httpx") < 150


def test_import_starts_no_thread_and_loads_no_heavy_library() -> None:
    seen = run(
        "import sys, threading, starlette.applications, httpx\n"
        "before = set(sys.modules)\n"
        "import proxyless, proxyless.asgi, proxyless.httpx\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(threading.active_count(), sorted(new & {'grpc', 'google', 'cryptography', 'prometheus_client', 'yaml', 'opentelemetry', 'tenacity'}))"
    )
    assert seen == "1 []"


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_exists(name: str) -> None:
    module = importlib.import_module(f"proxyless.{name}")
    names = module.__all__
    assert all(isinstance(each, str) for each in names)
    assert len(set(names)) == len(names)
    for each in names:
        assert getattr(module, each) is not None


def test_the_package_says_its_version_and_ships_its_types() -> None:
    from importlib.resources import files

    import proxyless

    assert version("proxyless") == proxyless.__version__
    assert files("proxyless").joinpath("py.typed").is_file()
    assert files("proxyless").joinpath("protos/descriptors.binpb.gz").is_file()


def test_xds_protos_is_not_installed() -> None:
    with pytest.raises(PackageNotFoundError):
        version("xds-protos")


def test_mesh_and_settings_are_at_the_root() -> None:
    import proxyless
    from proxyless.runtime.mesh import Mesh
    from proxyless.settings import Settings

    assert proxyless.Mesh is Mesh
    assert proxyless.Settings is Settings
    with pytest.raises(AttributeError, match="nothing"):
        proxyless.nothing  # noqa: B018 - reading it is the test
