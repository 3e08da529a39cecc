from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyless.core.balancing import Level, pick, priority_loads
from proxyless.core.learned import ClusterState
from proxyless.core.outlier import observe_status, readmit
from proxyless.core.request import Address
from proxyless.core.resources import (
    Cluster,
    ClusterType,
    Health,
    LbEndpoint,
    LbPolicy,
    LoadAssignment,
    LocalityEndpoints,
    OutlierDetection,
)
from proxyless.core.snapshot import Upstream
from tests.core.outbound import Chance, address, cluster, upstream_of


def endpoints(*weights: int, health: Health = Health.HEALTHY) -> list[LbEndpoint]:
    return [LbEndpoint(address=address(index), weight=weight, health=health) for index, weight in enumerate(weights)]


def picks(upstream: Upstream, count: int, state: ClusterState | None = None, seed: int = 1) -> Counter[Address]:
    state = state or ClusterState("c")
    rng = random.Random(seed)
    found = [pick(upstream, state, rng) for _ in range(count)]
    return Counter(chosen[0].address for chosen in found if chosen is not None)


# --------------------------------------------------------------------------------------------------------------- policies


def test_round_robin_takes_turns() -> None:
    upstream, state = upstream_of(cluster("c", 3)), ClusterState("c")
    order = [chosen[0].address for _ in range(6) if (chosen := pick(upstream, state, Chance(0.0)))]
    assert order == [address(0), address(1), address(2)] * 2


def test_round_robin_begins_anywhere_so_that_processes_do_not_march_in_step() -> None:
    upstream = upstream_of(cluster("c", 3))
    first = {
        chosen[0].address for seed in range(30) if (chosen := pick(upstream, ClusterState("c"), random.Random(seed)))
    }
    assert len(first) == 3


def test_weighted_round_robin_gives_exact_shares_and_spreads_them() -> None:
    upstream, state = upstream_of(cluster("c", endpoints(1, 2, 4))), ClusterState("c")
    order = [chosen[0].address for _ in range(70) if (chosen := pick(upstream, state, Chance(0.0)))]
    assert Counter(order) == {address(0): 10, address(1): 20, address(2): 40}
    assert max(len(run) for run in "".join("x" if a == address(2) else " " for a in order).split()) <= 2


def test_huge_weights_keep_their_shares() -> None:
    counts = picks(upstream_of(cluster("c", endpoints(1_000_000, 3_000_001))), 4000)
    assert counts[address(1)] / 4000 == pytest.approx(0.75, abs=0.01)


def test_least_request_takes_the_less_busy_of_two_draws() -> None:
    upstream, state = upstream_of(cluster("c", 2, lb_policy=LbPolicy.LEAST_REQUEST)), ClusterState("c")
    state.endpoint(address(0)).active = 3
    chosen = pick(upstream, state, Chance(0.0, 0.9))
    assert chosen is not None
    assert chosen[0].address == address(1)


def test_least_request_takes_the_first_draw_on_a_tie() -> None:
    upstream = upstream_of(cluster("c", 2, lb_policy=LbPolicy.LEAST_REQUEST))
    chosen = pick(upstream, ClusterState("c"), Chance(0.9, 0.0))
    assert chosen is not None
    assert chosen[0].address == address(1)


@pytest.mark.parametrize("policy", [LbPolicy.RANDOM, LbPolicy.RING_HASH, LbPolicy.MAGLEV, LbPolicy.LEAST_REQUEST])
def test_equal_endpoints_get_equal_shares(policy: LbPolicy) -> None:
    counts = picks(upstream_of(cluster("c", 4, lb_policy=policy)), 8000)
    assert all(count == pytest.approx(2000, rel=0.1) for count in counts.values())


def test_the_same_chance_gives_the_same_picks() -> None:
    upstream = upstream_of(cluster("c", 5, lb_policy=LbPolicy.RANDOM))
    assert picks(upstream, 50, seed=3) == picks(upstream, 50, seed=3)


