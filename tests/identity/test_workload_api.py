"""Our Workload API client against an agent that behaves as a recorded SPIRE does, and worse (M-30 to M-37, M-44, M-45)."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from proxyless.core.resources import DownstreamTls, UpstreamTls
from proxyless.errors import NoIdentityError, SettingsError
from proxyless.identity.source import StaticSource
from proxyless.identity.stream import Received
from proxyless.identity.svid import X509Svid
from proxyless.identity.tls import TlsContexts
from proxyless.identity.workload_api import Timings, WorkloadApiSource

from .agent import Agent, End, response
from .conversation import talk
from .helpers import eventually, root

WEB, DB = "spiffe://a.test/web", "spiffe://a.test/db"
A, B = root("a.test"), root("b.test")
FAST = Timings(reopen=0.02, first=0.05, cap=0.1, settle=0.05, tick=0.05)
DENIED = End("PERMISSION_DENIED", "no identity issued")


def state(*svids: X509Svid, **options: Any) -> bytes:
    return response(*svids, **{"anchors": A.der, **options})


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:  # shorter than tmp_path: a socket path has 107 bytes at most
        yield Path(folder) / "api.sock"


@pytest.fixture
def agent(path: Path) -> Iterator[Agent]:
    agent = Agent(path).start()
    yield agent
    agent.stop()


@pytest.fixture
def follow(path: Path) -> Iterator[Any]:
    sources: list[WorkloadApiSource] = []

    def start(**options: Any) -> WorkloadApiSource:
        source = WorkloadApiSource(f"unix:{path}", **{"timings": FAST, **options})
        sources.append(source)
        source.start()
        return source

    yield start
    for source in sources:
        source.close()


def serial(source: WorkloadApiSource) -> str:
    snapshot = source.current
    return "" if snapshot is None else snapshot.svid.serial


def test_the_call_is_made_as_the_agent_wants_it(agent: Agent, follow: Any) -> None:
    svid = A.svid(WEB)
    agent.answers = [state(svid)]
    source = follow()
    assert source.wait(10)
    assert source.current.svid == svid
    assert source.status == ""
    call = agent.calls[0]
    assert call["request"] == b""
    assert [tuple(pair) for pair in call["metadata"] if pair[0] == "workload.spiffe.io"] == [
        ("workload.spiffe.io", "true")
    ]
    assert call["left"] is None or call["left"] > 1e6  # no deadline


def test_a_renewed_svid_replaces_the_old_one_as_a_pair_with_its_bundles(agent: Agent, follow: Any) -> None:
    agent.answers = [state(A.svid(WEB))]
    source, seen = follow(), []
    source.subscribe(seen.append)
    assert source.wait(10)
    renewed = A.svid(WEB)
    agent.push(state(renewed, federated={"spiffe://b.test": B.der}))
    eventually(lambda: serial(source) == renewed.serial)
    assert set(source.current.bundles) == {"a.test", "b.test"}
    agent.push(state(renewed))
    eventually(lambda: set(source.current.bundles) == {"a.test"}, what="withdrawal of the federated bundle")
    assert serial(source) == renewed.serial


def test_an_equal_response_is_no_rotation(agent: Agent, follow: Any) -> None:
    agent.answers = [state(A.svid(WEB))]
    source = follow()
    assert source.wait(10)
    agent.push(*agent.answers, *agent.answers)
    eventually(lambda: source.counters.responses == 3)
    assert source.generation == 1


def test_one_bad_answer_costs_nothing_and_a_withdrawal_costs_the_identity(
    agent: Agent, follow: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A; a key that does not fit; no bundle; UNAVAILABLE for a while; PERMISSION_DENIED; A2: no restart."""
    caplog.set_level(logging.DEBUG)
    a, a2, stranger = A.svid(WEB), A.svid(WEB), A.svid(WEB)
    peer = TlsContexts(StaticSource(A.svid(DB), [A.bundle("a.test")]))
    strict = DownstreamTls(require_client_certificate=True)
    agent.answers = [state(a)]
    source = follow()
    contexts = TlsContexts(source)

    def handshake() -> str:
        return talk("blocking", peer.server(strict), contexts.client(UpstreamTls()))[1].serial

    assert source.wait(10)
    assert handshake() == a.serial

    agent.push(state(a2, x509_svid_key=stranger.private_key), state(a2, bundle=b""))
    eventually(lambda: source.counters.dropped == 2)
    assert (handshake(), source.status) == (a.serial, "")

    agent.then(End("UNAVAILABLE", "down"))
    eventually(lambda: source.counters.streams >= 4, what="new attempts")
    assert (handshake(), source.status) == (a.serial, "")

    agent.answers = [DENIED]
    eventually(lambda: source.current is None, what="withdrawal")
    assert "PERMISSION_DENIED" in source.status or "withdrawn" in source.status
    with pytest.raises(NoIdentityError):
        handshake()
    attempts = source.counters.streams
    eventually(lambda: source.counters.streams > attempts, what="more attempts")

    agent.answers = [state(a2)]
    eventually(lambda: serial(source) == a2.serial)
    assert handshake() == a2.serial
    for text in caplog.messages:
        assert "PRIVATE" not in text
        assert not any(repr(each.private_key)[2:30] in text for each in (a, a2, stranger))


