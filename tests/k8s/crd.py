"""Checks a custom resource as an API server would: structural schema, no unknown fields, CEL rules."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import celpy
from celpy import celtypes
from celpy.adapter import json_to_cel
from jsonschema import Draft202012Validator

from tests import yamls

FOLDER = os.environ.get("POINTSMAN_CRDS", "")
OWN = Path(__file__).parent / "crds"
"""Of the kinds that are not there."""


@functools.cache
def schemas():
    """(group, version, kind) → (schema, has CEL rules)."""
    found = {}
    for path in [*sorted(Path(FOLDER).iterdir()), *sorted(OWN.glob("*.yaml"))]:
        if path.suffix == ".json":
            schema = json.loads(path.read_text())
            group, _, rest = path.name.removesuffix(".schema.json").rpartition("_")[0].rpartition(".")
            version = path.name.removesuffix(".schema.json").rpartition("_")[2]
            found[(group, version, rest)] = schema
            continue
        for document in yamls.load_all(path.read_text()):
            if not document or document.get("kind") != "CustomResourceDefinition":
                continue
            spec = document["spec"]
            for version in spec["versions"]:
                key = (spec["group"], version["name"], spec["names"]["kind"].lower())
                found[key] = version["schema"]["openAPIV3Schema"]
    return found


def schema_of(resource):
    group, _, version = resource["apiVersion"].partition("/")
    return schemas().get((group, version, resource["kind"].lower()))


def problems(resource):
    """What an API server would say against `resource`; KeyError when its CRD is not there."""
    schema = schema_of(resource)
    if schema is None:
        raise KeyError(f"{resource['apiVersion']} {resource['kind']}")
    found = [
        f"{'.'.join(map(str, e.absolute_path))}: {e.message}"
        for e in _validator(resource["apiVersion"], resource["kind"]).iter_errors(resource)
    ]
    return found or list(_cel(schema, _defaulted(schema, resource), ""))


@functools.cache
def _validator(version, kind):
    return Draft202012Validator(_strict(schema_of({"apiVersion": version, "kind": kind}), top=True))


def _strict(schema, top=False):
    """`schema` for jsonschema: unknown fields refused, Kubernetes' own extensions spelt out."""
    out = {
        k: v
        for k, v in schema.items()
        if k
        in (
            "type",
            "enum",
            "pattern",
            "minimum",
            "maximum",
            "required",
            "minItems",
            "maxItems",
            "minLength",
            "maxLength",
            "minProperties",
            "maxProperties",
            "format",
            "const",
            "uniqueItems",
            "exclusiveMinimum",
        )
    }
    for key in ("allOf", "anyOf", "oneOf"):
        if key in schema and not schema.get("x-kubernetes-int-or-string"):
            out[key] = [
                {k: v for k, v in part.items() if k in ("required", "not", "properties", "pattern", "type", "enum")}
                for part in schema[key]
            ]
    if schema.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
        out["type"] = ["integer", "string"]
    out.pop("format", None)
    if schema.get("nullable") and "type" in out:
        out["type"] = [out["type"], "null"]
    if "items" in schema:
        out["items"] = _strict(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        out["additionalProperties"] = _strict(schema["additionalProperties"])
    if "properties" in schema:
        out["properties"] = {k: _strict(v) for k, v in schema["properties"].items()}
        if top:
            out["properties"]["metadata"] = {"type": "object"}
            out["properties"].setdefault("apiVersion", {})
            out["properties"].setdefault("kind", {})
        if not schema.get("x-kubernetes-preserve-unknown-fields") and not schema.get("additionalProperties"):
            out["additionalProperties"] = False
    return out


def _defaulted(schema, value):
    """`value` with the schema's defaults, as an API server fills them in before it runs rules."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        filled = {k: _defaulted(properties.get(k) or _additional(schema), v) for k, v in value.items()}
        for key, below in properties.items():
            if key not in filled and "default" in below:
                filled[key] = _defaulted(below, below["default"])
        return filled
    if isinstance(value, list):
        return [_defaulted(schema.get("items", {}), item) for item in value]
    return value


def _additional(schema):
    more = schema.get("additionalProperties")
    return more if isinstance(more, dict) else {}


def _cel(schema, value, path):
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" in rule["rule"]:
            continue  # about updates
        if not _holds(rule["rule"], value):
            yield f"{path or '.'}: {rule.get('message', rule['rule'])}"
    if isinstance(value, dict):
        for key, item in value.items():
            below = schema.get("properties", {}).get(key) or _additional(schema)
            yield from _cel(below, item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _cel(schema.get("items", {}), item, f"{path}[{index}]")


def _upper(text):
    return celtypes.StringType(text.upper())


@functools.cache
def _environment():
    return celpy.Environment()  # made once: it reads CEL's grammar anew


@functools.cache
def _program(rule):
    # `self` is what Kubernetes calls the value; upperAscii comes from CEL's string extensions.
    environment = _environment()
    return environment.program(environment.compile(rule), functions={"upperAscii": _upper})


def _holds(rule, value):
    return _said(rule, json.dumps(value))


@functools.cache
def _said(rule, text):
    """Of a value in JSON; the same parts stand in many objects."""
    return bool(_program(rule).evaluate({"self": json_to_cel(json.loads(text))}))
