"""Our schema against envoy-data-plane's: encode with one, decode with the other, every message kind, both ways."""

from __future__ import annotations

import math
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proto import ext_proc_pb2
from tests.proto import oracle

REQUESTS = [field.name for field in ext_proc_pb2.ProcessingRequest.DESCRIPTOR.oneofs_by_name["request"].fields]
RESPONSES = [field.name for field in ext_proc_pb2.ProcessingResponse.DESCRIPTOR.oneofs_by_name["response"].fields]

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: TEXT,
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=12),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False),
    FieldDescriptor.TYPE_INT32: st.sampled_from([0, 100, 200, 403, 404, 413, 500, 511]),  # HttpStatus: an enum there
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
}


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, member: str | None = None, depth: int = 0) -> Message:
    """Random messages of our schema; `member` is set in any case, other members of its oneof are not."""
    message = GetMessageClass(descriptor)()
    for oneof in descriptor.oneofs:
        names = [field.name for field in oneof.fields if depth < 5 or field.message_type is None]
        chosen = member if member in names else draw(st.sampled_from([*names, None]))
        if chosen is not None:
            fill(draw, message, descriptor.fields_by_name[chosen], depth)
    for field in descriptor.fields:
        if field.containing_oneof is None and draw(st.booleans()):
            fill(draw, message, field, depth)
    return message


def fill(draw: st.DrawFn, message: Message, field: FieldDescriptor, depth: int) -> None:
    def value(of: FieldDescriptor) -> Any:
        if of.message_type is not None:
            return draw(messages(of.message_type, depth=depth + 1))
        if of.enum_type is not None:
            return draw(st.sampled_from(sorted(of.enum_type.values_by_number)))
        return draw(SCALARS[of.type])

    if is_map(field):
        entry = field.message_type.fields_by_name["value"]
        for key in draw(st.lists(TEXT, max_size=2 if depth < 4 else 0, unique=True)):
            getattr(message, field.name)[key].CopyFrom(value(entry))
    elif field.is_repeated:
        for _ in range(draw(st.integers(0, 2 if depth < 4 else 0))):
            item = value(field)
            if field.message_type is None:
                getattr(message, field.name).append(item)
            else:
                getattr(message, field.name).add().CopyFrom(item)
    elif field.message_type is not None:
        getattr(message, field.name).SetInParent()
        getattr(message, field.name).CopyFrom(value(field))
    else:
        setattr(message, field.name, value(field))


def assert_same(ours: Message, theirs: Any) -> None:
    """Every field of ours has the same name and value there, and nothing is left that they do not know."""
    assert not theirs._unknown_fields, (type(theirs).__name__, theirs._unknown_fields)
    for field in ours.DESCRIPTOR.fields:
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        if is_map(field):
            assert mine.keys() == other.keys()
            for key in mine:
                assert_same(mine[key], other[key])
        elif field.is_repeated:
            assert len(mine) == len(other)
            for one, another in zip(mine, other, strict=True):
                if field.message_type is None:
                    assert one == another
                else:
                    assert_same(one, another)
        elif field.has_presence and not ours.HasField(field.name):
            assert other is None
        elif field.message_type is not None:
            assert other is not None
            assert_same(mine, other)
        elif field.type == FieldDescriptor.TYPE_DOUBLE:
            assert mine == other or (math.isnan(mine) and math.isnan(other))
        else:
            assert mine == other


ORACLE_SETTINGS = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@pytest.mark.parametrize("member", REQUESTS)
@ORACLE_SETTINGS
@given(st.data())
def test_requests_read_the_same_both_ways(member: str, data: st.DataObject) -> None:
    ours = data.draw(messages(ext_proc_pb2.ProcessingRequest.DESCRIPTOR, member))
    theirs = oracle.ext_proc.ProcessingRequest.parse(ours.SerializeToString())
    assert_same(ours, theirs)
    assert ext_proc_pb2.ProcessingRequest.FromString(bytes(theirs)) == ours


@pytest.mark.parametrize("member", RESPONSES)
@ORACLE_SETTINGS
@given(st.data())
def test_responses_read_the_same_both_ways(member: str, data: st.DataObject) -> None:
    ours = data.draw(messages(ext_proc_pb2.ProcessingResponse.DESCRIPTOR, member))
    theirs = oracle.ext_proc.ProcessingResponse.parse(ours.SerializeToString())
    assert_same(ours, theirs)
    assert ext_proc_pb2.ProcessingResponse.FromString(bytes(theirs)) == ours


def test_fields_that_we_left_out_are_skipped() -> None:
    theirs = oracle.ext_proc.ProcessingResponse(request_drain=True, request_headers=oracle.ext_proc.HeadersResponse())
    assert ext_proc_pb2.ProcessingResponse.FromString(bytes(theirs)).WhichOneof("response") == "request_headers"
