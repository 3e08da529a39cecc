"""Files of the descriptor set are decoded when a message of them is first needed."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool

from proxyless.protos.database import DescriptorDatabase


@pytest.fixture(scope="module")
def data() -> bytes:
    return gzip.decompress(resources.files("proxyless.protos").joinpath("descriptors.binpb.gz").read_bytes())


@pytest.fixture(scope="module")
def database(data: bytes) -> DescriptorDatabase:
    return DescriptorDatabase(data)


def declared(file: Any) -> Iterator[str]:
    package = f"{file.package}." if file.package else ""
    for kind in (file.message_type, file.enum_type, file.service):
        for each in kind:
            yield package + each.name


def test_every_file_and_symbol_of_the_set_is_found(data: bytes, database: DescriptorDatabase) -> None:
    files = FileDescriptorSet.FromString(data).file
    assert list(database) == [file.name for file in files]
    for file in files:
        for name in declared(file):
            assert database.declares(name) == file.name


def test_a_nested_message_is_in_the_file_of_its_outermost_one(database: DescriptorDatabase) -> None:
    found = database.declares("envoy.config.route.v3.RouteAction.HashPolicy.Header")
    assert found == "envoy/config/route/v3/route_components.proto"


@pytest.mark.parametrize("symbol", ["", "envoy", "envoy.config", "no.Such", "a." * 100_000])
def test_what_is_not_there_is_a_key_error(database: DescriptorDatabase, symbol: str) -> None:
    with pytest.raises(KeyError):
        database.declares(symbol)


def test_a_file_comes_with_those_it_depends_on_and_no_other(data: bytes) -> None:
    pool, database = DescriptorPool(), DescriptorDatabase(data)
    database.load(pool, "google/protobuf/duration.proto")
    assert pool.FindMessageTypeByName("google.protobuf.Duration")
    with pytest.raises(KeyError):
        pool.FindFileByName("google/protobuf/any.proto")
    database.load(pool, "envoy/config/core/v3/address.proto")
    assert pool.FindFileByName("google/protobuf/any.proto")


def test_every_file_of_the_set_can_be_loaded_in_any_order(data: bytes) -> None:
    pool, database = DescriptorPool(), DescriptorDatabase(data)
    for path in reversed(list(database)):
        database.load(pool, path)
    for file in FileDescriptorSet.FromString(data).file:
        for name in declared(file):
            assert pool.FindFileContainingSymbol(name).name == file.name


def test_annotations_are_left_out_and_what_the_wire_needs_stays(data: bytes) -> None:
    files = FileDescriptorSet.FromString(data).file
    assert not [file.name for file in files if file.name.startswith(("validate/", "udpa/annotations/"))]
    fields = {
        (message.name, field.name): field for file in files for message in file.message_type for field in message.field
    }
    assert not fields["Listener", "address"].HasField("options")
    entries = {nested.name: nested for file in files for m in file.message_type for nested in m.nested_type}
    assert entries["FilterMetadataEntry"].options.map_entry