def test_one_denial_in_between_is_no_withdrawal(agent: Agent, follow: Any) -> None:
    """SPIRE denies for an instant when an authority is tainted; the next call is served."""
    agent.answers = [state(A.svid(WEB))]
    source, seen = follow(), []
    source.subscribe(seen.append)
    assert source.wait(10)
    renewed = A.svid(WEB)
    agent.answers = [state(renewed)]
    agent.push(DENIED)
    eventually(lambda: serial(source) == renewed.serial)
    assert None not in seen
    agent.push(DENIED)
    eventually(lambda: len(agent.calls) == 3)
    eventually(lambda: source.counters.responses == 3)
    assert None not in seen


def test_an_svid_left_out_for_an_instant_is_kept(agent: Agent, follow: Any) -> None:
    web, db = A.svid(WEB), A.svid(DB)
    agent.answers = [state(web, db)]
    source, seen = follow(timings=Timings(settle=30, tick=0.05)), []
    source.subscribe(seen.append)
    assert source.wait(10)
    renewed = A.svid(DB)
    agent.push(state(renewed), state(web, renewed))
    eventually(lambda: source.counters.responses == 3)
    assert serial(source) == web.serial
    assert all(each.svid == web for each in seen)


def test_an_svid_left_out_for_good_gives_way_to_the_next_default(
    agent: Agent, follow: Any, caplog: pytest.LogCaptureFixture
) -> None:
    agent.answers = [state(A.svid(WEB), A.svid(DB))]
    source = follow()
    assert source.wait(10)
    db = A.svid(DB)
    agent.push(state(db))
    eventually(lambda: serial(source) == db.serial)
    assert f"our identity changes from {WEB} to {DB}" in caplog.text


def test_a_new_first_svid_becomes_the_default_and_several_get_a_warning(
    agent: Agent, follow: Any, caplog: pytest.LogCaptureFixture
) -> None:
    web, db = A.svid(WEB), A.svid(DB)
    agent.answers = [state(web, db)]
    source = follow()
    assert source.wait(10)
    agent.push(state(db, web))
    eventually(lambda: serial(source) == db.serial)
    assert caplog.text.count("gives several identities") == 1


def test_a_chosen_hint_that_goes_away_leaves_no_identity(agent: Agent, follow: Any) -> None:
    internal, external = A.svid(WEB, hint="internal"), A.svid(WEB, hint="external")
    agent.answers = [state(internal, external)]
    source = follow(hint="external")
    assert source.wait(10)
    assert serial(source) == external.serial
    agent.push(state(internal))
    eventually(lambda: source.current is None)
    assert source.status
    again = A.svid(WEB, hint="external")
    agent.push(state(internal, again))
    eventually(lambda: serial(source) == again.serial)


def test_an_unknown_hint_is_an_error_not_the_default(agent: Agent, follow: Any) -> None:
    agent.answers = [state(A.svid(WEB))]
    source = follow(hint="other")
    eventually(lambda: source.counters.responses == 1)
    eventually(lambda: "hint 'other'" in source.status)
    assert source.current is None


