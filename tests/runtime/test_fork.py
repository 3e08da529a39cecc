"""A process that forks while its mesh runs: nothing of the parent is used in the child."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from proxyless.testing import LocalMesh
from tests.asgi.helpers import echo
from tests.runtime.test_mesh import WORKLOADS

ROOT = Path(__file__).parents[2]

PROGRAM = """
import gc, os, sys, threading
import httpx
from proxyless.httpx import MeshTransport
from proxyless.runtime.mesh import Mesh

client = httpx.Client(transport=MeshTransport(), timeout=10)

def call():
    return client.get("http://payments/").json()["peer"].rpartition("/")[2]

assert call() == "billing"
mesh = Mesh.default()
parents = mesh.snapshot
assert mesh.ready and parents is not None

def in_child():
    child = Mesh.default()
    assert threading.enumerate() == [threading.main_thread()]
    assert child.snapshot is None, "a snapshot of the parent"
    assert child.identity_source is None or child.identity_source.current is None, "a key of the parent"
    assert child.xds is None and not child.learned.clusters
    assert not child.ready and child.not_ready_reasons()
    os.environ["PROXYLESS_WORKLOAD"] = "unused"
    gc.collect()  # what the parent had is thrown away without harm
    assert call() == "billing"
    assert child.ready and child.snapshot is not parents
    child.close()

for _ in range(3):
    if not (pid := os.fork()):
        code = 1
        try:
            in_child()
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert mesh.snapshot is parents
    assert call() == "billing", "the parent goes on"
mesh.close()
print("done")
"""


def test_a_child_begins_anew_and_the_parent_goes_on() -> None:
    with LocalMesh(workloads=WORKLOADS) as local, local.serve(lambda _: echo, "payments"):
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PROXYLESS_")},
            **local.environment("billing"),
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore::DeprecationWarning",  # that forking with threads is a risk is why this test exists
        }
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=50, check=False
        )
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr
    assert "Traceback" not in result.stderr
