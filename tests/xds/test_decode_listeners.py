from __future__ import annotations

from typing import Any

import pytest

from proxyless.core.matchers import StringMatcher
from proxyless.core.request import Address
from proxyless.core.resources import DownstreamTls, EscapedSlashes, HttpConnectionManager, TlsMaterial
from proxyless.errors import InvalidResourceError
from proxyless.xds import decode
from tests.xds.decoding import HCM, ROUTER, TYPE, chain_of, listener, listener_and_report, manager

DOWNSTREAM = TYPE + "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
RAW = TYPE + "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"


def hcm(**fields: Any) -> HttpConnectionManager:
    found = listener(chain_of(manager(**fields))).filter_chains[0].filter
    assert isinstance(found, HttpConnectionManager)
    return found


# ---------------------------------------------------------------------------------------------------------------- shapes


def test_the_sidecar_form_has_an_address_and_filter_chains() -> None:
    value = listener({**chain_of(manager()), "traffic_direction": "INBOUND", "use_original_dst": True})
    assert value.address == Address("127.0.0.1", 15006)
    assert (value.direction, value.use_original_dst, value.api) == ("INBOUND", True, None)
    assert value.filter_chains[0].name == "chain"


def test_the_api_form_has_one_connection_manager() -> None:
    api = {"@type": HCM, "rds": {"route_config_name": "r"}, "http_filters": [ROUTER]}
    value = listener({"api_listener": {"api_listener": api}})
    assert value.api is not None
    assert value.api.rds == "r"


def test_bytes_that_do_not_parse_are_refused() -> None:
    with pytest.raises(InvalidResourceError, match="does not parse"):
        decode.decode_listener(b"\xff\xff\xff")


@pytest.mark.parametrize(
    ("filters", "field"),
    [
        ([manager(rds={})], "filter_chains[0].filters[0].typed_config.rds.route_config_name"),
        ([manager(), manager()], "filter_chains[0].filters[0].typed_config"),
        ([manager(original_ip_detection_extensions=[{"name": "x"}])],
         "filter_chains[0].filters[0].typed_config.original_ip_detection_extensions"),
        ([{"name": "x", "typed_config": {"@type": HCM, "rds": {"route_config_name": "r"}}}],
         "filter_chains[0].filters[0].typed_config.http_filters"),
        ([manager(ROUTER)], "filter_chains[0].filters[0].typed_config.http_filters[0]"),
        ([{"name": "x", "typed_config": {"@type": TYPE + "google.protobuf.StringValue", "value": "a"}}, manager()],
         "filter_chains[0].filters[0].typed_config"),
    ],
)  # fmt: skip
def test_filters_that_make_no_chain_are_refused(filters: list[dict[str, Any]], field: str) -> None:
    with pytest.raises(InvalidResourceError) as caught:
        listener(chain_of(*filters))
    assert caught.value.field == field


def test_a_chain_without_a_proxy_that_we_know_serves_nothing() -> None:
    redis = {
        "name": "redis",
        "typed_config": {
            "@type": TYPE + "udpa.type.v1.TypedStruct",
            "type_url": TYPE + "envoy.extensions.filters.network.redis_proxy.v3.RedisProxy",
        },
    }
    value, report = listener_and_report(chain_of(redis))
    assert value.filter_chains[0].filter is None
    assert report == ("filter_chains.filters[redis]",)


def test_path_settings_of_the_connection_manager() -> None:
    assert hcm().paths.normalize is False
    paths = hcm(normalize_path=True, merge_slashes=True, path_with_escaped_slashes_action="UNESCAPE_AND_FORWARD").paths
    assert (paths.normalize, paths.merge_slashes) == (True, True)
    assert paths.escaped_slashes is EscapedSlashes.UNESCAPE_AND_FORWARD


# ----------------------------------------------------------------------------------------------------------------- match


def test_the_conditions_of_a_chain() -> None:
    match = {
        "destination_port": 8080,
        "prefix_ranges": [{"address_prefix": "10.1.2.3", "prefix_len": 8}],
        "server_names": ["*.A.test"],
        "transport_protocol": "tls",
        "application_protocols": ["istio"],
        "source_type": "EXTERNAL",
        "source_ports": [1],
    }
    found = listener(chain_of(manager(), filter_chain_match=match)).filter_chains[0].match
    assert found.destination_port == 8080
    assert found.prefix_ranges == ("10.0.0.0/8",)
    assert found.server_names == ("*.a.test",)
    assert (found.transport_protocol, found.application_protocols) == ("tls", ("istio",))
    assert (found.source_type, found.source_ports) == ("EXTERNAL", (1,))


@pytest.mark.parametrize(
    ("match", "field"),
    [
        ({"direct_source_prefix_ranges": [{"address_prefix": "10.0.0.0"}]}, "direct_source_prefix_ranges"),
        ({"server_names": ["a*.test"]}, "server_names[0]"),
        ({"prefix_ranges": [{"address_prefix": "x"}]}, "prefix_ranges[0]"),
        ({"destination_port": 70000}, "destination_port"),
    ],
)
def test_a_condition_that_cannot_be_tested_is_refused(match: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidResourceError) as caught:
        listener(chain_of(manager(), filter_chain_match=match))
    assert caught.value.field == f"filter_chains[0].filter_chain_match.{field}"


