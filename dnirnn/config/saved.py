"""Options as a run folder's config.json holds them, and back."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from dnirnn.groups import OptionGroup, every_option, fitting, flat, listed
from dnirnn.options import fields_of
from dnirnn.training.layout import LAYOUT, upgraded

Kind = TypeVar("Kind", bound=OptionGroup)
BESIDE = {"task", "version", "defaults", "places"}  # keys of every config.json that are no options


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, dict):
        value = tuple(value.items())
    return [plain(one) for one in value] if isinstance(value, tuple) else value


def identity(options: OptionGroup) -> dict[str, Any]:
    """What of the options makes it this run and no other, as JSON values.

    Beside them the version of the layout; "defaults", so that a version with more options, or fewer,
    knows a run whose options stand there; and "places", those that say where data is and not what.
    """
    pairs = [
        (field, default)
        for field, default in listed(type(options), options.choices())
        if field.metadata["identity"]
    ]
    values = flat(options)
    return {
        "version": LAYOUT,
        **{field.name: plain(values[field.name]) for field, _ in pairs},
        "defaults": {field.name: plain(default) for field, default in pairs},
        "places": [field.name for field, _ in pairs if field.metadata["place"]],
    }


def from_config(options: type[Kind], config: Mapping[str, Any]) -> Kind:
    """The options of a run's configuration, which has other things beside."""
    return options(**fitting(options, config))


def changeable(options: type[OptionGroup]) -> tuple[str, ...]:
    """The options that a run can go on with another value of."""
    known = every_option(options)
    return tuple(name for name in known if any(f.metadata["may_change"] for f in known[name]))


def write_values(path: Path, task: str, options: OptionGroup) -> None:
    """Writes all options, budgets and threads too, for :func:`read_values` of another process."""
    values = {name: plain(value) for name, value in flat(options).items()}
    path.write_text(json.dumps({"task": task, "version": LAYOUT, **values}))


def read_values(
    path: Path, task: str, options: type[OptionGroup], found: Collection[str] = ()
) -> dict[str, Any]:
    """The options that a file gives: a run's config.json, or a copy of it that a person edited.

    found: the keys that the task itself adds.

    Raises ValueError, naming the file, for one that is damaged, of another task, or with a key that
    is no option or does not go with what the file chooses.
    """
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"--config {path} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"--config {path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"--config {path} must hold an object; got {config!r:.40}")
    if config.get("task", task) != task:
        raise ValueError(f"--config {path} is of the task {config['task']}; got {task}")
    try:
        config = upgraded(config)
        values = {k: v for k, v in config.items() if k not in BESIDE and k not in found}
        usual = config.get("defaults", {})
        fit = fitting(options, values)
        # An older layout has the options of what is not chosen, too, at their defaults.
        options(**{k: v for k, v in values.items() if k in fit or v != usual.get(k, ...)})
        return fit
    except ValueError as error:
        raise ValueError(f"--config {path}: {error}") from None


def described(options: OptionGroup) -> str:
    """The core that ``options`` name, its size, and what they change of its defaults."""
    core = options.choices().get("core")
    if core is None:
        return f"{options.core} {options.hidden}"
    parts = [core.name if options.parameters else f"{core.name} {core.hidden}"]
    for name, field in fields_of(core).items():
        value = getattr(core, name)
        if name != "hidden" and value != field.default:
            words = value if isinstance(value, tuple) else () if value is True else (value,)
            parts.append(" ".join([name.replace("_", " "), *map(str, words)]))
    return ", ".join(parts)
