"""Telemetry (istio.telemetry.v1alpha1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from .common import Duration, Limit, PolicyTargetReference, Range, WorkloadSelector

__all__ = [
    "AccessLogging",
    "AccessLoggingFilter",
    "CustomTag",
    "MetricSelector",
    "Metrics",
    "MetricsOverrides",
    "ModeSelector",
    "ProviderRef",
    "TagEnvironment",
    "TagHeader",
    "TagLiteral",
    "TagOverride",
    "Telemetry",
    "Tracing",
]

WorkloadMode = Literal["CLIENT_AND_SERVER", "CLIENT", "SERVER"]
Metric = Literal[
    "ALL_METRICS",
    "REQUEST_COUNT",
    "REQUEST_DURATION",
    "REQUEST_SIZE",
    "RESPONSE_SIZE",
    "TCP_OPENED_CONNECTIONS",
    "TCP_CLOSED_CONNECTIONS",
    "TCP_SENT_BYTES",
    "TCP_RECEIVED_BYTES",
    "GRPC_REQUEST_MESSAGES",
    "GRPC_RESPONSE_MESSAGES",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderRef:
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeSelector:
    mode: WorkloadMode = "CLIENT_AND_SERVER"


@dataclass(frozen=True, slots=True, kw_only=True)
class TagLiteral:
    """Also the form of a formatter tag."""

    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TagEnvironment:
    name: str
    default_value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TagHeader:
    name: str
    default_value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomTag:
    """One of the four."""

    literal: TagLiteral | None = None
    environment: TagEnvironment | None = None
    header: TagHeader | None = None
    formatter: TagLiteral | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    match: ModeSelector | None = None
    providers: tuple[ProviderRef, ...] = ()
    random_sampling_percentage: Annotated[float, Range(0, 100)] | None = None
    disable_span_reporting: bool | None = None
    custom_tags: Mapping[str, CustomTag] = field(default_factory=dict)
    use_request_id_for_trace_sampling: bool | None = None
    enable_istio_tags: bool | None = None
    disable_context_propagation: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSelector:
    """``metric`` and ``custom_metric`` exclude each other; neither is ALL_METRICS."""

    metric: Metric | None = None
    custom_metric: Annotated[str, Limit(4096, minimum=1)] | None = None
    mode: WorkloadMode = "CLIENT_AND_SERVER"


@dataclass(frozen=True, slots=True, kw_only=True)
class TagOverride:
    """UPSERT needs a CEL ``value``, REMOVE must not have one."""

    operation: Literal["UPSERT", "REMOVE"] = "UPSERT"
    value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsOverrides:
    match: MetricSelector | None = None
    disabled: bool | None = None
    tag_overrides: Mapping[str, TagOverride] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    providers: tuple[ProviderRef, ...] = ()
    overrides: tuple[MetricsOverrides, ...] = ()
    reporting_interval: Duration | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessLoggingFilter:
    """A CEL expression over the request and response."""

    expression: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessLogging:
    match: ModeSelector | None = None
    providers: tuple[ProviderRef, ...] = ()
    disabled: bool | None = None
    filter: AccessLoggingFilter | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    selector: WorkloadSelector | None = None
    target_ref: PolicyTargetReference | None = None
    target_refs: Annotated[tuple[PolicyTargetReference, ...], Limit(16)] = ()
    tracing: tuple[Tracing, ...] = ()
    metrics: tuple[Metrics, ...] = ()
    access_logging: tuple[AccessLogging, ...] = ()
