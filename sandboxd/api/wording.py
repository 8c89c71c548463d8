"""What a value must be, said as people do: msgspec's own sentences speak of its types."""

import enum
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from msgspec import Meta, Struct, UnsetType


class _Alternative(NamedTuple):
    """One of the types that a value may have, and what it must satisfy besides."""

    kind: Any
    rules: tuple[Meta, ...]


_NAMES: dict[Any, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    types.NoneType: "null",
}


def must_be(expected: Any, value: object) -> str:
    """A sentence without its subject, for a value that is not of the type `expected`."""
    alternatives = tuple(_alternatives(expected, ()))
    for alternative in alternatives:
        if _is_of(value, alternative.kind):
            for rule in alternative.rules:
                if (broken := _broken(rule, value)) is not None:
                    return broken
    words = [word for each in alternatives if (word := _name(each.kind)) != "null"]
    for each in alternatives:
        if choices := _choices(each.kind):
            return f"must be one of: {', '.join(choices)}"
    if "a number" in words and "a whole number" in words:
        words.remove("a whole number")
    return f"must be {' or '.join(words)}"


def _alternatives(expected: Any, rules: tuple[Meta, ...]) -> Iterator[_Alternative]:
    origin = get_origin(expected)
    if origin is Annotated:
        inner, *extras = get_args(expected)
        yield from _alternatives(
            inner, (*rules, *(extra for extra in extras if isinstance(extra, Meta)))
        )
    elif origin in (Union, types.UnionType):
        for option in get_args(expected):
            yield from _alternatives(option, rules)
    elif origin is Literal:
        yield _Alternative(expected, rules)
    elif expected is not UnsetType:
        yield _Alternative(origin or expected, rules)


def _is_of(value: object, kind: Any) -> bool:
    """Whether JSON's type of the value is right; bool is no number there."""
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(kind, type) and isinstance(value, kind)


def _broken(rule: Meta, value: Any) -> str | None:
    """What the value must be by a rule that it breaks."""
    if isinstance(value, int | float):
        if rule.ge is not None and value < rule.ge:
            return f"must be at least {rule.ge}"
        if rule.le is not None and value > rule.le:
            return f"must be at most {rule.le}"
        if rule.gt is not None and value <= rule.gt:
            return f"must be more than {rule.gt}"
        if rule.lt is not None and value >= rule.lt:
            return f"must be less than {rule.lt}"
        return None
    unit = "characters" if isinstance(value, str) else "items"
    if rule.min_length is not None and len(value) < rule.min_length:
        return "must not be empty" if not value else f"must have at least {rule.min_length} {unit}"
    if rule.max_length is not None and len(value) > rule.max_length:
        return f"must have at most {rule.max_length} {unit}"
    if rule.pattern is not None:
        return f"must have the form {rule.pattern}"
    return None


def _choices(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return [str(member.value) for member in kind]
    return []


def _name(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, Struct):
        return "an object"
    return _NAMES.get(kind, "a text")
