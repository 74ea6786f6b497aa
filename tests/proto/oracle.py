"""envoy-data-plane's betterproto2 classes: an independent implementation of the same messages."""

from __future__ import annotations

import warnings
from typing import Any

with warnings.catch_warnings():  # its generated classes use a form of pydantic's validators that newer ones deprecate
    warnings.simplefilter("ignore", DeprecationWarning)
    from envoy_data_plane.envoy.config.core import v3 as core
    from envoy_data_plane.envoy.extensions.filters.http.ext_proc import v3 as filters
    from envoy_data_plane.envoy.service.ext_proc import v3 as ext_proc
    from envoy_data_plane.envoy.type import v3 as types
    from envoy_data_plane.google import protobuf as well_known

__all__ = ["core", "ext_proc", "filters", "from_struct", "headers_of", "struct", "types", "well_known"]


def struct(value: dict[str, Any]) -> well_known.Struct:
    """A Struct of plain Python values."""
    return well_known.Struct(fields={key: _value(item) for key, item in value.items()})


def _value(item: Any) -> well_known.Value:
    if item is None:
        return well_known.Value(null_value=well_known.NullValue.NULL_VALUE)
    if isinstance(item, bool):
        return well_known.Value(bool_value=item)
    if isinstance(item, (int, float)):
        return well_known.Value(number_value=float(item))
    if isinstance(item, str):
        return well_known.Value(string_value=item)
    if isinstance(item, dict):
        return well_known.Value(struct_value=struct(item))
    return well_known.Value(list_value=well_known.ListValue(values=[_value(one) for one in item]))


def from_struct(message: well_known.Struct) -> dict[str, Any]:
    """The plain Python values of a Struct."""
    return {key: _plain(item) for key, item in message.fields.items()}


def _plain(item: well_known.Value) -> Any:
    for name in ("bool_value", "number_value", "string_value"):
        value = getattr(item, name)
        if value is not None:
            return value
    if item.struct_value is not None:
        return from_struct(item.struct_value)
    if item.list_value is not None:
        return [_plain(one) for one in item.list_value.values]
    return None


def headers_of(header_map: core.HeaderMap) -> dict[str, str]:
    """Names and texts of a HeaderMap."""
    return {header.key: header.value or header.raw_value.decode() for header in header_map.headers}
