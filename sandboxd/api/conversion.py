"""From parsed JSON to msgspec Structs, telling every fault of a value and not only the first."""

import difflib
import enum
import functools
import types
from typing import Any, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec.structs import FieldInfo

from sandboxd.api.wording import must_be
from sandboxd.errors import Fault

MAX_FAULTS = 100
"""More are not listed: a million wrong items must not make a million sentences."""

_StructType = TypeVar("_StructType", bound=msgspec.Struct)


def read_struct(value: object, struct: type[_StructType]) -> tuple[_StructType, list[Fault]]:
    """The value as a `struct`, and what is wrong with it.

    Where there are faults, what could not be read is empty: good enough to look for further faults in the
    rest, never to be acted upon.
    """
    try:
        return msgspec.convert(value, struct), []
    except msgspec.ValidationError:
        faults: list[Fault] = []
        return _walk_struct(value, struct, "", faults), faults[:MAX_FAULTS]


def pointer_to(parent: str, key: str | int) -> str:
    """The JSON pointer (RFC 6901) of a member or item of the value at `parent`."""
    return f"{parent}/{str(key).replace('~', '~0').replace('/', '~1')}"


def _walk(value: object, expected: Any, pointer: str, faults: list[Fault]) -> Any:
    """The value as the type `expected`; faults, and what could not be read left empty, where it cannot be."""
    before = len(faults)
    for option in _options(expected):
        walked = _walk_inside(value, option, pointer, faults)
        if len(faults) > before:
            return walked
    try:
        return msgspec.convert(value, expected)
    except msgspec.ValidationError:  # with every part right, it is about the value itself
        faults.append(Fault(pointer, must_be(expected, value)))
        return _empty(expected)


def _walk_inside(value: object, option: Any, pointer: str, faults: list[Fault]) -> Any:
    """Look at the parts of a value that has any."""
    kind = get_origin(option) or option
    if isinstance(value, dict) and _is_struct(kind):
        return _walk_struct(value, kind, pointer, faults)
    if isinstance(value, list) and kind is list:
        (item_type,) = get_args(option)
        return [
            _walk(item, item_type, pointer_to(pointer, index), faults)
            for index, item in enumerate(value)
            if len(faults) < MAX_FAULTS
        ]
    if isinstance(value, dict) and kind is dict:
        _, item_type = get_args(option)
        return {
            key: _walk(item, item_type, pointer_to(pointer, key), faults)
            for key, item in value.items()
            if len(faults) < MAX_FAULTS
        }
    return None


def _walk_struct(
    value: object, struct: type[_StructType], pointer: str, faults: list[Fault]
) -> _StructType:
    fields = _fields(struct)
    if not isinstance(value, dict):
        faults.append(Fault(pointer, must_be(struct, value)))
        return struct(
            **{field.name: _empty(field.type) for field in fields.values() if field.required}
        )
    values: dict[str, Any] = {}
    for key, item in value.items():
        if len(faults) >= MAX_FAULTS:
            break
        if (field := fields.get(key)) is None:
            faults.append(Fault(pointer_to(pointer, key), _unknown(key, fields)))
        else:
            values[field.name] = _walk(item, field.type, pointer_to(pointer, key), faults)
    for name, field in fields.items():
        if field.required and field.name not in values:
            values[field.name] = _empty(field.type)
            if name not in value:
                faults.append(Fault(pointer_to(pointer, name), "is required"))
    return struct(**values)


@functools.cache
def _fields(struct: type[msgspec.Struct]) -> dict[str, FieldInfo]:
    return {field.encode_name: field for field in msgspec.structs.fields(struct)}


@functools.cache
def _options(expected: Any) -> tuple[Any, ...]:
    """The alternatives of a type, without what only annotates it."""
    while hasattr(expected, "__metadata__"):
        expected = expected.__origin__
    if get_origin(expected) in (Union, types.UnionType):
        return get_args(expected)
    return (expected,)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _empty(expected: Any) -> Any:
    options = _options(expected)
    if type(None) in options:
        return None
    kind = get_origin(options[0]) or options[0]
    if issubclass(kind, enum.Enum):
        return next(iter(kind))
    if _is_struct(kind):
        return _walk_struct({}, kind, "", [])
    return kind()


def _unknown(key: str, fields: dict[str, FieldInfo]) -> str:
    near = difflib.get_close_matches(key[:64], fields, n=1)
    hint = f'; did you mean "{near[0]}"?' if near else ""
    return f"is not a field of this object{hint}"
