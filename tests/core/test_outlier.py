from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyless.core.learned import ClusterState
from proxyless.core.outlier import (
    Ejection,
    observe_connected,
    observe_local_failure,
    observe_status,
    readmit,
    release_all,
)
from proxyless.core.resources import OutlierDetection
from tests.core.outbound import Chance, address, cluster, upstream_of


class Bench:
    """One cluster with outlier detection and a clock."""

    def __init__(self, hosts: int, **rules: object) -> None:
        self.upstream = upstream_of(cluster("c", hosts, outlier=OutlierDetection(**rules)))  # type: ignore[arg-type]  # keywords of a dataclass
        self.state = ClusterState("c")
        self.now = 1000.0
        self.rng = Chance(0.0)

    def see(self, host: int, *results: int | str) -> list[Ejection]:
        """Results of one host: statuses, or `refused`, `reset`, `late`. Returns what was detected."""
        found: list[Ejection] = []
        endpoint = self.state.endpoint(address(host))
        for result in results:
            if self.now >= self.state.next_return:
                readmit(self.state, self.now)
            if result != "refused":
                observe_connected(self.upstream, endpoint)
            if isinstance(result, int):
                found += observe_status(self.upstream, self.state, endpoint, result, self.now, self.rng)
            else:
                late = result == "late"
                found += observe_local_failure(self.upstream, self.state, endpoint, late, self.now, self.rng)
        return found

    @property
    def out(self) -> set[int]:
        return {index for index in range(100) if address(index) in self.state.ejected}

    def until(self, host: int) -> float:
        return self.state.endpoint(address(host)).ejected_until - 1000.0


@pytest.mark.parametrize(
    ("results", "out"),
    [
        pytest.param([500, 500], True, id="two in a row"),
        pytest.param([500, 200, 500], False, id="any other result begins anew"),
        pytest.param([500, 404, 500], False, id="a 404 is another result"),
        pytest.param([503, 500], True, id="gateway errors are 5xx"),
        pytest.param(["refused", "reset"], True, id="without split, failures of our side are 503"),
        pytest.param(["late", 500], True, id="a timeout is 504"),
    ],
)
def test_consecutive_5xx(results: list[int | str], out: bool) -> None:
    bench = Bench(2, consecutive_5xx=2, max_ejection_percent=50)
    bench.see(0, *results)
    assert bench.out == ({0} if out else set())


def test_gateway_failures_have_a_detector_of_their_own() -> None:
    bench = Bench(2, consecutive_gateway_failure=2, enforcing_consecutive_gateway_failure=100, max_ejection_percent=50)
    bench.see(0, 503, 500, 503)
    assert not bench.out
    (found,) = bench.see(0, 504)
    assert (found.detector, found.enforced) == ("consecutive_gateway_failure", True)


def test_gateway_failures_are_not_enforced_by_default() -> None:
    bench = Bench(2, consecutive_5xx=100, consecutive_gateway_failure=2, max_ejection_percent=50)
    (found,) = bench.see(0, 503, 503)
    assert not found.enforced
    assert not bench.out


def test_with_split_only_local_failures_count_as_local() -> None:
    bench = Bench(
        2,
        consecutive_5xx=2,
        split_external_local_origin_errors=True,
        consecutive_local_origin_failure=2,
        max_ejection_percent=50,
    )
    bench.see(0, "refused", 500, "refused")
    assert not bench.out
    (found,) = bench.see(0, "refused")
    assert found.detector == "consecutive_local_origin_failure"


def test_with_split_a_connection_that_is_made_and_lost_never_adds_up() -> None:
    bench = Bench(
        2, split_external_local_origin_errors=True, consecutive_local_origin_failure=2, max_ejection_percent=50
    )
    bench.see(0, *["reset"] * 10)
    assert not bench.out


@pytest.mark.parametrize(
    ("hosts", "percent", "out"),
    [
        pytest.param(9, 10, 0, id="the default ejects nobody among nine"),
        pytest.param(10, 10, 1, id="and one of ten"),
        pytest.param(2, 50, 1, id="half of two"),
        pytest.param(3, 50, 1, id="half of three, rounded down"),
        pytest.param(4, 100, 4, id="everybody"),
        pytest.param(4, 0, 0, id="nobody"),
    ],
)
def test_max_ejection_percent_counts_the_one_to_come(hosts: int, percent: int, out: int) -> None:
    bench = Bench(hosts, consecutive_5xx=1, max_ejection_percent=percent)
    for host in range(hosts):
        bench.see(host, 500)
    assert len(bench.out) == out
    assert bench.state.ejections_refused == hosts - out


def test_always_eject_one_host() -> None:
    bench = Bench(3, consecutive_5xx=1, always_eject_one_host=True)
    bench.see(0, 500)
    bench.see(1, 500)
    assert bench.out == {0}


def test_a_detection_that_ejects_nobody_begins_the_count_anew() -> None:
    bench = Bench(3, consecutive_5xx=3)
    bench.see(0, 500, 500, 500)
    assert bench.state.endpoint(address(0)).consecutive_5xx == 0


def test_the_enforcing_percentage_is_drawn() -> None:
    bench = Bench(2, consecutive_5xx=1, enforcing_consecutive_5xx=30, max_ejection_percent=100)
    bench.rng = Chance(0.3, 0.29)
    assert [found.enforced for found in bench.see(0, 500, 500)] == [False, True]


