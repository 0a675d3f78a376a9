"""The report for programs: one JSON document, described by report.schema.json beside this file.

A field keeps its name and meaning within a schema version; new fields may come. Transcripts are part of it, passwords
are not.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema

from gatepost.errors import GatepostError
from gatepost.listeners import Listener
from gatepost.verify.model import (
    Account,
    Diagnosis,
    Layer,
    Line,
    Login,
    Report,
    Result,
    Severity,
    Sight,
    Target,
    Verdict,
)
from gatepost.verify.report import digest

SCHEMA_VERSION = 1
SCHEMA_FILE = Path(__file__).with_name("report.schema.json")


def to_json(report: Report) -> str:
    """Return the report as a JSON document that ends in a newline."""
    return json.dumps(_document(report), indent=2) + "\n"


def several_to_json(reports: Iterable[Report]) -> str:
    """Return the reports of several servers as one document: `reports`, each as :func:`to_json` writes it."""
    # Report by report: of many servers, the whole as Python objects would take more memory than judging them did.
    return '{"reports": [\n' + ",\n".join(to_json(report).rstrip() for report in reports) + "\n]}\n"


def _document(report: Report) -> dict[str, Any]:
    report = digest.presentable(report)
    target = report.target
    return {
        "schema_version": SCHEMA_VERSION,
        "gatepost_version": report.gatepost_version,
        "verdict": digest.OUTCOME[report.exit_code],
        "exit_code": int(report.exit_code),
        "started": report.started.isoformat(),
        "seconds": round(report.seconds, 3),
        "interrupted": report.interrupted,
        "only": list(report.only),
        "skipped": list(report.skipped),
        "allowed": list(report.allowed),
        "target": {
            "hostname": target.hostname,
            "addresses": list(target.addresses),
            "domains": list(target.domains),
            "outside_domain": target.outside_domain,
            "accounts": [{"address": account.address, "alias": account.alias} for account in target.accounts],
            "ca_file": str(target.ca_file) if target.ca_file else None,
            "lab": target.lab,
            "source_addresses": list(target.source_addresses),
            "via": [login.url for login in target.via],
            "sink": list(target.sink),
            "slow": target.slow,
            "limits": target.limits,
        },
        "listeners": {
            "path": str(target.listeners_file),
            "sha256": target.listeners_digest,
            "rows": [
                {
                    "name": listener.name,
                    "port": listener.port,
                    "purpose": listener.purpose,
                    "tls": listener.tls,
                    "sources": list(listener.sources),
                }
                for listener in target.listeners
            ],
        },
        "counts": {verdict.value: len(report.of(verdict)) for verdict in Verdict},
        "sights": [dataclasses.asdict(sight) | {"seconds": round(sight.seconds, 3)} for sight in report.sights],
        "diagnoses": [dataclasses.asdict(d) | {"layer": d.layer.value} for d in report.diagnoses],
        "results": [_result(result) for result in report.results],
    }


def _result(result: Result) -> dict[str, Any]:
    return {
        "id": result.id,
        "listener": result.listener,
        "port": result.port,
        "address": result.address,
        "severity": result.severity.value,
        "verdict": result.verdict.value,
        "title": result.title,
        "found": result.found,
        "expected": result.expected,
        "remedy": result.remedy,
        "source": result.source,
        "problem": result.problem,
        "risk": result.risk,
        "seconds": round(result.seconds, 3),
        "transcript": [
            {"seconds": round(line.seconds, 3), "direction": line.direction, "text": line.text}
            for line in result.transcript
        ],
    }


def from_json(text: str, origin: str = "the report") -> Report:
    """Return the report that a document of :func:`to_json` holds; accounts come back without passwords.

    Raises GatepostError, naming `origin`, where the text is not such a document.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise GatepostError(f"{origin}: not JSON: {error}", expected="what gatepost verify --json wrote") from error
    found = document.get("schema_version") if isinstance(document, dict) else None
    if found != SCHEMA_VERSION:
        raise GatepostError(
            f"{origin}: schema version {found!r}",
            expected=f"schema version {SCHEMA_VERSION}",
            next_step="Run gatepost verify --json again with this version of Gatepost.",
        )
    problem = next(
        jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))).iter_errors(document), None
    )
    if problem is not None:
        raise GatepostError(f"{origin}: {problem.json_path}: {problem.message}", expected=f"as {SCHEMA_FILE} says")
    target, listeners = document["target"], document["listeners"]
    return Report(
        target=Target(
            hostname=target["hostname"],
            addresses=tuple(target["addresses"]),
            listeners=tuple(Listener(**(row | {"sources": tuple(row["sources"])})) for row in listeners["rows"]),
            listeners_file=Path(listeners["path"]),
            listeners_digest=listeners["sha256"],
            domains=tuple(target["domains"]),
            outside_domain=target["outside_domain"],
            accounts=tuple(Account(a["address"], "", a["alias"]) for a in target["accounts"]),
            ca_file=Path(target["ca_file"]) if target["ca_file"] else None,
            lab=target["lab"],
            source_addresses=tuple(target["source_addresses"]),
            via=tuple(Login(url, ()) for url in target.get("via", ())),
            sink=tuple(target.get("sink", ())),
            slow=target.get("slow", False),
            limits=target.get("limits", False),
        ),
        started=datetime.fromisoformat(document["started"]),
        seconds=document["seconds"],
        results=tuple(
            Result(
                **(
                    row
                    | {
                        "severity": Severity(row["severity"]),
                        "verdict": Verdict(row["verdict"]),
                        "transcript": tuple(Line(**line) for line in row["transcript"]),
                    }
                )
            )
            for row in document["results"]
        ),
        gatepost_version=document["gatepost_version"],
        interrupted=document["interrupted"],
        only=tuple(document.get("only", ())),
        skipped=tuple(document.get("skipped", ())),
        allowed=tuple(document.get("allowed", ())),
        sights=tuple(Sight(**row) for row in document.get("sights", ())),
        diagnoses=tuple(Diagnosis(**(row | {"layer": Layer(row["layer"])})) for row in document.get("diagnoses", ())),
    )