# ----------------------------------------------------------------------------------------------------------------- health


@pytest.mark.parametrize("health", [Health.UNHEALTHY, Health.DRAINING, Health.TIMEOUT])
def test_unusable_endpoints_are_never_picked(health: Health) -> None:
    mixed = [*endpoints(1, 1), LbEndpoint(address=address(7), health=health)]
    assert address(7) not in picks(upstream_of(cluster("c", mixed)), 100)
    assert not picks(upstream_of(cluster("c", endpoints(1, health=health))), 1)


def test_an_empty_cluster_picks_nobody() -> None:
    assert pick(upstream_of(cluster("c", 0)), ClusterState("c"), Chance()) is None


EJECTING = OutlierDetection(consecutive_5xx=1, max_ejection_percent=100, interval=1.0, base_ejection_time=10.0)


def test_an_ejected_endpoint_is_left_out_and_comes_back() -> None:
    upstream, state = upstream_of(cluster("c", 2, outlier=EJECTING)), ClusterState("c")
    observe_status(upstream, state, state.endpoint(address(0)), 500, 1000.0, Chance())
    assert set(picks(upstream, 10, state)) == {address(1)}
    readmit(state, 1010.0)
    assert set(picks(upstream, 10, state)) == {address(0), address(1)}


def test_with_everybody_ejected_and_panic_off_nobody_is_picked() -> None:
    upstream, state = upstream_of(cluster("c", 2, outlier=EJECTING)), ClusterState("c")
    for index in range(2):
        observe_status(upstream, state, state.endpoint(address(index)), 500, 1000.0, Chance())
    assert pick(upstream, state, Chance()) is None


def test_panic_ignores_health_below_the_threshold() -> None:
    upstream = upstream_of(cluster("c", 3, outlier=EJECTING, panic_threshold=50.0))
    state = ClusterState("c")
    observe_status(upstream, state, state.endpoint(address(0)), 500, 1000.0, Chance())
    assert set(picks(upstream, 30, state)) == {address(1), address(2)}
    observe_status(upstream, state, state.endpoint(address(1)), 500, 1000.0, Chance())
    assert set(picks(upstream, 30, state)) == {address(0), address(1), address(2)}


def test_a_push_replaces_the_hosts() -> None:
    state = ClusterState("c")
    assert set(picks(upstream_of(cluster("c", 1)), 3, state)) == {address(0)}
    assert set(picks(upstream_of(cluster("c", 2)), 10, state)) == {address(0), address(1)}


# ----------------------------------------------------------------------------------------------------- previous hosts


def test_a_previous_host_is_avoided_as_often_as_allowed() -> None:
    upstream = upstream_of(cluster("c", 2, lb_policy=LbPolicy.RANDOM))
    chosen = pick(upstream, ClusterState("c"), Chance(0.0, 0.1, 0.9), {address(0)}, 2)
    assert chosen is not None
    assert chosen[0].address == address(1)
    again = pick(upstream, ClusterState("c"), Chance(0.0, 0.1, 0.9), {address(0)}, 1)
    assert again is not None
    assert again[0].address == address(0)


# ------------------------------------------------------------------------------------------------------------- priorities


