"""How the attempts of a call are spaced: timeouts, retry rule and host selection of a route, compiled on its first use."""

from __future__ import annotations

from proxyless.core.request import Request
from proxyless.core.resources import RouteAction
from proxyless.core.retry import RetryRule, compile_rule, rule_of_request
from proxyless.core.routing import RouteDecision
from proxyless.core.timeouts import Timeouts, timeouts_of, timeouts_of_request

__all__ = ["NO_PLAN", "Plan", "plan_of", "plan_of_request"]


class Plan:
    """`rule` None: nothing is ever repeated. `selection_retries`: how often a host that was tried before is drawn again."""

    __slots__ = ("rule", "selection_retries", "timeouts")

    def __init__(self, timeouts: Timeouts, rule: RetryRule | None, selection_retries: int) -> None:
        self.timeouts, self.rule, self.selection_retries = timeouts, rule, selection_retries


NO_PLAN = Plan(Timeouts(None, None, None), None, 0)


def plan_of(decision: RouteDecision, action: RouteAction) -> Plan:
    """The plan of a route, kept in `RouteDecision.memo`."""
    plan = decision.memo
    if not isinstance(plan, Plan):
        plan = decision.memo = Plan(timeouts_of(action), compile_rule(action.retry), _selection_retries(action))
    return plan


def plan_of_request(action: RouteAction, request: Request) -> Plan:
    """The plan for a request whose own headers change the route's."""
    timeouts = timeouts_of_request(action, request)
    return Plan(timeouts, rule_of_request(action.retry, request), _selection_retries(action))


def _selection_retries(action: RouteAction) -> int:
    policy = action.retry
    return policy.host_selection_attempts if policy is not None and policy.avoid_previous_hosts else 0
