"""Wrong settings in plain words: what was expected, and what was given, instead of pydantic's own texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from featbench.store.documents import brief

_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "names with values",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "missing": "a value, and there is none",
    "model_attributes_type": "settings with values",
    "model_type": "settings with values",
    "path_type": "a path",
    "string_pattern_mismatch": "letters, digits, '_', '.' and '-', the first no '.' or '-'",
    "string_type": "text",
    "too_long": "at most {max_length} values",
    "too_short": "at least {min_length} values",
    "tuple_type": "a list",
}
"""By the type that pydantic gives a fault; names in braces are its context."""


def describe(faults: Sequence[Mapping[str, Any]]) -> str:
    """Describe the faults of one setting; where it may have one of several types, there is one fault for each.

    Parameters
    ----------
    faults : sequence of mapping
        As `pydantic.ValidationError.errors` lists them.

    Examples
    --------
    >>> describe([{"type": "int_parsing", "loc": ("k",), "msg": "Input should be ...", "input": "ten"}])
    "expected a whole number; got 'ten'"
    """
    said = [fault for fault in faults if fault["type"] not in _EXPECTED]
    if said:  # a rule of our own, which says it best
        text = str(said[0]["msg"]).removeprefix("Value error, ")
        return text if "; got " in text else f"{text}; got {brief(said[0]['input'])}"
    expected = [_EXPECTED[fault["type"]].format(**fault.get("ctx", {})) for fault in faults]
    return f"expected {' or '.join(dict.fromkeys(expected))}; got {brief(_whole(faults))}"


def _whole(faults: Sequence[Mapping[str, Any]]) -> Any:
    """What was given: the inputs of all faults are the same, unless one is within another."""
    return min((fault for fault in faults), key=lambda fault: len(fault["loc"]))["input"]