def test_two_chains_with_one_match_are_refused() -> None:
    chain = chain_of(manager())["filter_chains"][0]
    with pytest.raises(InvalidResourceError) as caught:
        listener({"filter_chains": [chain, chain]})
    assert caught.value.field == "filter_chains[1].filter_chain_match"


# ------------------------------------------------------------------------------------------------------------------- TLS


def sds(name: str) -> dict[str, Any]:
    return {"name": name, "sds_config": {"ads": {}}}


def downstream(**context: Any) -> DownstreamTls | None:
    require = context.pop("require", True)
    socket = {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": DOWNSTREAM,
            "require_client_certificate": require,
            "common_tls_context": context,
        },
    }
    return listener(chain_of(manager(), transport_socket=socket)).filter_chains[0].tls


ISTIO: dict[str, Any] = {
    "alpn_protocols": ["h2", "http/1.1"],
    "tls_certificate_sds_secret_configs": [sds("default")],
    "combined_validation_context": {
        "default_validation_context": {"match_subject_alt_names": [{"prefix": "spiffe://cluster.local/"}]},
        "validation_context_sds_secret_config": sds("ROOTCA"),
    },
}


def test_istios_secrets_are_our_own_identity() -> None:
    assert downstream(**ISTIO) == DownstreamTls(
        require_client_certificate=True,
        alpn=("h2", "http/1.1"),
        san_matchers=(StringMatcher("prefix", "spiffe://cluster.local/"),),
    )


def test_the_grpc_form_names_a_certificate_provider() -> None:
    provider = {"instance_name": "default", "certificate_name": "x"}
    found = downstream(
        tls_certificate_provider_instance=provider,
        validation_context={"ca_certificate_provider_instance": provider},
    )
    assert found is not None
    assert (found.certificate, found.validation) == (TlsMaterial.MESH, TlsMaterial.MESH)


def test_secrets_that_name_files() -> None:
    found = downstream(
        tls_certificate_sds_secret_configs=[sds("file-cert:/a/cert.pem~/a/key.pem")],
        validation_context_sds_secret_config=sds("file-root:/a/ca.pem"),
    )
    assert found is not None
    assert (found.certificate, found.certificate_file, found.key_file) == (
        TlsMaterial.FILE,
        "/a/cert.pem",
        "/a/key.pem",
    )
    assert (found.validation, found.ca_file) == (TlsMaterial.FILE, "/a/ca.pem")


def test_a_secret_that_is_not_ours_to_fetch_is_unknown_not_refused() -> None:
    found = downstream(require=False, tls_certificate_sds_secret_configs=[sds("kubernetes://shop")])
    assert found is not None
    assert (found.certificate, found.validation) == (TlsMaterial.UNKNOWN, TlsMaterial.NONE)


def test_a_secret_that_is_not_ours_to_fetch_is_reported() -> None:
    context = {"tls_certificate_sds_secret_configs": [sds("kubernetes://shop")]}
    socket = {"name": "tls", "typed_config": {"@type": DOWNSTREAM, "common_tls_context": context}}
    (report,) = listener_and_report(chain_of(manager(), transport_socket=socket))[1]
    assert report.endswith("tls_certificate_sds_secret_configs[kubernetes://shop]: a secret without a source")


def test_a_minimum_of_tls_1_3_is_kept_and_lower_ones_mean_1_2() -> None:
    for version, expected in (("TLSv1_3", True), ("TLSv1_2", False), ("TLSv1_0", False)):
        found = downstream(**ISTIO, tls_params={"tls_minimum_protocol_version": version})
        assert found is not None
        assert found.tls13_only is expected


def test_a_plain_text_socket_is_no_tls() -> None:
    socket = {"name": "envoy.transport_sockets.raw_buffer", "typed_config": {"@type": RAW}}
    assert listener(chain_of(manager(), transport_socket=socket)).filter_chains[0].tls is None


@pytest.mark.parametrize(
    "context",
    [
        {},
        {"tls_certificate_sds_secret_configs": [sds("default")]},
        {**ISTIO, "combined_validation_context": {"default_validation_context": {"verify_certificate_hash": ["ab"]}}},
        {"tls_certificates": [{"certificate_chain": {"inline_string": "x"}, "private_key": {"inline_string": "y"}}]},
        {
            "tls_certificate_sds_secret_configs": [sds("default")],
            "validation_context": {"trust_chain_verification": "ACCEPT_UNTRUSTED"},
        },
    ],
)
def test_a_check_that_is_not_made_is_refused(context: dict[str, Any]) -> None:
    with pytest.raises(InvalidResourceError):
        downstream(**context)


def test_another_kind_of_transport_socket_is_refused() -> None:
    socket = {"name": "alts", "typed_config": {"@type": TYPE + "google.protobuf.StringValue", "value": "x"}}
    with pytest.raises(InvalidResourceError, match="transport socket"):
        listener(chain_of(manager(), transport_socket=socket))
