from __future__ import annotations

import pytest

from proxyless.errors import SettingsError
from proxyless.settings import Disabled, Settings, unknown_variables


def test_every_variable_is_read() -> None:
    settings = Settings.from_environment(
        {
            "PROXYLESS_XDS": "unix:/run/xds.sock",
            "SPIFFE_ENDPOINT_SOCKET": "unix:/run/agent.sock",
            "PROXYLESS_SERVICE": "payments",
            "PROXYLESS_PORT": "8080",
            "PROXYLESS_LABELS": "app=payments, version=v1,",
            "PROXYLESS_NAMESPACE": "shop",
            "PROXYLESS_DISABLED": "outbound",
        }
    )
    assert (settings.xds, settings.spiffe_socket, settings.port) == ("unix:/run/xds.sock", "unix:/run/agent.sock", 8080)
    assert settings.labels == {"app": "payments", "version": "v1"}
    assert settings.namespace == "shop"
    assert settings.disabled is Disabled.OUTBOUND
    assert settings.disabled_outbound
    assert not settings.disabled_inbound


def test_the_workload_follows_the_service_and_the_account_is_not_guessed() -> None:
    settings = Settings.from_environment({"PROXYLESS_SERVICE": "payments.shop.svc.cluster.local"})
    assert (settings.service_account, settings.workload) == ("", "payments")
    assert Settings.from_environment({"PROXYLESS_SERVICE_ACCOUNT": "billing"}).workload == "billing"
    assert Settings.from_environment({}).workload == "default"


def test_a_misspelt_variable_is_found() -> None:
    environ = {"PROXYLESS_ADRESS": "10.0.0.7", "PROXYLESS_ADDRESS": "10.0.0.7", "HOME": "/root"}
    of_kubernetes = {
        "PROXYLESS_SERVICE_HOST": "10.0.0.1",
        "PROXYLESS_SERVICE_PORT_HTTP": "80",
        "PROXYLESS_PORT_80_TCP": "",
    }
    assert unknown_variables(environ | of_kubernetes) == ["PROXYLESS_ADRESS"]


def test_explicit_arguments_win() -> None:
    assert Settings.from_environment({"PROXYLESS_XDS": "a:1"}, xds="b:2").xds == "b:2"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROXYLESS_XDS", "localhost"),
        ("PROXYLESS_XDS", "http://localhost:15010"),
        ("PROXYLESS_XDS", "::1:15012"),
        ("PROXYLESS_XDS", "plane:0"),
        ("PROXYLESS_XDS", "plane:99999"),
        ("PROXYLESS_XDS", "plane:١٢"),
        ("PROXYLESS_PORT", "http"),
        ("PROXYLESS_PORT", "٨٠"),
        ("PROXYLESS_PORT", "70000"),
        ("PROXYLESS_LABELS", "app"),
        ("PROXYLESS_LABELS", "a=b=c"),
        ("PROXYLESS_ADDRESS", "payments"),
        ("PROXYLESS_DISABLED", "yes"),
    ],
)
def test_a_bad_variable_is_named_with_a_right_value(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings.from_environment({name: value})


@pytest.mark.parametrize(
    "value", ["unix:/run/xds.sock", "unix:///run/xds.sock", "istiod.istio-system:15012", "[::1]:15012"]
)
def test_addresses_of_a_control_plane(value: str) -> None:
    assert Settings.from_environment({"PROXYLESS_XDS": value}).xds == value
