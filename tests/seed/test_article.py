"""The eight examples of the article load as they are and do what the article says. Real processes' worth of parts: control plane,
certificates, servers, clients; counts come from the receivers."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxyless.asgi import mesh_peer
from proxyless.cli import main
from proxyless.httpx import MeshTransport
from proxyless.runtime.mesh import Mesh
from proxyless.testing import LocalMesh
from proxyless.xds.registration import Readiness, Workload, WorkloadRegistration
from tests.asgi.helpers import eventually
from tests.cli.helpers import free_port
from tests.engine.helpers import OK, Server, replies
from tests.engine.identities import web_contexts
from tests.runtime.helpers import endpoints

SEED = Path(os.environ.get("PROXYLESS_SEED") or Path(__file__).parents[3] / "shared" / "seed")

pytestmark = pytest.mark.skipif(
    not SEED.is_dir(), reason=f"no article examples at {SEED}: set PROXYLESS_SEED to their directory"
)

CANARY, AUTHORIZATION, GATEWAY, EXTERNAL = (
    "01-canary-split",
    "02-payments-authorization",
    "03-api-gateway",
    "04-auth-service-entry",
)
API, ROUND_ROBIN, RETRIES, BREAKING = (
    "05-api-virtual-service",
    "06-api-destination-rule",
    "07-retries-and-timeouts",
    "08-circuit-breaking",
)

SUBSETS = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {service}-subsets}}
spec:
  host: {service}
  subsets: [{subsets}]
"""


def seed(*names: str) -> str:
    return "\n---\n".join((SEED / f"{name}.yaml").read_text() for name in names)


def subsets(service: str, **labels: str) -> str:
    """A DestinationRule that declares subsets by the label `version`."""
    entries = ", ".join(f"{{name: {name}, labels: {{version: {value}}}}}" for name, value in labels.items())
    return "\n---\n" + SUBSETS.format(service=service, subsets=entries)


def identity(account: str) -> str:
    return f"spiffe://cluster.local/ns/default/sa/{account}"


class Receiver:
    """An application that counts what reaches it."""

    def __init__(self, status: int = 200) -> None:
        """`status` 0: never answers."""
        self.status = status
        self.paths: list[str] = []
        self.peers: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        self.paths.append(scope["path"])
        self.peers.append(str(mesh_peer(scope).identity or "anonymous"))
        while not self.status:
            if (await receive())["type"] == "http.disconnect":
                return
        await send({"type": "http.response.start", "status": self.status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    @property
    def count(self) -> int:
        return len(self.paths)


@contextlib.contextmanager
def client(mesh: Mesh, **options: Any) -> Iterator[httpx.Client]:
    with httpx.Client(transport=MeshTransport(mesh, **options), timeout=10) as made:
        yield made


def serve(stack: contextlib.ExitStack, local: LocalMesh, account: str, receiver: Receiver, **labels: str) -> int:
    return stack.enter_context(local.serve(lambda _: receiver, account, labels=labels)).port


def validate(
    capsys: pytest.CaptureFixture[str], *names: str, mesh: str = "", folder: Path | None = None
) -> tuple[int, str]:
    """`proxyless validate` on the originals."""
    arguments = ["validate", *(str(SEED / f"{name}.yaml") for name in names)]
    if mesh and folder is not None:
        (folder / "mesh.yaml").write_text(mesh)
        arguments += ["--mesh", str(folder / "mesh.yaml")]
    code = main(arguments)
    return code, capsys.readouterr().out


def test_all_of_them_are_valid_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(SEED)]) == 0
    out, err = capsys.readouterr()
    assert " error" not in out
    assert err.startswith("8 resources, 0 errors")


# ------------------------------------------------------------------------------------------------- 01, canary; 05, subset


