from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyless import protos
from proxyless.errors import InvalidResourceError
from proxyless.xds import decode
from proxyless.xds.decode.unsupported import HANDLED, IRRELEVANT, NEUTRAL
from tests.xds.decoding import (
    TYPE,
    chain_of,
    cluster_and_report,
    listener_and_report,
    manager,
    route_of,
    routes_and_report,
)

Decode = Callable[[bytes], Any]


def test_every_name_in_the_tables_is_a_field_of_its_message() -> None:
    """A name that does not exist would hide nothing, but it would be a lie."""
    listed = {name: set(fields) for name, fields in HANDLED.items()}
    for name, reasons in IRRELEVANT.items():
        listed.setdefault(name, set()).update(reasons)
    for name, field in NEUTRAL:
        listed[name].add(field)
    for name, fields in listed.items():
        known = {field.name for field in protos.message(name).DESCRIPTOR.fields}
        assert fields <= known, f"{name}: {fields - known}"


def test_no_field_is_both_handled_and_irrelevant() -> None:
    for name, reasons in IRRELEVANT.items():
        assert not HANDLED[name] & reasons.keys(), name
        assert all(reasons.values()), name


def test_a_field_that_nobody_acts_on_is_reported_by_its_path_once() -> None:
    route = {"route": {"cluster": "c", "request_mirror_policies": [{"cluster": "m"}], "priority": "HIGH"}}
    value = route_of(route)
    value["virtual_hosts"].append({"name": "w", "domains": ["w"], "routes": [{"match": {"prefix": "/"}, **route}]})
    assert routes_and_report(value)[1] == (
        "virtual_hosts.routes.route.priority",
        "virtual_hosts.routes.route.request_mirror_policies",
    )


def test_what_needs_no_action_is_not_reported() -> None:
    fields = {
        "tracing": {},
        "access_log": [{"name": "x"}],
        "server_name": "s",
        "stream_idle_timeout": "0s",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
    }
    assert listener_and_report(chain_of(manager(**fields)))[1] == ()
    assert cluster_and_report({"alt_stat_name": "s", "dns_refresh_rate": "5s"})[1] == ()


def test_a_neutral_value_is_quiet_and_any_other_is_not() -> None:
    assert cluster_and_report({"outlier_detection": {"enforcing_success_rate": 0}})[1] == ()
    assert cluster_and_report({"outlier_detection": {"enforcing_success_rate": 1}})[1] == (
        "outlier_detection.enforcing_success_rate",
    )


def test_a_fault_on_the_listener_is_reported_for_only_routes_have_one() -> None:
    fault = TYPE + "envoy.extensions.filters.http.fault.v3.HTTPFault"
    quiet = {"name": "fault", "typed_config": {"@type": fault}}
    loud = {"name": "fault", "typed_config": {"@type": fault, "abort": {"http_status": 503}}}
    assert listener_and_report(chain_of(manager(quiet)))[1] == ()
    assert listener_and_report(chain_of(manager(loud)))[1] == ("filter_chains.filters[hcm].http_filters[fault].abort",)


DECODERS: list[tuple[Decode, str]] = [
    (decode.decode_listener, "envoy.config.listener.v3.Listener"),
    (decode.decode_route_configuration, "envoy.config.route.v3.RouteConfiguration"),
    (decode.decode_cluster, "envoy.config.cluster.v3.Cluster"),
    (decode.decode_load_assignment, "envoy.config.endpoint.v3.ClusterLoadAssignment"),
]


@pytest.mark.parametrize("decoder", [decoder for decoder, _ in DECODERS])
@settings(deadline=None)
@given(raw=st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused_and_nothing_else(decoder: Decode, raw: bytes) -> None:
    with contextlib.suppress(InvalidResourceError):
        decoder(raw)


def _filled(draw: st.DrawFn, descriptor: Any, depth: int) -> Any:
    """A message with some of its fields set to small values of the right type."""
    message = protos.message(descriptor.full_name)()
    if not list(descriptor.fields):
        return message
    for field in draw(st.lists(st.sampled_from(list(descriptor.fields)), max_size=4, unique_by=lambda each: each.name)):
        if field.message_type is not None:
            if depth == 0 or field.message_type.full_name.startswith(("google.protobuf.Struct", "xds.")):
                continue
            if field.message_type.GetOptions().map_entry:
                continue
            inner = _filled(draw, field.message_type, depth - 1)
            if field.is_repeated:
                getattr(message, field.name).append(inner)
            else:
                getattr(message, field.name).CopyFrom(inner)
        elif not field.is_repeated:
            setattr(message, field.name, draw(_scalar(field)))
    return message


def _scalar(field: Any) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    kinds = {
        field.CPPTYPE_STRING: st.binary(max_size=3)
        if field.type == field.TYPE_BYTES
        else st.sampled_from(["", "a", "*", "/x"]),
        field.CPPTYPE_BOOL: st.booleans(),
        field.CPPTYPE_DOUBLE: st.sampled_from([0.0, -1.0, 1e9]),
        field.CPPTYPE_FLOAT: st.sampled_from([0.0, -1.0]),
        field.CPPTYPE_UINT32: st.sampled_from([0, 1, 2**32 - 1]),
        field.CPPTYPE_UINT64: st.sampled_from([0, 1]),
        field.CPPTYPE_INT32: st.sampled_from([0, -1, 2**31 - 1]),
        field.CPPTYPE_INT64: st.sampled_from([0, -1, 2**62]),
    }
    return kinds[field.cpp_type]


@pytest.mark.parametrize(("decoder", "full_name"), DECODERS)
@settings(deadline=None)
@given(data=st.data())
def test_any_well_formed_message_is_decoded_or_refused_and_nothing_else(
    decoder: Decode, full_name: str, data: st.DataObject
) -> None:
    message = data.draw(st.composite(lambda draw: _filled(draw, protos.message(full_name).DESCRIPTOR, 5))())
    with contextlib.suppress(InvalidResourceError):
        decoder(message.SerializeToString())
