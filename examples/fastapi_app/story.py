"""The story that `make demo` plays: what the eight examples of the introduction say, measured."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from proxyless.cli.dev.stage import Measured, Stage, Step

BILLING = "spiffe://cluster.local/ns/default/sa/billing"


async def canary(stage: Stage) -> Measured:
    """Weights 90/10, counted at the two receivers."""
    return await _split(stage, calls=400, share=0.10)


async def half(stage: Stage) -> Measured:
    """The same file, edited while everything runs."""
    stage.edit(
        "01-canary.yaml", lambda text: text.replace("weight: 90", "weight: 50").replace("weight: 10", "weight: 50")
    )
    seen: Counter[str] = Counter()

    async def changed() -> bool:
        seen.clear()
        seen.update((await stage.get("billing", "/pay?times=40"))["versions"])
        return seen["v2"] >= 12

    took = await stage.until("the new weights are in use", changed, timeout=10)
    measured = await _split(stage, calls=400, share=0.50)
    return Measured(f"{measured.text}; in use within {took:.1f} s of the edit", {**measured.data, "seconds": took})


async def _split(stage: Stage, calls: int, share: float) -> Measured:
    before = [await stage.received(f"payments-{version}") for version in ("v1", "v2")]
    answer = await stage.get("billing", f"/pay?times={calls}")
    assert answer["statuses"] == {"200": calls}, f"not all calls were answered 200: {answer['statuses']}"
    await stage.until("receivers have counted", lambda: _counted(stage, sum(before) + calls), timeout=5)
    v1, v2 = [
        await stage.received(f"payments-{version}") - count for version, count in zip(("v1", "v2"), before, strict=True)
    ]
    spread = 4 * (share * (1 - share) / calls) ** 0.5
    assert abs(v2 / calls - share) <= spread, f"v2 got {v2} of {calls}, {share:.0%} was asked for"
    return Measured(f"payments v1 counted {v1}, v2 counted {v2} of {calls} calls", {"v1": v1, "v2": v2, "calls": calls})


async def _counted(stage: Stage, total: int) -> bool:
    return await stage.received("payments-v1") + await stage.received("payments-v2") >= total


async def authorization(stage: Stage) -> Measured:
    """billing may call payments, api may not; plain text is not answered at all."""
    allowed = await stage.get("billing", "/pay?times=1")
    assert allowed["statuses"] == {"200": 1}, f"billing is refused: {allowed}"
    assert allowed["callers"] == [BILLING], f"payments sees {allowed['callers']}"
    refused = await stage.get("api-a", "/v1/pay")
    assert refused["status"] == 403, f"api is answered {refused['status']}: {refused['text']}"
    assert refused["text"] == "RBAC: access denied", refused["text"]
    try:
        await stage.get("payments-v1", "/charge")
    except AssertionError:
        raise
    except Exception as error:
        plain = type(error).__name__
    else:
        raise AssertionError("payments answers a caller without a certificate")
    server = refused["mesh"].get("peer", "?")
    return Measured(
        f"{BILLING} -> {server}: 200; spiffe://cluster.local/ns/default/sa/api -> {server}: 403 {refused['text']}; plain text: {plain}",
        {"allowed": BILLING, "refused": "spiffe://cluster.local/ns/default/sa/api", "server": server, "plain": plain},
    )


async def gateway(stage: Stage) -> Measured:
    """api.myapp.com from outside: /v1 is routed, anything else is 404."""
    inside = await stage.through_gateway("api.myapp.com", "/v1/orders")
    assert inside.status_code == 200, f"/v1/orders: {inside.status_code} {inside.text[:100]}"
    path = await stage.through_gateway("api.myapp.com", "/v2")
    host = await stage.through_gateway("other.myapp.com", "/v1/orders")
    assert (path.status_code, host.status_code) == (404, 404), (
        f"/v2: {path.status_code}, other host: {host.status_code}"
    )
    caller = inside.json()["caller"]
    assert caller.endswith("/sa/ingress"), f"api sees {caller}"
    return Measured(
        f"GET api.myapp.com/v1/orders: 200, api sees {caller}; /v2: 404; another host: 404", {"caller": caller}
    )


async def external(stage: Stage) -> Measured:
    """An HTTPS service outside of the mesh, declared by a ServiceEntry."""
    answer = await stage.get("api-a", "/v1/login")
    assert answer["status"] == 200, f"{answer}"
    cluster = answer["mesh"].get("cluster", "")
    assert cluster == "outbound|443||auth.external-service.com", f"went to {cluster or 'no cluster of the mesh'}"
    return Measured(
        f"https://auth.external-service.com/token: 200 by {cluster} at {answer['mesh'].get('endpoint')}", answer["mesh"]
    )


async def round_robin_and_retry(stage: Stage) -> Measured:
    """api-service has two live endpoints and a dead one; every call is answered, round robin."""
    answers = await stage.get("billing", "/orders?times=30")
    assert all(answer["status"] == 200 for answer in answers), f"{Counter(answer['status'] for answer in answers)}"
    saved = sum(answer["attempts"] > 1 for answer in answers)
    assert saved, "no call met the dead endpoint"
    by_instance = Counter(answer["body"]["instance"] for answer in answers)
    assert set(by_instance) == {"a", "b"}, f"answered by {dict(by_instance)}"
    return Measured(
        f"30 of 30 calls answered; {saved} of them saved by a retry; by instance {dict(by_instance)}", {"saved": saved}
    )


async def per_try_timeout(stage: Stage) -> Measured:
    """A slow answer ends the attempt after 2 s; without retryOn it is not repeated."""
    begun = time.monotonic()
    (answer,) = await stage.get("billing", "/work?slow=4")
    took = time.monotonic() - begun
    assert (answer["status"], answer["flag"]) == (504, "UT"), f"{answer}"
    assert 1.9 <= took < 3.5, f"took {took:.1f} s"
    assert answer["attempts"] == 1, f"{answer['attempts']} attempts"
    return Measured(f"504 UT after {took:.1f} s, one attempt", {"seconds": took})


async def ejection(stage: Stage) -> Measured:
    """Instance b fails; after two errors it gets no more calls."""
    answers = await stage.get("billing", "/work?times=40&broken=b")
    stage.notes["ejected_at"] = time.monotonic()
    statuses = Counter(answer["status"] for answer in answers)
    assert 2 <= statuses[500] <= 3, f"{statuses[500]} calls met the failing instance"
    last = Counter(answer["body"].get("instance") for answer in answers[-20:])
    assert set(last) == {"a"}, f"the last 20 calls went to {dict(last)}"
    return Measured(
        f"{statuses[500]} errors, then {statuses[200]} of {statuses[200]} calls answered by a",
        {"errors": statuses[500]},
    )


async def rotation(stage: Stage) -> Measured:
    """Certificates are replaced under load; the route has no retries."""
    processes = ("billing", "api-a", "api-b")
    before = [await stage.metric(process, "proxyless_identity_expiry_timestamp_seconds") for process in processes]
    total = 0
    end = time.monotonic() + 25
    while time.monotonic() < end:
        statuses = (await stage.get("billing", "/load?seconds=2"))["statuses"]
        total += sum(statuses.values())
        assert set(statuses) == {"200"}, f"{statuses}"
        after = [await stage.metric(process, "proxyless_identity_expiry_timestamp_seconds") for process in processes]
        if all(new > old for new, old in zip(after, before, strict=True)):
            break
    else:
        raise AssertionError(f"certificates were not replaced: {before} {after}")
    # And once more with the new ones, on connections that are made anew.
    statuses = (await stage.get("billing", "/load?seconds=1"))["statuses"]
    total += sum(statuses.values())
    assert set(statuses) == {"200"}, f"{statuses}"
    return Measured(
        f"{total} calls, 0 errors, while {', '.join(processes)} got new certificates", {"calls": total, "errors": 0}
    )


async def return_after_ejection(stage: Stage) -> Measured:
    """After 30 s (and the next 10 s tick) the endpoint is back."""
    ejected_at = stage.notes["ejected_at"]

    async def back() -> bool:
        answers = await stage.get("billing", "/work?times=10")
        assert all(answer["status"] == 200 for answer in answers)
        return any(answer["body"]["instance"] == "b" for answer in answers)

    await stage.until("b answers again", back, timeout=45)
    away = time.monotonic() - ejected_at
    assert away > 29, f"b was back after {away:.0f} s"
    await asyncio.sleep(0)
    return Measured(f"b answers again after {away:.0f} s", {"seconds": away})


STEPS = [
    Step("canary", "90 % of the calls to payments.myapp.com go to v1, 10 % to v2", canary),
    Step("authorization", "only billing may call payments, and only with its certificate", authorization),
    Step("ejection", "two errors take an endpoint of my-service out of use", ejection),
    Step("gateway", "api.myapp.com/v1 from outside, through the gateway", gateway),
    Step("external service", "a ServiceEntry routes HTTPS to the outside", external),
    Step("retry", "a dead endpoint of api-service costs no call; round robin over the others", round_robin_and_retry),
    Step("timeout", "an attempt at my-service ends after 2 s", per_try_timeout),
    Step("rotation", "certificates are replaced under load without an error", rotation),
    Step("canary edited", "90/10 becomes 50/50 while everything runs", half),
    Step("return", "the ejected endpoint comes back after 30 s", return_after_ejection),
]