@pytest.mark.parametrize(
    ("levels", "threshold", "healthy", "degraded", "panic"),
    [
        pytest.param([(4, 4, 0)], 50, [100], [0], [False], id="one level"),
        pytest.param([(10, 8, 0), (10, 10, 0)], 50, [100, 0], [0, 0], [False] * 2, id="overprovisioning hides a loss of 28 %"),
        pytest.param([(4, 2, 0), (4, 4, 0)], 50, [70, 30], [0, 0], [False] * 2, id="spill over"),
        pytest.param([(4, 0, 0), (4, 4, 0)], 50, [0, 100], [0, 0], [False] * 2, id="failover"),
        pytest.param([(10, 2, 0), (10, 2, 0)], 0, [50, 50], [0, 0], [False] * 2, id="scaled up"),
        pytest.param([(10, 2, 0), (10, 2, 0)], 50, [50, 50], [0, 0], [True] * 2, id="total panic by host count"),
        pytest.param([(1, 0, 0), (3, 0, 0)], 50, [25, 75], [0, 0], [True] * 2, id="nobody healthy: by host count"),
        pytest.param([(2, 0, 0), (2, 0, 0)], 0, [100, 0], [0, 0], [False] * 2, id="nobody healthy, panic off"),
        pytest.param([(4, 2, 2)], 50, [70], [30], [False], id="degraded take the rest"),
        pytest.param([(2, 0, 2)], 50, [0], [100], [False], id="only degraded"),
    ],
)  # fmt: skip
def test_priority_loads(
    levels: list[tuple[int, int, int]], threshold: float, healthy: list[int], degraded: list[int], panic: list[bool]
) -> None:
    loads = priority_loads([Level(*each) for each in levels], threshold)
    assert (loads.healthy, loads.degraded, loads.panic) == (healthy, degraded, panic)


LEVELS = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20)).map(
    lambda parts: Level(sum(parts), parts[0], parts[1])
)


@given(st.lists(LEVELS, min_size=1, max_size=5), st.sampled_from([0.0, 30.0, 50.0, 100.0]))
def test_loads_always_sum_to_a_hundred(levels: list[Level], threshold: float) -> None:
    loads = priority_loads(levels, threshold)
    assert sum(loads.healthy) + sum(loads.degraded) == 100
    assert min(*loads.healthy, *loads.degraded) >= 0


def prioritised(*levels: list[LbEndpoint]) -> Upstream:
    localities = tuple(LocalityEndpoints(priority=number, endpoints=tuple(each)) for number, each in enumerate(levels))
    return upstream_of(
        Cluster(
            name="c",
            type=ClusterType.STATIC,
            assignment=LoadAssignment(name="c", localities=localities),
            panic_threshold=0.0,
        )
    )


def test_the_next_priority_takes_over_when_none_of_the_first_is_healthy() -> None:
    first = [LbEndpoint(address=address(0), health=Health.UNHEALTHY)]
    assert set(picks(prioritised(first, [LbEndpoint(address=address(1))]), 20)) == {address(1)}


def test_priorities_share_the_load() -> None:
    first = [LbEndpoint(address=address(0)), LbEndpoint(address=address(1), health=Health.UNHEALTHY)]
    counts = picks(prioritised(first, [LbEndpoint(address=address(2))]), 4000)
    assert counts[address(0)] / 4000 == pytest.approx(0.7, abs=0.03)
    assert counts[address(2)] / 4000 == pytest.approx(0.3, abs=0.03)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(list(Health)), st.booleans()), max_size=8),
    st.sampled_from(list(LbPolicy)),
    st.integers(0, 1000),
)
def test_without_panic_only_healthy_endpoints_are_picked(
    hosts: list[tuple[int, Health, bool]], policy: LbPolicy, seed: int
) -> None:
    localities = tuple(
        LocalityEndpoints(priority=priority, endpoints=(LbEndpoint(address=address(index), health=health),))
        for index, (priority, health, _) in enumerate(hosts)
    )
    what = Cluster(
        name="c",
        type=ClusterType.STATIC,
        lb_policy=policy,
        assignment=LoadAssignment(name="c", localities=localities),
        panic_threshold=0.0,
        outlier=EJECTING,
    )
    upstream, state, rng = upstream_of(what), ClusterState("c"), random.Random(seed)
    for index, (_, _, ejected) in enumerate(hosts):
        if ejected:
            observe_status(upstream, state, state.endpoint(address(index)), 500, 1000.0, rng)
    usable = {address(i) for i, (_, health, ejected) in enumerate(hosts) if health.eligible and not ejected}
    chosen = {found[0].address for _ in range(10) if (found := pick(upstream, state, rng)) is not None}
    assert chosen <= usable
    assert bool(chosen) is bool(usable)
