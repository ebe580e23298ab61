"""Results as plain data that survives a round trip through JSON, by the fields of their dataclasses. No weights in it.

pydantic reads the types of the fields. It is imported with the first result, so that `--help` stays light.
"""

import math
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from runners.trial import TrialResult
from spaces.errors import SlimfrontError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA_VERSION = 3
_Value = TypeVar("_Value")
# Intermediate networks belong to the trial of their result, which is written once.
_UNWRITTEN = {
    "checkpoint": True,
    "screened": True,
    "trial": {"segment": True, "pool": True, "saved": True},
    "intermediate_networks": {"__all__": {"checkpoint", "screened", "trial", "intermediate_networks"}},
}


class ResultError(SlimfrontError):
    """A search result that cannot be read."""


def to_plain(value: Any, unwritten: Any = None) -> Any:
    """Turn a value into what JSON gives back: dicts, lists, strings, finite numbers, None for the others.

    Args:
        value: mappings, sequences and dataclasses, nested as they may be; an object of another class becomes its text.
        unwritten: fields that are left out, as pydantic's `exclude`.
    """
    from pydantic_core import from_json, to_json

    return from_json(to_json(value, exclude=unwritten, inf_nan_mode="null", fallback=_mapping_or_text))


def _mapping_or_text(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)


def from_plain(kind: type[_Value], data: Mapping[str, Any]) -> _Value:
    """Read a dataclass back from its fields as plain data.

    Raises:
        ResultError: a field is missing or has another type.
    """
    from pydantic import ValidationError

    try:
        value: _Value = _adapter(kind).validate_python(data)  # type: ignore[arg-type]  # a class can be hashed
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ResultError(f"this is no {kind.__name__} ({place}: {first['msg']}); was the file changed?") from error
    return value


def check_schema(schema: Any, what: str) -> None:
    """Raise ResultError for data of another schema version."""
    if schema != SCHEMA_VERSION:
        raise ResultError(
            f"{what} has schema {schema!r}, this version reads {SCHEMA_VERSION}; read it with the version that wrote it"
        )


def trial_result_to_dict(result: TrialResult) -> dict[str, Any]:
    """Return a trial's result as plain data without weights; an accuracy that is not finite becomes None.

    Mean and standard deviation of a confirmation are added for readers.
    """
    data = to_plain(result, _UNWRITTEN)
    for network, fields in zip(result.networks, (data, *data["intermediate_networks"]), strict=True):
        if network.confirmation is not None:
            fields["confirmation"] |= {"mean": network.confirmation.mean, "std": network.confirmation.std}
    return {"schema": SCHEMA_VERSION, **data}


def trial_result_from_dict(data: Mapping[str, Any]) -> TrialResult:
    """Read back what `trial_result_to_dict` wrote.

    Raises:
        ResultError: data of another schema version, or damaged.
    """
    check_schema(data.get("schema", "older than 3"), "the record of a trial")  # before, records did not say
    try:
        networks = [_with_nan({**network, "trial": data["trial"]}) for network in data["intermediate_networks"]]
        data = _with_nan({**data, "intermediate_networks": networks})
    except KeyError as error:
        raise ResultError(f"the record of a trial has no {error.args[0]!r}; was it changed?") from error
    return from_plain(TrialResult, data)


def _with_nan(network: dict[str, Any]) -> dict[str, Any]:
    """Return the plain data of a network with NaN in place of None for the accuracies of its curve."""
    curve = [
        {**report, "accuracy": math.nan if report["accuracy"] is None else report["accuracy"]}
        for report in network["curve"]
    ]
    return {**network, "curve": curve}


@cache
def _adapter(kind: type) -> "TypeAdapter[Any]":
    """Return the adapter of a dataclass, which takes some milliseconds to build."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
