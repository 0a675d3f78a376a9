"""Reads the YAML documents that people write and checks them against their JSON schemas.

A schema's `description` is what an error shows as expected, `x-next-step` what it advises, and `x-secret` keeps a value
out of the message.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from gatepost.errors import GatepostError

_DECIMAL = re.compile(r"0|[1-9][0-9]*")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LOCAL_PART = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


class _AsWritten(str):
    """An integer that YAML parsers read differently, such as 0465 or 22:25; no schema takes it for an integer."""

    def __repr__(self) -> str:
        return str(self)


class _Loader(yaml.SafeLoader):
    """YAML as Ansible, Terraform and we all read it the same: no octal or base-60 integers, no key twice."""


def _integer(_loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | _AsWritten:
    # YAML 1.1 makes 22:25 into 1345 and 025 into 21; Terraform's YAML 1.2 does not.
    return int(node.value) if _DECIMAL.fullmatch(node.value) else _AsWritten(node.value)


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key, _value in node.value:
        if key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands here twice", key.start_mark)
        seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def read(path: Path, schema: str, *, what: str, next_step: str = "") -> tuple[Any, bytes]:
    """Return the document in `path`, valid by `schemas/SCHEMA.json`, and the bytes that it was read from.

    `what` names the document in errors ("the listener table"), `next_step` is the advice when it cannot be read.

    Raises GatepostError that names file, line and key.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise GatepostError(f"{path}: cannot read {what}: {error.strerror}", next_step=next_step) from error
    try:
        tree = yaml.compose(raw, Loader=_Loader)
        document = yaml.load(raw, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise GatepostError(
            f"{path}{line}: not valid YAML: {error.problem}",
            expected=f"{what} as YAML",
            next_step="Compare indentation, colons and quotes with the shipped file.",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GatepostError(f"{path}: not valid YAML: {error}", expected=f"{what} as YAML") from error
    validate({} if document is None else document, schema, where=str(path), tree=tree)
    return document or {}, raw


def schema_of(name: str) -> dict[str, Any]:
    """Return the JSON schema `schemas/NAME.json` of this package."""
    loaded: dict[str, Any] = json.loads(resources.files("gatepost").joinpath(f"schemas/{name}.json").read_text())
    return loaded


def validate(document: Any, schema: str, *, where: str, tree: yaml.Node | None = None) -> None:
    """Check a document against `schemas/SCHEMA.json`; raise GatepostError for the first thing that is wrong.

    `where` names the document; `tree` is its YAML node graph, from which the line number comes.
    """
    # Here and not above: jsonschema costs 0.1 s, which `gatepost --help` need not pay.
    from jsonschema import Draft202012Validator, FormatChecker

    checker = FormatChecker(formats=())
    for name, function in _FORMATS.items():
        checker.checks(name, raises=ValueError)(function)
    validator = Draft202012Validator(schema_of(schema), format_checker=checker)
    # A misspelt key is also a missing one, and the former says more; otherwise by place, so that the answer is stable.
    errors = sorted(
        validator.iter_errors(document),
        key=lambda e: (list(map(str, e.absolute_path)), e.validator != "additionalProperties", e.message),
    )
    if errors:
        raise _translate(errors[0], where, tree)


def _translate(error: Any, where: str, tree: yaml.Node | None) -> GatepostError:
    path = list(error.absolute_path)
    rule = error.schema
    expected = rule.get("description", "")
    next_step = rule.get("x-next-step", "")
    if error.validator == "additionalProperties":
        known = list(rule["properties"])
        key = next(key for key in error.instance if key not in known)
        close = difflib.get_close_matches(str(key), known, n=1)
        place = _place(where, [*path, key], tree)
        return GatepostError(
            f"{place}: unknown key {key!r}{_in(path)}",
            expected="only " + ", ".join(known),
            next_step=f"Did you mean {close[0]!r}?" if close else "Remove the key.",
        )
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        return GatepostError(
            f"{_place(where, path, tree)}: {missing} is missing{_in(path, error.instance)}",
            expected=rule["properties"].get(missing, {}).get("description", "") or expected,
            next_step=f"Add {missing}.",
        )
    value = "this value" if rule.get("x-secret") else _shown(error.instance)
    found = f"{_place(where, path, tree)}: {dotted(path) or 'the document'}: found {value}"
    if error.validator == "format" and error.cause is not None:
        reason, _, advice = str(error.cause).partition("|")
        found += f": {reason}"
        next_step = advice or next_step
    elif error.validator == "uniqueItems":
        twice = next(item for item in error.instance if error.instance.count(item) > 1)
        found += f", with {twice!r} twice"
        next_step = "Remove one of them."
    elif error.validator == "enum" and isinstance(error.instance, str):
        close = difflib.get_close_matches(error.instance, list(map(str, rule["enum"])), n=1)
        next_step = f"Did you mean {close[0]!r}?" if close else next_step
    return GatepostError(found, expected=expected, next_step=next_step)


def _shown(value: Any) -> str:
    text = "nothing" if value is None or value in ([], {}) else repr(value)
    return text if len(text) <= 120 else text[:117] + "…"


def _in(path: list[Any], instance: Any = None) -> str:
    name = instance.get("name") or instance.get("address") if isinstance(instance, dict) else None
    return f" in {dotted(path)}" + (f" ({name})" if name else "") if path else ""


def dotted(path: Iterable[Any]) -> str:
    """Return a path into a document as people read it: users[2].address, counted from 1."""
    text = ""
    for part in path:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _place(where: str, path: list[Any], tree: yaml.Node | None) -> str:
    line = None
    for part in path:
        if tree is None:
            break
        step: yaml.Node | None = None
        if isinstance(tree, yaml.MappingNode):
            for key, value in tree.value:
                if key.value == str(part):
                    line, step = key.start_mark.line + 1, value
        elif isinstance(tree, yaml.SequenceNode) and isinstance(part, int):
            step = tree.value[part]
            line = step.start_mark.line + 1
        tree = step
    return where if line is None else f"{where}:{line}"


# Formats. Each raises ValueError("what is wrong|what to do"), or returns True; a wrong type is the schema's business.


def check_domain(value: object) -> bool:
    """Whether it is a fully qualified host or domain name in lower case (RFC 1123 §2.1, RFC 5321 §2.3.5)."""
    if not isinstance(value, str):
        return True
    if not value.isascii():
        try:
            raise ValueError(f"not ASCII|Write it as {value.encode('idna').decode()!r} (RFC 5890).")
        except UnicodeError:
            raise ValueError("not ASCII|Write it in its xn-- form (RFC 5890).") from None
    if value != value.lower():
        raise ValueError(f"capital letters|Did you mean {value.lower()!r}?")
    if value.endswith("."):
        raise ValueError(f"a dot at the end|Did you mean {value.rstrip('.')!r}?")
    labels = value.split(".")
    try:
        ipaddress.ip_address(value)
        raise ValueError("an IP address|Write a name; the address comes from the machine.")
    except ValueError as error:
        if "|" in str(error):
            raise
    if len(labels) < 2:
        raise ValueError("only one label|A fully qualified name has at least one dot.")
    if len(value) > 253:
        raise ValueError("longer than 253 characters")
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise ValueError(
                f"{label!r} is not a label of a host name|Letters, digits and inner hyphens, 1 to 63 between two dots."
            )
    if labels[-1].isdigit():
        raise ValueError("the last label is a number")
    return True


def check_mailbox(value: object) -> bool:
    """Whether it is an address that can be a mailbox here.

    A part of RFC 5321's local parts: those that need no quoting in Postfix's maps, Dovecot's and a path, in lower case,
    and without the `+` that separates an address extension.
    """
    if not isinstance(value, str):
        return True
    local, at, domain = value.rpartition("@")
    if not at or not local:
        raise ValueError("not an address|Write it as NAME@DOMAIN.")
    if value != value.lower():
        raise ValueError(f"capital letters|Did you mean {value.lower()!r}? Mail arrives in either case.")
    if not _LOCAL_PART.fullmatch(local) or len(local) > 64:
        raise ValueError(f"{local!r} before the @|Letters, digits, '_', '-' and single dots between them, 64 at most.")
    return check_domain(domain)


def check_cidr(value: object) -> bool:
    """Whether it is a network in CIDR form with no host bits set."""
    if not isinstance(value, str):
        return True
    try:
        if "/" not in value:
            raise ValueError("no prefix length")
        ipaddress.ip_network(value, strict=True)
    except ValueError as error:
        try:
            hint = f"Did you mean {ipaddress.ip_network(value, strict=False)}?"
        except ValueError:
            hint = ""
        raise ValueError(f"not a CIDR: {error}|{hint}") from None
    return True


def check_address_or_name(value: object) -> bool:
    """Whether it is an IP address or a host name."""
    if not isinstance(value, str):
        return True
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return check_domain(value)
    return True


_FORMATS = {
    "domain": check_domain,
    "mailbox": check_mailbox,
    "cidr": check_cidr,
    "address-or-name": check_address_or_name,
}
