"""Telemetry."""

from __future__ import annotations

from proxyless.controlplane.manifest.context import Context, child_path
from proxyless.controlplane.manifest.model import MetricsOverrides, Telemetry, Tracing

from .authorization import check_targets
from .checks import check_one_of

__all__ = ["check_telemetry"]

_PAIRS = {")": "(", "]": "[", "}": "{"}


def check_telemetry(context: Context, spec: Telemetry) -> None:
    check_targets(context, spec.selector, spec.target_ref, spec.target_refs)
    for index, tracing in enumerate(spec.tracing):
        _check_tracing(context, f"spec.tracing[{index}]", tracing)
    for index, metrics in enumerate(spec.metrics):
        for number, override in enumerate(metrics.overrides):
            _check_override(context, f"spec.metrics[{index}].overrides[{number}]", override)
    for index, logging in enumerate(spec.access_logging):
        if logging.filter is not None and (problem := expression_problem(logging.filter.expression)):
            context.error(f"spec.accessLogging[{index}].filter.expression", f"not a CEL expression: {problem}")


def _check_tracing(context: Context, path: str, tracing: Tracing) -> None:
    if len(tracing.providers) > 1:
        context.error(f"{path}.providers", "one provider of traces at most")
    for name, tag in tracing.custom_tags.items():
        here = child_path(f"{path}.customTags", name)
        if not name:
            context.error(here, "a tag needs a name", code="required")
        values = {
            "literal": tag.literal is not None,
            "environment": tag.environment is not None,
            "header": tag.header is not None,
            "formatter": tag.formatter is not None,
        }
        check_one_of(context, here, values, required=True)


def _check_override(context: Context, path: str, override: MetricsOverrides) -> None:
    match = override.match
    if match is not None:
        check_one_of(
            context,
            f"{path}.match",
            {"metric": match.metric is not None, "customMetric": match.custom_metric is not None},
        )
    for name, tag in override.tag_overrides.items():
        here = child_path(f"{path}.tagOverrides", name)
        if tag.operation == "UPSERT" and not tag.value:
            context.error(f"{here}.value", "UPSERT needs a value", code="required")
        if tag.operation == "REMOVE" and tag.value:
            context.error(f"{here}.value", "REMOVE has no value")
        if tag.value and (problem := expression_problem(tag.value)):
            context.error(f"{here}.value", f"not a CEL expression: {problem}")


def expression_problem(text: str) -> str:
    """A cheap look at a CEL expression: brackets and quotes pair up, and it does not end in an operator."""
    open_brackets: list[str] = []
    quote = ""
    previous = ""
    for character in text:
        if quote:
            if character == quote and previous != "\\":
                quote = ""
        elif character in "'\"":
            quote = character
        elif character in _PAIRS.values():
            open_brackets.append(character)
        elif character in _PAIRS and (not open_brackets or open_brackets.pop() != _PAIRS[character]):
            return f"{character!r} closes nothing"
        previous = "" if previous == "\\" else character
    if quote or open_brackets:
        return f"{quote or open_brackets[-1]!r} is never closed"
    if not text.strip() or text.rstrip().endswith(
        ("+", "-", "*", "/", "%", "&&", "||", "==", "!=", "<", ">", ".", ",", "?", ":", "!")
    ):
        return "it is not complete"
    return ""
