"""A raw record, as a data set has it: its values, and why it cannot be used."""

from collections.abc import Mapping
from numbers import Number
from typing import Any

from step_jepa.data.steps import final_answer

RawRecord = dict[str, Any]


class Rejected(ValueError):
    """A raw record that cannot be used, and why: "what: detail"."""


def plain(value: Any) -> Any:
    """Values as JSON has them: arrays of numpy and pandas become lists, and what is missing there (NaN) None."""
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if value != value or type(value).__name__ == "NAType" else value


def column(raw: Mapping[str, Any], name: str) -> Any:
    """What stands under a name, which "a.b" may take from an object inside; None where there is nothing."""
    if name in raw or "." not in name:
        return raw.get(name)
    outer, _, inner = name.partition(".")
    inside = raw.get(outer)
    return column(inside, inner) if isinstance(inside, Mapping) else None


def required_text(raw: RawRecord, key: str) -> str:
    """The text under a key. Raises Rejected where there is none."""
    text = raw.get(key)
    if not isinstance(text, str) or not text.strip():
        raise no_text(raw, key)
    return text


def no_text(raw: RawRecord, key: str) -> Rejected:
    """Why there is no text under a key."""
    value = column(raw, key)
    kind = "an object" if isinstance(value, dict) else f"a list of {len(value)}" if isinstance(value, list) else value
    what = "it is null" if value is None and key in raw else f"it is {kind}" if value is not None else ""
    return Rejected(f"{key} is missing, empty or not text" + (f": {what}" if what and str(kind).strip() else ""))


def required_texts(raw: RawRecord, key: str) -> list[str]:
    """The list of texts under a key. Raises Rejected where there is none."""
    texts = raw.get(key)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Rejected(f"{key} is not a list of texts")
    return texts


def short_answer(raw: RawRecord, key: str) -> str | None:
    """The ground truth under a key, as `final_answer` gives it, also where it stands behind "####" or in a box; None
    where there is none. Raises Rejected for anything but text and numbers: of several values one cannot know which."""
    truth = raw.get(key)
    if truth is None:
        return None
    if not isinstance(truth, str | Number):
        raise Rejected(f"{key} is neither text nor a number: it is a {type(truth).__name__}, {truth}")
    text = " ".join(str(truth).split())
    return final_answer(text) or final_answer(f"#### {text}")
