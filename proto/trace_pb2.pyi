from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Truth(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UNKNOWN: _ClassVar[Truth]
    FALSE: _ClassVar[Truth]
    TRUE: _ClassVar[Truth]
UNKNOWN: Truth
FALSE: Truth
TRUE: Truth

class Trace(_message.Message):
    __slots__ = ("policy", "received", "api", "requested_model", "body_bytes", "decision", "readings", "rules", "microseconds")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    API_FIELD_NUMBER: _ClassVar[int]
    REQUESTED_MODEL_FIELD_NUMBER: _ClassVar[int]
    BODY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    READINGS_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    MICROSECONDS_FIELD_NUMBER: _ClassVar[int]
    policy: str
    received: float
    api: str
    requested_model: str
    body_bytes: int
    decision: Decision
    readings: _containers.RepeatedCompositeFieldContainer[Reading]
    rules: _containers.RepeatedCompositeFieldContainer[Rule]
    microseconds: float
    def __init__(self, policy: _Optional[str] = ..., received: _Optional[float] = ..., api: _Optional[str] = ..., requested_model: _Optional[str] = ..., body_bytes: _Optional[int] = ..., decision: _Optional[_Union[Decision, _Mapping]] = ..., readings: _Optional[_Iterable[_Union[Reading, _Mapping]]] = ..., rules: _Optional[_Iterable[_Union[Rule, _Mapping]]] = ..., microseconds: _Optional[float] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("name", "action", "model", "status", "fallback")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    name: str
    action: str
    model: str
    status: int
    fallback: str
    def __init__(self, name: _Optional[str] = ..., action: _Optional[str] = ..., model: _Optional[str] = ..., status: _Optional[int] = ..., fallback: _Optional[str] = ...) -> None: ...

class Reading(_message.Message):
    __slots__ = ("signal", "matched", "score", "label", "error", "evidence")
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    MATCHED_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    signal: str
    matched: Truth
    score: float
    label: str
    error: str
    evidence: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, signal: _Optional[str] = ..., matched: _Optional[_Union[Truth, str]] = ..., score: _Optional[float] = ..., label: _Optional[str] = ..., error: _Optional[str] = ..., evidence: _Optional[_Iterable[str]] = ...) -> None: ...

class Rule(_message.Message):
    __slots__ = ("decision", "result")
    DECISION_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    decision: str
    result: Truth
    def __init__(self, decision: _Optional[str] = ..., result: _Optional[_Union[Truth, str]] = ...) -> None: ...