@pytest.mark.parametrize(("name", "lines"), [(CANARY, (12, 16)), (API, (17,))])
def test_a_subset_that_nobody_declares_is_a_warning_with_its_line(
    name: str, lines: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = validate(capsys, name)
    assert code == 0
    for line in lines:
        found = [text for text in out.splitlines() if text.startswith(f"{SEED}/{name}.yaml:{line}:")]
        assert any("warning" in text and "no DestinationRule declares subset" in text for text in found), out


def test_calls_to_a_subset_that_nobody_declares_are_503_nc() -> None:
    receiver = Receiver()
    with (
        LocalMesh(seed(CANARY), workloads={"billing": [], "payments": ["payments"]}) as local,
        local.serve(lambda _: receiver, "payments", labels={"version": "v1"}),
        client(local.mesh("billing")) as billing,
    ):
        answer = billing.get("http://payments.myapp.com/")
        said = answer.extensions["proxyless"]
        assert (answer.status_code, said["flag"], said["details"]) == (503, "NC", "cluster_not_found")
        assert receiver.count == 0


def test_with_the_subsets_declared_a_tenth_goes_to_v2() -> None:
    first, second = Receiver(), Receiver()
    manifests = seed(CANARY) + subsets("payments", v1="v1", v2="v2")
    with (
        LocalMesh(manifests, workloads={"billing": [], "payments": ["payments"]}) as local,
        contextlib.ExitStack() as stack,
    ):
        serve(stack, local, "payments", first, version="v1")
        serve(stack, local, "payments", second, version="v2")
        mesh = local.mesh("billing")
        mesh.rng = random.Random(1)
        with client(mesh) as billing:
            for _ in range(400):
                assert billing.get("http://payments.myapp.com/charge").status_code == 200
    assert first.count + second.count == 400
    assert 20 <= second.count <= 60, "10 % of 400"
    assert set(first.peers + second.peers) == {identity("billing")}


# ------------------------------------------------------------------------------------------------------ 02, authorization

ACCOUNTS = {"billing": ["billing.myapp.com"], "payments": ["payments"], "api": ["api-service"]}


def calls_to_payments(settings: Mapping[str, Any]) -> tuple[dict[str, int], Receiver]:
    """Status by caller, and what reached payments."""
    receiver, statuses = Receiver(), {}
    with (
        LocalMesh(seed(AUTHORIZATION), workloads=ACCOUNTS, settings={"proxyless": settings}) as local,
        contextlib.ExitStack() as stack,
    ):
        port = serve(stack, local, "payments", receiver, app="payments")
        for account in ("billing", "api"):
            with client(local.mesh(account)) as caller:
                statuses[account] = caller.get("http://payments/").status_code
        statuses["anonymous"] = httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code
    return statuses, receiver


def test_only_billing_may_call_payments() -> None:
    statuses, receiver = calls_to_payments({})
    assert statuses == {"billing": 200, "api": 403, "anonymous": 403}
    assert receiver.peers == [identity("billing")]


def test_a_principal_named_by_host_matches_nobody_when_that_is_switched_off() -> None:
    statuses, receiver = calls_to_payments({"principalsNamedByHost": False})
    assert statuses == {"billing": 403, "api": 403, "anonymous": 403}
    assert receiver.count == 0


def test_validate_says_how_the_principal_is_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    grants = "proxyless: {workloads: [{serviceAccount: billing, services: [billing.myapp.com]}]%s}"
    code, out = validate(capsys, AUTHORIZATION, mesh=grants % "", folder=tmp_path)
    assert code == 0
    assert f"{AUTHORIZATION}.yaml:12:" in out
    assert identity("billing").removeprefix("spiffe://") in out
    code, out = validate(capsys, AUTHORIZATION, mesh=grants % ", principalsNamedByHost: false", folder=tmp_path)
    assert code == 0
    assert "warning" in out
    assert "it can never match" in out


# ---------------------------------------------------------------------------------------- 03, gateway; 05, route behind it


def test_the_gateway_leads_api_myapp_com_to_the_service() -> None:
    port, receiver, canary = free_port(), Receiver(), Receiver()
    manifests = seed(GATEWAY, API) + subsets("api-service", stable="stable")
    with (
        LocalMesh(
            manifests,
            workloads={"ingress": [], "api": ["api-service"]},
            settings={"proxyless": {"gatewayPorts": {80: port}}},
        ) as local,
        contextlib.ExitStack() as stack,
    ):
        serve(stack, local, "api", receiver, version="stable")
        serve(stack, local, "api", canary, version="canary")
        stack.enter_context(local.gateway("ingress", {"istio": "ingressgateway"}))

        def status(path: str, host: str = "api.myapp.com") -> int:
            return httpx.get(f"http://127.0.0.1:{port}{path}", headers={"host": host}, trust_env=False).status_code

        assert [status("/v1/items") for _ in range(4)] == [200] * 4
        assert status("/v2/items") == 404
        assert status("/v1/items", "other.myapp.com") == 404
    assert receiver.paths == ["/v1/items"] * 4
    assert set(receiver.peers) == {identity("ingress")}
    assert canary.count == 0


def test_the_gateway_says_nc_while_the_subset_is_missing() -> None:
    port = free_port()
    with (
        LocalMesh(
            seed(GATEWAY, API),
            workloads={"ingress": [], "api": ["api-service"]},
            settings={"proxyless": {"gatewayPorts": {80: port}}},
        ) as local,
        local.gateway("ingress", {"istio": "ingressgateway"}),
    ):
        answer = httpx.get(f"http://127.0.0.1:{port}/v1/items", headers={"host": "api.myapp.com"}, trust_env=False)
        assert answer.status_code == 503


# --------------------------------------------------------------------------------------------------- 04, external service

HOST = "auth.external-service.com"


def test_an_external_service_is_called_with_the_applications_own_tls(tmp_path: Path) -> None:
    server_context, client_context = web_contexts(HOST, tmp_path)
    with Server(replies(OK), tls=server_context) as external:
        mapped = {"addressMap": {"203.0.113.1:443": str(external.address)}}
        with LocalMesh(seed(EXTERNAL), workloads={"billing": []}, settings={"proxyless": mapped}) as local:
            mesh = local.mesh("billing")
            with client(mesh, verify=client_context) as billing:
                answer = billing.get(f"https://{HOST}/token")
                assert answer.text == "ok"
                assert answer.extensions["proxyless"]["cluster"] == f"outbound|443||{HOST}"
            with client(mesh, trust_env=False) as distrusting, pytest.raises(httpx.ConnectError, match="certificate"):
                distrusting.get(f"https://{HOST}/token")
        assert len(external.requests) == 1
        assert f"host: {HOST}".encode() in external.requests[0].lower()


# --------------------------------------------------------------------------------------------- 06, round robin, mutual TLS


def test_calls_go_round_and_both_ends_know_each_other() -> None:
    receivers = [Receiver(), Receiver(), Receiver()]
    with (
        LocalMesh(seed(ROUND_ROBIN), workloads={"billing": [], "api": ["api-service"]}) as local,
        contextlib.ExitStack() as stack,
    ):
        for receiver in receivers:
            serve(stack, local, "api", receiver)
        mesh = local.mesh("billing")
        eventually(lambda: len(endpoints(mesh, "api-service")) == 3)
        with client(mesh) as billing:
            told = [billing.get("http://api-service/").extensions["proxyless"] for _ in range(12)]
    assert [receiver.count for receiver in receivers] == [4, 4, 4]
    order = [each["endpoint"] for each in told]
    assert order == order[:3] * 4, "one after the other"
    assert {each["peer"] for each in told} == {identity("api")}
    assert {peer for receiver in receivers for peer in receiver.peers} == {identity("billing")}


# ---------------------------------------------------------------------------------------------- 07, retries and timeouts

MINE = {"billing": [], "mine": ["my-service"]}


@contextlib.contextmanager
def refusing(local: LocalMesh, count: int) -> Iterator[None]:
    """So many endpoints of my-service where nobody listens, registered as ready."""
    registrations = [
        WorkloadRegistration(
            local.settings("mine").xds,
            Workload(service="my-service", port=port, labels={}),
            readiness=Readiness.READY,
        )
        for port in (free_port() for _ in range(count))
    ]
    try:
        for registration in registrations:
            registration.start()
        eventually(lambda: all(registration.status.acknowledged for registration in registrations))
        local.control_plane.flush()
        yield
    finally:
        for registration in registrations:
            registration.close()


def test_refused_connections_are_tried_three_times_more() -> None:
    with LocalMesh(seed(RETRIES), workloads=MINE) as local, refusing(local, 5):
        with client(local.mesh("billing"), failures="respond") as billing:
            answer = billing.get("http://my-service/")
        told = answer.extensions["proxyless"]
        assert (answer.status_code, told["attempts"], told["flag"]) == (503, 4, "URX,UF")


def test_a_retry_goes_to_another_endpoint_and_saves_the_call() -> None:
    receiver = Receiver()
    with LocalMesh(seed(RETRIES), workloads=MINE) as local, contextlib.ExitStack() as stack:
        serve(stack, local, "mine", receiver)
        stack.enter_context(refusing(local, 1))
        mesh = local.mesh("billing")
        eventually(lambda: len(endpoints(mesh, "my-service")) == 2)
        with client(mesh) as billing:
            answers = [billing.get("http://my-service/") for _ in range(8)]
    assert {answer.status_code for answer in answers} == {200}
    assert max(answer.extensions["proxyless"]["attempts"] for answer in answers) > 1
    assert receiver.count == 8


def test_a_503_is_not_tried_again() -> None:
    receiver = Receiver(503)
    with LocalMesh(seed(RETRIES), workloads=MINE) as local, contextlib.ExitStack() as stack:
        serve(stack, local, "mine", receiver)
        with client(local.mesh("billing")) as billing:
            answer = billing.get("http://my-service/")
    assert (answer.status_code, answer.extensions["proxyless"]["flag"]) == (503, "-")
    assert receiver.count == 1


def test_a_slow_answer_is_504_after_two_seconds() -> None:
    receiver = Receiver(0)
    with LocalMesh(seed(RETRIES), workloads=MINE) as local, contextlib.ExitStack() as stack:
        serve(stack, local, "mine", receiver)
        with client(local.mesh("billing"), failures="respond") as billing:
            began = time.monotonic()
            answer = billing.get("http://my-service/")
            assert 1.9 < time.monotonic() - began < 3.5
    assert (answer.status_code, answer.extensions["proxyless"]["flag"]) == (504, "UT")
    assert receiver.count == 1


def test_validate_says_what_is_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = validate(capsys, RETRIES)
    assert code == 0
    (hint,) = [line for line in out.splitlines() if "no retryOn" in line]
    assert hint.startswith(f"{SEED}/{RETRIES}.yaml:12:")
    assert "refused connections are repeated" in hint
    assert "retryOn: 5xx,reset" in hint


@pytest.mark.parametrize(("policy", "calls"), [({"attempts": 1, "retryOn": "5xx"}, 2), ({"attempts": 0}, 1)])
def test_the_default_of_the_mesh_is_for_routes_without_retries(policy: Mapping[str, Any], calls: int) -> None:
    receiver, other = Receiver(503), Receiver(503)
    settings = {"defaultHttpRetryPolicy": policy}
    workloads = {**MINE, "other": ["other"]}
    with (
        LocalMesh(seed(RETRIES), workloads=workloads, settings=settings) as local,
        contextlib.ExitStack() as stack,
    ):
        serve(stack, local, "mine", receiver)
        serve(stack, local, "other", other)
        with client(local.mesh("billing")) as billing:
            assert billing.get("http://my-service/").status_code == 503
            assert billing.get("http://other/").status_code == 503
    assert receiver.count == 1, "it has retries of its own"
    assert other.count == calls


# ---------------------------------------------------------------------------------------------------- 08, circuit breaking


def test_two_5xx_in_a_row_eject_an_endpoint() -> None:
    good, bad = Receiver(), Receiver(500)
    with LocalMesh(seed(BREAKING), workloads=MINE) as local, contextlib.ExitStack() as stack:
        serve(stack, local, "mine", good)
        port = serve(stack, local, "mine", bad)
        mesh = local.mesh("billing")
        eventually(lambda: len(endpoints(mesh, "my-service")) == 2)
        with client(mesh) as billing:
            statuses = [billing.get("http://my-service/").status_code for _ in range(20)]
        assert statuses.count(500) == bad.count == 2
        assert statuses[-10:] == [200] * 10
        state = mesh.learned.cluster("outbound|80||my-service.default.svc.cluster.local")
        (ejected,) = state.ejected
        assert ejected.port == port
        left = state.endpoints[ejected].ejected_until - time.monotonic()
        assert 29 < left <= 40, "30 s, and until the next interval of 10 s has passed, as in Envoy"


def test_at_most_half_of_the_endpoints_are_ejected() -> None:
    receivers = [Receiver(500) for _ in range(4)]
    with LocalMesh(seed(BREAKING), workloads=MINE) as local, contextlib.ExitStack() as stack:
        for receiver in receivers:
            serve(stack, local, "mine", receiver)
        mesh = local.mesh("billing")
        eventually(lambda: len(endpoints(mesh, "my-service")) == 4)
        with client(mesh) as billing:
            assert {billing.get("http://my-service/").status_code for _ in range(40)} == {500}
        assert len(mesh.learned.cluster("outbound|80||my-service.default.svc.cluster.local").ejected) == 2
    assert sorted(receiver.count for receiver in receivers)[:2] == [2, 2]
    assert sum(receiver.count for receiver in receivers) == 40


def test_the_limits_of_connections_are_those_of_the_file() -> None:
    with LocalMesh(seed(BREAKING), workloads=MINE) as local:
        snapshot = local.mesh("billing").snapshot
        assert snapshot is not None
        limits = snapshot.upstreams["outbound|80||my-service.default.svc.cluster.local"].cluster.breakers
        assert (limits.max_connections, limits.max_pending_requests) == (100, 50)
