"""The conditions of an experiment: options of `train`, each under its name.

A condition is called an arm in the files and messages that users read.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from step_jepa.errors import UserError

Options = Mapping[str, Any]


def conditions_of(arms: Mapping[str, Any], grid: Mapping[str, Any]) -> dict[str, Options]:
    """The options of every condition by its name.

    Args:
        arms: name -> options of `train`. An arm that names `controls` brings one more condition for each.
        grid: option -> values; multiplies all arms that have a JEPA term.

    Raises:
        UserError: for what is no table or no list.
    """
    for name, values in grid.items():
        if not isinstance(values, list):
            raise UserError(f"grid: {name} is no list of values: write `{name}: [{values}]`")
    conditions: dict[str, Options] = {}
    for name, options in arms.items():
        _check_arm(name, options)
        conditions |= _conditions_of_arm(name, options, grid)
    return conditions


def _check_arm(name: str, options: Any) -> None:
    if not isinstance(options, Mapping):
        raise UserError(f"arms: {name} is no table of options: write `{name}: {{objective: none}}`")
    controls = options.get("controls") or []
    if not isinstance(controls, list):
        raise UserError(f"arms: the controls of {name} are no list: write `controls: [{controls}]`")


def _conditions_of_arm(name: str, options: Options, grid: Mapping[str, Any]) -> dict[str, Options]:
    shared = {key: value for key, value in options.items() if key != "controls"}
    points: Sequence[Options] = [{}] if shared.get("objective") == "none" else list(_points(grid))
    conditions: dict[str, Options] = {}
    for point in points:
        settings = (f"{key}={value}" for key, value in point.items())
        condition = " ".join([name, *settings])
        conditions[condition] = {**shared, **point}
        for control in options.get("controls") or []:
            conditions[f"{condition}.{control}"] = {**shared, **point, "control": control}
    return conditions


def _points(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))