def test_the_endpoint_returns_at_the_tick_after_its_time() -> None:
    bench = Bench(2, consecutive_5xx=1, max_ejection_percent=50, interval=10.0, base_ejection_time=30.0)
    bench.now = 1003.0
    bench.see(0, 500)
    assert bench.until(0) == 40.0
    readmit(bench.state, 1039.9)
    assert bench.out == {0}
    readmit(bench.state, 1040.0)
    assert not bench.out
    assert bench.state.next_return == inf


def test_ejection_time_grows_up_to_the_maximum() -> None:
    """Base 0.5 s, maximum 0.9 s, interval 0.2 s; the host fails again as soon as it is back."""
    bench = Bench(
        2, consecutive_5xx=1, max_ejection_percent=50, interval=0.2, base_ejection_time=0.5, max_ejection_time=0.9
    )
    returns = []
    for at in (0.02, 0.64, 1.63, 2.6):
        bench.now = 1000.0 + at
        bench.see(0, 500)
        returns.append(round(bench.until(0), 6))
    assert returns == [0.6, 1.6, 2.6, 3.6]


def test_quiet_intervals_bring_the_ejection_time_down() -> None:
    bench = Bench(2, consecutive_5xx=1, max_ejection_percent=50, interval=1.0, base_ejection_time=2.0)
    for at in (0.0, 2.5, 7.5):  # multiplier 1, 2, 3
        bench.now = 1000.0 + at
        bench.see(0, 500)
    assert bench.until(0) == 14.0
    bench.now = 1016.5  # two ticks since the return
    bench.see(0, 500)
    assert bench.until(0) == 21.0  # multiplier 2


def test_a_long_quiet_time_forgets_everything() -> None:
    bench = Bench(2, consecutive_5xx=1, max_ejection_percent=50, interval=1.0, base_ejection_time=2.0)
    bench.see(0, 500)
    bench.now = 2000.0
    bench.see(0, 500)
    assert bench.until(0) == 1002.0


def test_counters_begin_anew_on_return() -> None:
    bench = Bench(2, consecutive_5xx=2, max_ejection_percent=50, interval=1.0, base_ejection_time=1.0)
    bench.see(0, 500, 500, 500)
    bench.now = 1001.0
    bench.see(0, 500)
    assert not bench.out


def test_release_all_when_the_rule_is_gone() -> None:
    bench = Bench(2, consecutive_5xx=1, max_ejection_percent=100)
    bench.see(0, 500)
    release_all(bench.state, bench.now)
    assert not bench.out
    assert bench.state.endpoint(address(0)).ejected_until == 0


def test_errors_are_counted_for_each_endpoint() -> None:
    """Three endpoints in turn, five in a row eject: after twelve errors nobody is out, after fifteen those that had five."""
    bench = Bench(3, consecutive_5xx=5, max_ejection_percent=100, interval=20.0, base_ejection_time=60.0)
    for turn in range(12):
        bench.see(turn % 3, 500)
    assert not bench.out
    bench.see(0, 500)
    bench.see(1, 200)
    bench.see(2, 500)
    assert bench.out == {0, 2}
    assert bench.state.endpoint(address(1)).consecutive_5xx == 0


STEPS = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([200, 404, 500, 503, "refused", "reset", "late"]), st.floats(0, 5)),
    max_size=80,
)


@given(STEPS, st.integers(0, 100), st.booleans(), st.booleans(), st.integers(1, 3))
def test_never_more_are_out_than_the_cap_allows(
    steps: list[tuple[int, int | str, float]], percent: int, split: bool, always: bool, threshold: int
) -> None:
    bench = Bench(
        6,
        consecutive_5xx=threshold,
        consecutive_gateway_failure=threshold,
        enforcing_consecutive_gateway_failure=100,
        split_external_local_origin_errors=split,
        consecutive_local_origin_failure=threshold,
        max_ejection_percent=percent,
        always_eject_one_host=always,
        interval=1.0,
        base_ejection_time=3.0,
        max_ejection_time=10.0,
    )
    for host, result, pause in steps:
        bench.now += pause
        bench.see(host, result)
        assert len(bench.out) <= max(6 * percent // 100, int(always))
        due = [bench.state.endpoint(address(host)).ejected_until for host in bench.out]
        assert bench.state.next_return == min(due, default=inf)
        assert all(bench.now - 10.0 <= until <= bench.now + 11.0 for until in due)


def test_a_count_beyond_the_threshold_ejects_too() -> None:
    """Two threads may count before either looks, and a push may lower the threshold below what was counted."""
    bench = Bench(2, consecutive_5xx=5, max_ejection_percent=50)
    bench.see(0, 500, 500, 500)
    stricter = OutlierDetection(consecutive_5xx=2, max_ejection_percent=50)
    bench.upstream = upstream_of(cluster("c", 2, outlier=stricter))
    bench.see(0, 500)
    assert bench.out == {0}


def test_a_threshold_of_zero_is_never_reached() -> None:
    bench = Bench(2, consecutive_5xx=0, consecutive_gateway_failure=0, max_ejection_percent=100)
    bench.see(0, *[503] * 20)
    assert not bench.out
