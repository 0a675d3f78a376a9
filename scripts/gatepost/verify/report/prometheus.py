"""The report as Prometheus text, for the node exporter's textfile collector: run from cron, alert on it.

gatepost_requirement is 1 for the verdict that each requirement got; the other metrics are one per server.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from gatepost.verify.model import Report, Severity, Verdict
from gatepost.verify.report import digest

_PLACE = ("host", "id", "listener", "port", "address", "severity", "verdict")


def render(report: Report) -> str:
    """Return the metrics of one server; the host label lets files of several servers lie side by side."""
    report = digest.presentable(report)
    registry = CollectorRegistry()

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"gatepost_{name}", text, ("host", *labels), registry=registry)

    exit_code = gauge("verify_exit_code", "0 passed, 1 a MUST failed, 3 inconclusive or cut short")
    finished = gauge("verify_timestamp_seconds", "When the run ended, in seconds since 1970")
    duration = gauge("verify_duration_seconds", "How long the run took")
    interrupted = gauge("verify_interrupted", "1 when the run was cut short")
    numbers = gauge("verify_results", "Judgements by verdict and severity", "verdict", "severity")
    requirement = Gauge(
        "gatepost_requirement", "1: the verdict of a requirement in one place", _PLACE, registry=registry
    )
    host = report.target.hostname
    exit_code.labels(host).set(int(report.exit_code))
    finished.labels(host).set(report.started.timestamp() + report.seconds)
    duration.labels(host).set(report.seconds)
    interrupted.labels(host).set(report.interrupted)
    for verdict in Verdict:
        for severity in Severity:
            numbers.labels(host, verdict.value, severity.value).set(len(report.of(verdict, severity)))
    for result in report.results:
        requirement.labels(
            host,
            result.id,
            result.listener or "",
            "" if result.port is None else str(result.port),
            result.address or "",
            result.severity.value,
            result.verdict.value,
        ).set(1)
    return generate_latest(registry).decode()