def test_the_socket_may_appear_later_and_be_replaced(path: Path, follow: Any) -> None:
    source = follow()
    eventually(lambda: source.counters.streams >= 2)
    assert "UNAVAILABLE" in source.status
    first, second = A.svid(WEB), A.svid(WEB)
    agent = Agent(path, [state(first)]).start()
    assert source.wait(10)
    agent.stop()
    path.unlink(missing_ok=True)
    replaced = Agent(path, [state(second)]).start()
    eventually(lambda: serial(source) == second.serial)
    replaced.stop()


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "UNIMPLEMENTED"])
def test_what_will_never_be_served_is_not_asked_again(
    agent: Agent, follow: Any, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    agent.answers = [End(code, "no")]
    source = follow()
    eventually(lambda: code in source.status)
    eventually(lambda: "not tried again" in caplog.text)
    source.close()
    assert len(agent.calls) == 1


@pytest.mark.parametrize(
    "code", ["UNAVAILABLE", "INTERNAL", "OK", "PERMISSION_DENIED", "DEADLINE_EXCEEDED", "CANCELLED"]
)
def test_everything_else_is_tried_again_with_back_off(agent: Agent, follow: Any, code: str) -> None:
    agent.answers = [End(code, "later")]
    source = follow()
    eventually(lambda: len(agent.calls) >= 3)
    agent.answers = [state(A.svid(WEB))]
    assert source.wait(10)


def test_back_off_grows_from_under_a_second_to_half_a_minute_with_jitter(path: Path) -> None:
    class Attempt:
        def __init__(self, number: int) -> None:
            self.attempt_number = number

    for low, share in ((True, 0.75), (False, 1.25)):

        class Rng:
            def uniform(self, a: float, b: float, low: bool = low) -> float:
                return a if low else b

        source = WorkloadApiSource(f"unix:{path}", rng=Rng())
        delays = [source._delay(Attempt(number)) for number in (1, 2, 3, 10, 10_000)]
        assert delays == [share * each for each in (0.5, 1, 2, 24, 24)]
        assert 0.05 <= delays[0] <= 1
        assert delays[-1] <= 30


def test_an_expired_svid_from_an_agent_whose_server_is_down_is_not_used(agent: Agent, follow: Any) -> None:
    agent.answers = [state(A.svid(WEB, until=-1))]
    source = follow()
    eventually(lambda: source.counters.dropped >= 1)
    assert source.current is None
    assert "expired" in source.status
    fresh = A.svid(WEB)
    agent.push(state(fresh))
    eventually(lambda: serial(source) == fresh.serial, what="the fresh SVID on the stream that stayed open")


def test_an_svid_that_is_not_renewed_is_reported_asked_for_anew_and_given_up_at_its_end(
    agent: Agent, follow: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [time.time()]
    agent.answers = [state(A.svid(WEB, since=0, until=1000))]
    source = follow(now=lambda: clock[0])
    assert source.wait(10)
    clock[0] += 700
    eventually(lambda: source.counters.overdue == 1)
    eventually(lambda: len(agent.calls) == 2, what="a new stream")
    assert "not renewed by 70 percent" in caplog.text
    clock[0] += 150
    eventually(lambda: "not renewed by 85 percent" in caplog.text)
    assert source.current is not None
    assert len(agent.calls) == 2
    clock[0] += 150
    assert source.current is None
    eventually(lambda: "has expired" in source.status or "expired" in source.status)
    fresh = A.svid(WEB, until=9000)
    agent.then(state(fresh))
    eventually(lambda: serial(source) == fresh.serial)


def test_an_svid_of_the_future_is_used_when_it_is_valid(agent: Agent, follow: Any) -> None:
    clock = [time.time()]
    now, later = A.svid(WEB), A.svid(WEB, since=100)
    agent.answers = [state(now)]
    source = follow(now=lambda: clock[0])
    assert source.wait(10)
    agent.push(state(later))
    eventually(lambda: source.counters.responses == 2)
    assert serial(source) == now.serial
    clock[0] += 101
    eventually(lambda: serial(source) == later.serial)


def test_what_is_accepted_and_not_enforced_is_said(agent: Agent, follow: Any, caplog: pytest.LogCaptureFixture) -> None:
    agent.answers = [state(A.svid(WEB), crl=(b"list",))]
    assert follow().wait(10)
    assert "revocation lists; they are not enforced" in caplog.text


def test_a_response_beyond_four_mebibytes_is_read(agent: Agent, follow: Any) -> None:
    anchors = b"".join(root("a.test").der for _ in range(20))
    federated = {f"spiffe://t{number}.test": anchors for number in range(500)}
    data = state(A.svid(WEB), federated=federated)
    assert len(data) > 4 * 1024 * 1024
    agent.answers = [data]
    source = follow()
    assert source.wait(30)
    assert len(source.current.bundles) == 501


def test_closing_is_quiet_quick_and_leaves_the_identity(
    agent: Agent, follow: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    agent.answers = [state(A.svid(WEB))]
    source = follow()
    assert source.wait(10)
    eventually(lambda: "identity" in caplog.text)  # it is said after it is published
    caplog.clear()
    start = time.monotonic()
    source.close()
    source.close()
    assert time.monotonic() - start < 2
    assert source.current is not None
    assert [record for record in caplog.records if record.name.startswith("proxyless")] == []


def test_after_closing_it_may_start_again_and_keeps_what_it_had(agent: Agent, follow: Any) -> None:
    first, second = A.svid(WEB), A.svid(WEB)
    agent.answers = [state(first)]
    source = follow()
    assert source.wait(10)
    source.close()
    agent.answers = [state(second)]
    assert serial(source) == first.serial
    source.start()
    source.start()
    eventually(lambda: serial(source) == second.serial)
    assert len(agent.calls) == 2


def test_nothing_runs_before_start_and_the_status_says_so(path: Path) -> None:
    source = WorkloadApiSource(f"unix:{path}")
    assert (source.current, source.generation) == (None, 0)
    assert source.status == "the Workload API client has not been started"


def test_a_child_after_fork_has_nothing_of_the_parent_and_opens_its_own_stream(agent: Agent) -> None:
    agent.answers = [state(A.svid(WEB))]
    code = """
import os, sys
from proxyless.identity.workload_api import WorkloadApiSource
source = WorkloadApiSource(sys.argv[1])
source.start()
assert source.wait(10)
child = os.fork()
if child == 0:
    assert source.current is None, "the parent's key"
    assert "not been started" in source.status
    source.start()
    os._exit(0 if source.wait(10) else 1)
assert os.waitpid(child, 0)[1] == 0
assert source.current is not None
source.close()
"""
    subprocess.run(
        [sys.executable, "-c", code, agent.address],
        check=True,
        timeout=50,
        env={**os.environ, "GRPC_VERBOSITY": "NONE"},
    )
    assert len(agent.calls) == 2


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("unix:///run/a.sock", "/run/a.sock"),
        ("unix:/run/a.sock", "/run/a.sock"),
        ("unix:///run/a%20b.sock", "/run/a b.sock"),
        ("tcp://127.0.0.1:8000", "127.0.0.1:8000"),
        ("tcp://[::1]:8000", "[::1]:8000"),
    ],
)
def test_addresses_of_the_specification_are_understood(address: str, target: str) -> None:
    assert WorkloadApiSource(address).endpoint.target == target


@pytest.mark.parametrize(
    "address",
    [
        "",
        "/run/a.sock",
        "http://x",
        "unix:a.sock",
        "unix://",
        "unix:///",
        "unix://host/a.sock",
        "unix://u:p@/a.sock",
        "unix:///a?b",
        "unix:///a#b",
        "unix:///a%00b",
        "unix:///a%ffb",
        "tcp:x",
        "tcp://",
        "tcp://localhost:80",
        "tcp://1.2.3.4",
        "tcp://1.2.3.4:0",
        "tcp://1.2.3.4:65536",
        "tcp://1.2.3.4:http",
        "tcp://1.2.3.4:80/",
        "tcp://1.2.3.4:80?x",
        "tcp://::1:80",
        "tcp://[1.2.3.4]:80",
        "tcp://1.2.3.4:٣",
    ],
)
def test_other_addresses_are_refused_with_the_name_of_the_variable(address: str) -> None:
    with pytest.raises(SettingsError, match="SPIFFE_ENDPOINT_SOCKET"):
        WorkloadApiSource(address)


def test_a_path_with_a_space_is_dialled(follow: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "a b%.sock"
        agent = Agent(place, [state(A.svid(WEB))])
        agent.path = Path(f"{folder}/a%20b%25.sock")
        agent.start()
        source = WorkloadApiSource(f"unix://{folder}/a%20b%25.sock", timings=FAST)
        assert source.endpoint.target == str(place)
        source.start()
        assert source.wait(10)
        source.close()
        agent.stop()


def test_a_received_response_does_not_show_the_key_it_holds() -> None:
    event = Received(cast(Any, None), b"the private key")
    assert "private key" not in repr(event)
