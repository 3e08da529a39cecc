"""Retry policies (istio-semantics 4.4)."""

from __future__ import annotations

from http import HTTPStatus

from proxyless.controlplane.manifest.model import HTTPRetry
from proxyless.controlplane.translate.build import Tree, duration, extension

__all__ = ["inbound_retry", "retry_policy"]

DEFAULT_RETRY_ON = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
BY_CODE = "retriable-status-codes"

_STATUSES = frozenset(status.value for status in HTTPStatus)


def retry_policy(own: HTTPRetry | None, mesh_default: HTTPRetry | None, hashed: bool = False) -> Tree | None:
    """The policy of a route: its own, else the mesh's default, else Istio's; None: no retries.

    `hashed`: the destination picks by hash, where going elsewhere defeats the purpose unless asked for.
    """
    retries = own if own is not None else mesh_default
    if retries is None:
        return _policy(HTTPRetry(attempts=2), avoid_previous=True)
    if not retries.attempts:
        return None
    avoid = retries.retry_ignore_previous_hosts
    return _policy(retries, avoid_previous=not hashed if avoid is None else avoid)


def inbound_retry() -> Tree:
    """Between proxy and application: only what never reached it."""
    return {"retry_on": "reset-before-request", "num_retries": {"value": 2}}


def _policy(retries: HTTPRetry, avoid_previous: bool) -> Tree:
    retry_on, codes = _retry_on(retries.retry_on or DEFAULT_RETRY_ON)
    policy: Tree = {
        "retry_on": retry_on,
        "num_retries": {"value": retries.attempts},
        "host_selection_retry_max_attempts": 5,
    }
    if codes:
        policy["retriable_status_codes"] = codes
    if retries.per_try_timeout is not None:
        policy["per_try_timeout"] = duration(retries.per_try_timeout)
    if retries.backoff is not None:
        policy["retry_back_off"] = {"base_interval": duration(retries.backoff)}
    if avoid_previous:
        policy["retry_host_predicate"] = [
            extension(
                "envoy.retry_host_predicates.previous_hosts",
                "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
            )
        ]
    if retries.retry_remote_localities:
        policy["retry_priority"] = extension(
            "envoy.retry_priorities.previous_priorities",
            "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
            {"update_frequency": 2},
        )
    return policy


def _retry_on(text: str) -> tuple[str, list[int]]:
    """Words and status codes apart: ``5xx,503`` is ``5xx,retriable-status-codes`` with code 503."""
    words: list[str] = []
    codes: list[int] = []
    for part in (part.strip() for part in text.split(",")):
        if part.isdigit() and int(part) in _STATUSES:
            codes.append(int(part))
        elif part:
            words.append(part)
    if codes and BY_CODE not in words:
        words.append(BY_CODE)
    return ",".join(words), codes
