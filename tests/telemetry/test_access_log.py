"""The access log: one line of JSON for each event, whatever callers send, and never in the way of a request."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from proxyless.telemetry import access_log
from proxyless.telemetry.access_log import AccessLog, LoggedHeaders, fixed, line, open_access_log
from tests.engine.helpers import wait_until

ENVOY_KEYS = {
    "start_time", "route_name", "method", "path", "protocol", "response_code", "response_flags", "response_code_details",
    "connection_termination_details", "bytes_received", "bytes_sent", "duration", "upstream_service_time", "x_forwarded_for",
    "user_agent", "request_id", "authority", "upstream_host", "upstream_cluster", "upstream_local_address",
    "downstream_local_address", "downstream_remote_address", "requested_server_name", "upstream_transport_failure_reason",
}  # fmt: skip


def test_a_line_has_envoys_keys_and_ours():
    value = json.loads(line(fixed("outbound"), 1_700_000_000.1234, 0.0567, method="GET", path="/a", attempts=2))
    assert ENVOY_KEYS | {"direction", "peer", "policy", "attempts"} == value.keys()
    assert value["start_time"] == "2023-11-14T22:13:20.123Z"
    assert (value["duration"], value["attempts"], value["response_code"]) == (56, 2, 0)
    assert value["response_flags"] == "-"
    assert value["upstream_host"] is None


@given(st.text(), st.text(), st.text())
def test_whatever_came_from_outside_stays_inside_its_value(path, agent, authority):
    headers = LoggedHeaders.find([(b"user-agent", agent.encode())])
    text = line(
        fixed("inbound", sni=authority), 0.0, 0.0, method="GET", path=path, headers=headers, authority=authority
    )
    assert text.isascii()
    assert text.isprintable()
    value = json.loads(text)
    assert (value["path"] or "", value["authority"] or "", value["requested_server_name"] or "") == (
        path,
        authority,
        authority,
    )
    assert (value["user_agent"] or "") == agent.encode().decode("latin-1").strip(" \t")


def test_the_headers_of_a_line_are_found_in_any_case_and_joined():
    raw = [
        (b"X-Forwarded-For", b"192.0.2.1 "),
        (b"host", b"a"),
        (b"x-forwarded-for", b"\t192.0.2.2"),
        (b"X-Request-ID", b"7"),
    ]
    assert LoggedHeaders.find(raw) == ("192.0.2.1, 192.0.2.2", "", "7")
    assert LoggedHeaders.find([]) == ("", "", "")


def test_the_time_of_a_line_is_that_of_its_start():
    starts = [1_700_000_000.0, 1_700_000_000.0004, 1_700_000_000.999, 1_700_000_001.0, 1_700_000_000.0]
    times = [json.loads(line(fixed("inbound"), start, 0.0, method="GET", path="/"))["start_time"] for start in starts]
    assert [text[-10:] for text in times] == ["13:20.000Z", "13:20.000Z", "13:20.999Z", "13:21.000Z", "13:20.000Z"]


def test_lines_reach_the_file_whole_and_in_order(tmp_path):
    log = AccessLog(str(tmp_path / "log"))
    for number in range(5000):
        log.write(f"{number}")
    log.close()
    assert (tmp_path / "log").read_text().split() == [str(number) for number in range(5000)]
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o640


def test_a_file_that_was_moved_away_is_opened_anew(tmp_path):
    path = tmp_path / "log"
    log = AccessLog(str(path))
    log.write("one")
    log.flush()
    path.rename(tmp_path / "log.1")
    log.write("two")
    log.close()
    assert (path.read_text(), (tmp_path / "log.1").read_text()) == ("two\n", "one\n")


def test_a_sink_that_blocks_drops_lines_and_blocks_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(access_log, "MAX_PENDING", 100)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    log = AccessLog(str(fifo))
    for _ in range(20):  # far more than a pipe holds
        for _ in range(1000):
            log.write("x" * 200)
    assert log.dropped > 0
    os.close(reader)
    log.flush(timeout=0.1)


def test_a_pipe_that_nobody_reads_loses_lines_and_blocks_nobody(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    log = AccessLog(str(tmp_path / "fifo"))
    log.write("one")
    log.close()
    assert log.dropped == 1


def test_a_file_that_cannot_be_opened_loses_lines_and_raises_nothing(tmp_path):
    log = AccessLog(str(tmp_path / "missing" / "log"))
    log.write("one")
    log.close()
    assert log.dropped == 1


def test_a_file_that_cannot_be_opened_is_said_at_the_start(tmp_path, caplog):
    AccessLog(str(tmp_path / "missing" / "log")).probe()
    assert "missing/log cannot be written: No such file or directory" in caplog.text


def test_lost_lines_are_counted_aloud_with_the_reason(tmp_path, caplog):
    log = AccessLog(str(tmp_path / "missing" / "log"))
    for _ in range(3):
        log.write("one")
        wait_until(lambda: not log._pending)
    wait_until(lambda: "lost so far" in caplog.text)
    log.close()
    assert "No such file or directory" in caplog.text
    assert caplog.text.count("lost so far") == 1


def test_off_is_none():
    assert open_access_log("off") is None
    assert open_access_log("") is None
    assert open_access_log("stdout") is not None


def test_what_is_queued_at_exit_is_written():
    code = "from proxyless.telemetry.access_log import AccessLog; AccessLog('stdout').write('last')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "last\n"


def test_a_forked_child_writes_its_own_lines_and_not_its_parents():
    code = """
import os
from proxyless.telemetry.access_log import AccessLog
log = AccessLog("stdout")
log.write("parent")
if os.fork() == 0:
    log.write("child")
    log.close()
    os._exit(0)
os.wait()
log.close()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert sorted(result.stdout.split()) == ["child", "parent"]
