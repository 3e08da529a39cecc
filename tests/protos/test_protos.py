"""The private descriptor pool."""

from __future__ import annotations

import subprocess
import sys
import threading
from importlib import resources
from pathlib import Path

import pytest

from proxyless import protos


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_no_protobuf() -> None:
    assert run("import sys, proxyless.protos; print('google.protobuf' in sys.modules, 'grpc' in sys.modules)") == (
        "False False"
    )


def test_every_resource_type_of_ads_and_our_own_services_are_known() -> None:
    for url in (protos.LISTENER, protos.ROUTE, protos.CLUSTER, protos.ENDPOINT, protos.SECRET):
        assert protos.type_url(protos.message(protos.type_name(url))) == url
    for name in ("X509SVIDResponse", "proxyless.registration.v1.Workload", "google.rpc.Status"):
        assert protos.message(name).DESCRIPTOR.full_name == name


def test_the_class_of_a_name_is_one_object() -> None:
    found: list[object] = []
    threads = [
        threading.Thread(target=lambda: found.append(protos.message("envoy.config.route.v3.Route"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(item) for item in found}) == 1


def test_a_first_use_from_many_threads_makes_one_pool() -> None:
    code = (
        "import threading, proxyless.protos as p; b = threading.Barrier(8); got = []\n"
        "def go():\n b.wait(); got.append(id(p.pool()))\n"
        "ts = [threading.Thread(target=go) for _ in range(8)]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]; print(len(set(got)))"
    )
    assert run(code) == "1"


def test_messages_do_not_load_what_only_descriptors_need() -> None:
    code = (
        "import sys, proxyless.protos as p\n"
        "for url in (p.LISTENER, p.ROUTE, p.CLUSTER, p.ENDPOINT): p.message(p.type_name(url))()\n"
        "print('google.protobuf.descriptor_pb2' in sys.modules)"
    )
    assert run(code) == "False"


def test_an_unknown_name_is_a_lookup_error() -> None:
    with pytest.raises(LookupError, match=r"envoy\.Nothing"):
        protos.message("envoy.Nothing")


def test_pack_and_unpack_round_trip() -> None:
    listener = protos.message("envoy.config.listener.v3.Listener")(name="80")
    packed = protos.pack(listener)
    assert packed.type_url == protos.LISTENER
    assert protos.any_to_message(packed) == listener


def test_an_any_of_an_unknown_type_is_none() -> None:
    packed = protos.message("google.protobuf.Any")(type_url="type.googleapis.com/no.Such", value=b"x")
    assert protos.any_to_message(packed) is None


def test_an_any_that_does_not_parse_is_a_value_error() -> None:
    packed = protos.message("google.protobuf.Any")(type_url=protos.LISTENER, value=b"\xff\xff\xff")
    with pytest.raises(ValueError, match=r"not a valid envoy\.config\.listener\.v3\.Listener"):
        protos.any_to_message(packed)


def test_a_dump_shows_what_it_knows_and_names_what_it_does_not() -> None:
    listener = protos.message("envoy.config.listener.v3.Listener")(name="in")
    chain = listener.filter_chains.add()
    router = protos.message("envoy.extensions.filters.http.router.v3.Router")(suppress_envoy_headers=True)
    chain.filters.add(name="known").typed_config.CopyFrom(protos.pack(router))
    chain.filters.add(name="strange").typed_config.type_url = "type.googleapis.com/no.Such"
    known, strange = protos.to_dict(listener)["filter_chains"][0]["filters"]
    assert known["typed_config"]["suppress_envoy_headers"] is True
    assert strange["typed_config"]["value"]["unknown_type"] == "type.googleapis.com/no.Such"
    assert chain.filters[1].typed_config.type_url == "type.googleapis.com/no.Such"  # the message itself is untouched


def test_a_source_checkout_that_was_not_built_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(protos, "_database", None)
    monkeypatch.setattr(resources, "files", lambda _: tmp_path)
    with pytest.raises(ImportError, match=r"pip install -e \."):
        protos.pool()
