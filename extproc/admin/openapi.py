"""The description of the admin port that `/openapi.json` gives (OpenAPI 3.1), for tools that make clients and forms."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

import console


def _object(properties: dict[str, Any], *optional: str) -> dict[str, Any]:
    """An object that may have further properties later; those of `optional` may be missing now."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _text(description: str, media_type: str) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": {"type": "string"}}}}


def _parameter(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


_STRING: Final = {"type": "string"}
_NUMBER: Final = {"type": "number"}
_COUNT: Final = {"type": "number", "minimum": 0}
_FLAG: Final = {"type": "boolean"}
_WORD: Final = {"type": ["string", "null"]}
_MAYBE: Final = {"type": ["number", "null"]}
_RESULT: Final = {"type": ["boolean", "null"], "description": "null: Unknown"}
_NAMES: Final = _list(_STRING)
_ERROR: Final = _object({"error": _STRING})
_OPEN: Final[list[Any]] = [{}]
"""Of an operation that needs no token."""


def _counted(*labels: str) -> dict[str, Any]:
    return _list(_object({**dict.fromkeys(labels, _STRING), "count": _COUNT}))


_SHARES: Final = _object({"p50": _MAYBE, "p90": _MAYBE, "p99": _MAYBE})
_SUMMARY: Final = {
    "requests": _COUNT,
    "decisions": _counted("decision", "model", "action"),
    "refused": _counted("reason"),
    "fallbacks": _counted("reason"),
    "unknown": _counted("signal", "reason"),
    "observed": _counted("decision"),
    "answers": _counted("decision", "action"),
    "cache": _counted("decision", "result"),
    "choices": _counted("selector", "model", "why"),
    "candidate": _counted("outcome"),
    "models": _list(
        _object(
            {
                "model": _STRING,
                "requests": _COUNT,
                "answers": _COUNT,
                "errors": _COUNT,
                "money": _COUNT,
                "tokens": {"type": "object", "additionalProperties": _COUNT},
                "first_byte": _SHARES,
                "seconds": _SHARES,
            },
            "first_byte",
            "seconds",
        )
    ),
    "saved": _NUMBER,
    "decision_seconds": _SHARES,
}
_READING: Final = _object(
    {"matched": _RESULT, "score": _MAYBE, "label": _WORD, "error": _WORD, "evidence": _NAMES}, "evidence"
)

SCHEMAS: Final[dict[str, Any]] = {
    "Summary": {
        "description": "What was counted. Names are those of the policy; an empty decision is the default. Money is "
        "in the policy's own, times are seconds.",
        **_object(_SUMMARY),
    },
    "Outcomes": _object(
        {
            "time": {**_NUMBER, "description": "seconds since the epoch"},
            "total": {**_ref("Summary"), "description": "since the router began"},
            "now": _object(
                {
                    "streams": _COUNT,
                    "workers": _COUNT,
                    "budgets": {"type": "object", "additionalProperties": _NUMBER},
                }
            ),
            "points": _list({"allOf": [_object({"time": _NUMBER, "seconds": _NUMBER}), _ref("Summary")]}),
        }
    ),
    "Decision": {
        "description": "One decided request, without any text of it.",
        **_object(
            {
                "key": {**_STRING, "description": "the worker, and the number of the decision there"},
                "time": _NUMBER,
                "request_id": _WORD,
                "decision": {**_WORD, "description": "null: the default, or the model that the request names"},
                "model": {**_WORD, "description": "the model that really answered"},
                "chosen": {**_STRING, "description": "the decision's model, where another one answered"},
                "action": _STRING,
                "status": {"type": ["integer", "null"], "description": "of a refusal"},
                "fallback": _WORD,
                "signals": {"type": "object", "additionalProperties": _READING},
                "rules": _list(_object({"decision": _STRING, "result": _RESULT})),
                "policy": _STRING,
                "us": {**_NUMBER, "description": "microseconds that the decision took"},
                "tenant": _STRING,
                "cache": _STRING,
                "observed": _NAMES,
                "kept": _FLAG,
                "lacking": {"type": "object", "additionalProperties": _NAMES},
                "choice": {"type": "object"},
                "answer": {
                    **_object({"course": _ref("Course")}, "course"),
                    "description": "status, times, tokens and cost of the answer, and how its writer came to it",
                },
                "content": {**_STRING, "description": "with --console-content: the beginning of what the user said"},
            },
            *("chosen", "tenant", "cache", "observed", "kept", "lacking", "choice", "answer", "content"),
        ),
    },
    "Course": {
        "description": "How a stepwise answer or that of a panel came about, without its text. `count` is how many "
        "steps or calls there were; the first 100 are listed.",
        **_object(
            {
                "strategy": _STRING,
                "steps": _list(
                    _object(
                        {
                            "index": _COUNT,
                            "model": {**_STRING, "description": "who wrote it"},
                            "action": {**_STRING, "description": "keep, redo, large, rest, … (docs/stepwise.md)"},
                            "tokens": _COUNT,
                            "characters": {**_COUNT, "description": "how long its text is in the answer"},
                            "score": {**_NUMBER, "description": "how good the draft was thought to be"},
                        },
                        "score",
                    )
                ),
                "redos": _COUNT,
                "settled": {**_WORD, "description": "why steps were not judged any more"},
                "panel": _STRING,
                "calls": _list(
                    _object(
                        {
                            "model": _STRING,
                            "why": _STRING,
                            "prompt_tokens": _COUNT,
                            "completion_tokens": _COUNT,
                            "cost": _COUNT,
                            "released": {**_FLAG, "description": "whether the client got its text"},
                            "began": {**_COUNT, "description": "seconds after the answer's beginning"},
                            "seconds": _COUNT,
                            "error": _STRING,
                        },
                        *("began", "seconds", "error"),
                    )
                ),
                "count": _COUNT,
            },
            *("strategy", "steps", "redos", "settled", "panel", "calls"),
        ),
    },
    "Grade": {
        "description": "Of an answer, by its id; or that it is better than another. With a request's id, who asked.",
        **_object(
            {
                "id": _STRING,
                "score": {**_NUMBER, "minimum": 0, "maximum": 1},
                "better_than": _STRING,
                "tenant": _STRING,
                "session_id": _STRING,
            },
            *("score", "better_than", "tenant", "session_id"),
        ),
    },
    "Learned": _object(
        {
            "decisions": {
                "type": "object",
                "additionalProperties": _object(
                    {
                        "by": _STRING,
                        "size": {**_COUNT, "description": "how many sums a candidate has"},
                        "half_life": {**_COUNT, "description": "hours"},
                        "sums": {"type": "object", "additionalProperties": _list(_NUMBER)},
                        "models": {
                            "type": "object",
                            "description": "what the sums say of each: how many grades count, and its quality by them",
                            "additionalProperties": _object({"grades": _COUNT, "quality": _COUNT}),
                        },
                    },
                    "models",
                ),
            }
        }
    ),
    "Rule": _object(
        {
            "text": _STRING,
            "value": {"enum": ["true", "false", "unknown", "not evaluated"]},
            "signal": _STRING,
            "named": {**_STRING, "description": "the name of a named rule, which is drawn where it stands first"},
            "said": _STRING,
            "of": _list(_ref("Rule")),
        },
        *("signal", "named", "said", "of"),
    ),
    "Tree": _object(
        {
            "tree": _list(
                _object(
                    {
                        "decision": _STRING,
                        "value": {"enum": ["true", "false", "unknown", "kept", "not evaluated"]},
                        "does": _STRING,
                        "notes": _NAMES,
                        "rule": {"anyOf": [_ref("Rule"), {"type": "null"}]},
                    }
                )
            )
        }
    ),
    "Answer": _object(
        {
            "problems": _list(
                _object(
                    {
                        "file": _STRING,
                        "line": _COUNT,
                        "column": _COUNT,
                        "code": _STRING,
                        "severity": {"enum": ["error", "warning"]},
                        "message": _STRING,
                    }
                )
            ),
            "explained": {"type": ["object", "null"], "description": "as `pointsman explain -o json`, and more"},
            "replay": {
                "anyOf": [
                    {"type": "null"},
                    _object(
                        {
                            "decisions": _COUNT,
                            "same": _COUNT,
                            "changed": _COUNT,
                            "untold": _list(_object({"why": _STRING, "count": _COUNT})),
                            "changes": _list(
                                _object({"before": _STRING, "after": _STRING, "count": _COUNT, "keys": _NAMES})
                            ),
                        }
                    ),
                ]
            },
        }
    ),
    "Policy": _object(
        {
            "policy": {**_STRING, "description": "the hash of the file"},
            "default": _STRING,
            "auto": _NAMES,
            "metered": _FLAG,
            "reference": _WORD,
            "models": _list(
                _object(
                    {
                        "name": _STRING,
                        "served": _STRING,
                        "input_price": _COUNT,
                        "output_price": _COUNT,
                        "priced": _FLAG,
                        "context": _MAYBE,
                        "quality": _MAYBE,
                        "capabilities": {"anyOf": [_NAMES, {"type": "null"}]},
                        "fallback": _NAMES,
                    }
                )
            ),
            "signals": _list(
                _object(
                    {
                        "name": _STRING,
                        "kind": _STRING,
                        "cost": _STRING,
                        "inputs": _NAMES,
                        "on": {"enum": ["request", "answer"]},
                        "used_by": _NAMES,
                        "rule": {**_STRING, "description": "of a named rule: what it is"},
                    },
                    "rule",
                )
            ),
            "decisions": _list(
                _object(
                    {
                        "name": _STRING,
                        "on": {"enum": ["request", "answer"]},
                        "rule": _WORD,
                        "action": _STRING,
                        "does": _STRING,
                        "models": _NAMES,
                        "selector": _WORD,
                        "on_unknown": _STRING,
                        "observe": _FLAG,
                        "signals": _NAMES,
                    }
                )
            ),
        }
    ),
}

DESCRIPTION: Final[dict[str, Any]] = {
    "openapi": "3.1.0",
    "info": {
        "title": "Pointsman's admin port",
        "version": version("pointsman"),
        "description": "What the router decides, and why. Properties may be added; none goes away.",
    },
    "security": [{"token": []}],
    "paths": {
        "/livez": {
            "get": {
                "summary": "Whether the event loop runs",
                "security": _OPEN,
                "responses": {"200": _text("It runs.", "text/plain")},
            }
        },
        "/readyz": {
            "get": {
                "summary": "Whether the router can take requests",
                "security": _OPEN,
                "responses": {
                    "200": _json("It can.", _object({"ready": _FLAG, "policy": _STRING})),
                    "503": _json("It cannot.", _object({"ready": _FLAG, "policy": _STRING})),
                },
            }
        },
        "/metrics": {
            "get": {
                "summary": "Metrics for Prometheus",
                "security": _OPEN,
                "responses": {"200": _text("Those of all workers, added up.", "text/plain")},
            }
        },
        "/openapi.json": {
            "get": {
                "summary": "This description",
                "security": _OPEN,
                "responses": {"200": _json("It.", {"type": "object"})},
            }
        },
        "/policy": {
            "get": {
                "summary": "The policy in force",
                "parameters": [
                    _parameter("form", "as it was read, or its parts as an object", enum=["yaml", "json"]),
                ],
                "responses": {
                    "200": {
                        "description": "The policy.",
                        "content": {
                            "application/yaml": {"schema": _STRING},
                            "application/json": {"schema": _ref("Policy")},
                        },
                    }
                },
            }
        },
        "/outcomes": {
            "get": {
                "summary": "What was decided, refused, answered and paid: in all, and in the last quarter of an hour",
                "parameters": [
                    _parameter("after", "only points in time later than this (seconds since the epoch)", type="number")
                ],
                "responses": {"200": _json("The sums.", _ref("Outcomes"))},
            }
        },
        "/debug/decisions": {
            "get": {
                "summary": "The newest decisions, newest first; or all as they are made",
                "parameters": [
                    _parameter("limit", "how many (100; 0 with follow)", type="integer", minimum=0),
                    _parameter("follow", "go on with server-sent events, oldest first", type="string"),
                ],
                "responses": {
                    "200": {
                        "description": "The decisions. An event `missed` counts those that came too quickly.",
                        "content": {
                            "application/json": {"schema": _object({"decisions": _list(_ref("Decision"))})},
                            "text/event-stream": {"schema": _STRING},
                        },
                    },
                    "503": _text("Too many follow.", "text/plain"),
                },
            }
        },
        "/debug/tree": {
            "post": {
                "summary": "The rules that led to a decision, with what each signal read and what was not evaluated",
                "requestBody": {"required": True, "content": {"application/json": {"schema": _ref("Decision")}}},
                "responses": {
                    "200": _json("The decisions of the policy in order.", _ref("Tree")),
                    "409": _json("Another policy is in force by now.", _object({"error": _STRING, "policy": _STRING})),
                },
            }
        },
        "/playground": {
            "post": {
                "summary": "Try a request against a policy, and see what the policy would change",
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": _object(
                                {
                                    "policy": {**_WORD, "description": "a policy's text; null: the one in force"},
                                    "request": {**_WORD, "description": "a body, as text"},
                                    "path": _WORD,
                                    "headers": {"type": ["object", "null"], "additionalProperties": _STRING},
                                    "replay": {"type": ["integer", "null"], "description": "how many decisions"},
                                },
                                *("policy", "request", "path", "headers", "replay"),
                            )
                        }
                    },
                },
                "responses": {
                    "200": _json("What it says.", _ref("Answer")),
                    "404": _text("The router was not started with --playground.", "text/plain"),
                    "503": _json("No answer.", _object({"error": _STRING})),
                },
            }
        },
        "/playground/send": {
            "post": {
                "summary": "Send a request through the gateway, as a client would, and see its answer as it comes",
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": _object(
                                {
                                    "request": {**_STRING, "description": "a body, as text"},
                                    "path": {**_STRING, "description": "of a call that a model answers"},
                                    "headers": {"type": ["object", "null"], "additionalProperties": _STRING},
                                },
                                "headers",
                            )
                        }
                    },
                },
                "responses": {
                    "200": {
                        "description": "Events: `head` (status, headers), `body` (a piece of text, as JSON), and at "
                        "last `end` (seconds, bytes) or `error` (error).",
                        "content": {"text/event-stream": {"schema": _STRING}},
                    },
                    "404": _text("The router was not started with --gateway.", "text/plain"),
                    "503": _text("Several requests are under way.", "text/plain"),
                },
            }
        },
        "/console/state": {
            "get": {
                "summary": "What the console asks for first",
                "responses": {
                    "200": _json(
                        "Whether the router is ready, and what it can do.",
                        _object(
                            {
                                "version": _STRING,
                                "ready": _FLAG,
                                "policy": _STRING,
                                "details": {"type": "object"},
                                "playground": _FLAG,
                                "sends": {**_FLAG, "description": "whether requests can be sent from there"},
                            }
                        ),
                    )
                },
            }
        },
        **{
            path: {
                "get": {
                    "summary": "A file of the console",
                    "security": _OPEN,
                    "responses": {"200": _text("It.", file.content_type.partition(";")[0])},
                }
            }
            for path, file in console.FILES.items()
        },
        "/feedback": {
            "post": {
                "summary": "Grade answers, anybody's, in any number",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": _list(_ref("Grade"))}},
                },
                "responses": {
                    "200": _json(
                        "How many count, and the places of those that do not.",
                        _object({"taken": _COUNT, "refused": _list(_object({"at": _COUNT, "why": _STRING}))}),
                    ),
                    "503": _json("The state store is away; what was taken by then is taken.", _ERROR),
                },
            }
        },
        "/selection": {
            "get": {
                "summary": "What choices have learned from grades",
                "parameters": [_parameter("decision", "of this decision only", type="string")],
                "responses": {
                    "200": _json("It, as POST takes it in.", _ref("Learned")),
                    "503": _json("It cannot be reached.", _ERROR),
                },
            },
            "post": {
                "summary": "Add what was learned elsewhere, or before",
                "requestBody": {"required": True, "content": {"application/json": {"schema": _ref("Learned")}}},
                "responses": {
                    "200": _json("Of how many candidates it was.", _object({"candidates": _COUNT})),
                    "400": _text("It does not fit, and nothing was added.", "text/plain"),
                    "503": _json("It could not be told to all.", _ERROR),
                },
            },
            "delete": {
                "summary": "Forget what choices have learned",
                "parameters": [_parameter("decision", "of this decision only", type="string")],
                "responses": {
                    "200": _json("Whose choices begin anew.", _object({"forgotten": _NAMES})),
                    "503": _json("Some is known still.", _ERROR),
                },
            },
        },
        "/cache": {
            "delete": {
                "summary": "Forget kept answers",
                "parameters": [
                    _parameter("decision", "those of this decision only", type="string"),
                    *(
                        _parameter(scope, f"those of this {scope} only", type="string")
                        for scope in ("tenant", "user", "session")
                    ),
                    _parameter("all", "those that everybody shares", type="string"),
                ],
                "responses": {
                    "200": _json("How many there were.", _object({"dropped": _COUNT})),
                    "503": _json("Some are kept still.", _object({"error": _STRING})),
                },
            }
        },
    },
    "components": {
        "securitySchemes": {
            "token": {"type": "http", "scheme": "bearer", "description": "the token of --admin-token-file"}
        },
        "schemas": SCHEMAS,
    },
}
