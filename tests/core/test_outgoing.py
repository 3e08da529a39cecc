"""What a rewrite leaves of the names that it notes the original under. Envoy 1.40 does the same (tests/interop)."""

from __future__ import annotations

from typing import Any

from tests.core.outbound import Driver, forward, request, route, routes, snapshot


def sent(written: dict[str, str], *, path: str = "/v1/a", **rewrite: Any) -> list[tuple[bytes, bytes]]:
    action = forward("c", timeout=0.0, **rewrite)
    driver = Driver(snapshot(routes(route(action, "/v1"))), request(path, "outer", headers=written))
    driver.run()
    return driver.attempts[0].headers


def test_the_original_is_noted_in_place_of_what_the_application_wrote() -> None:
    written = {"X-Envoy-Original-Path": "/admin", "x-envoy-original-host": "admin", "x-other": "kept"}
    assert sent(written, prefix_rewrite="/v2", host_rewrite="inner") == [
        (b"x-other", b"kept"),
        (b"x-envoy-original-host", b"outer"),
        (b"x-envoy-original-path", b"/v1/a"),
    ]


def test_a_rewrite_is_noted_also_when_the_path_is_the_same() -> None:
    for same in ({"prefix_rewrite": "/v1"}, {"regex_rewrite": ("nothing", "x")}):
        assert (b"x-envoy-original-path", b"/v1/a") in sent({}, **same)


def test_without_a_rewrite_it_stays() -> None:
    written = {"x-envoy-original-path": "/mine", "x-envoy-original-host": "mine"}
    assert sent(written) == [(name.encode(), value.encode()) for name, value in written.items()]
