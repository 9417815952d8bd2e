"""Options: frozen dataclasses whose fields are flags of the command line and keys of config.json.

A thing that is chosen by name (a core, an estimator) has a :class:`Config` beside it: its options,
their bounds, and ``build``, which makes it. What belongs together in a run is an :class:`OptionGroup`,
in which some fields are a choice among the Configs of a :class:`Registry`. It is made and read flat:

    CopyOptions(core="skip", skip_cost=0.1, lr=1e-3).skip_cost
"""

import ast
import dataclasses
import importlib
import math
import os
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

Field = dataclasses.Field


def option(
    default: Any,
    help: str,
    unit: str | None = None,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
    words: tuple[str, ...] = (),
    many: Callable[[str], Any] | None = None,
    shown: str | None = None,
    remembered: bool = True,
    place: bool = False,
    may_change: bool = False,
    needs: str | None = None,
) -> Any:
    """A dataclass field that is also a flag.

    unit: what a number counts; the placeholder in --help.
    at_least, at_most, above, below: bounds of a number.
    words: what may stand in the place of a number.
    many: takes several words, each read by this; the value is a tuple.
    shown: what --help calls the default, where the value itself says little.
    remembered: whether another value makes it another run (budgets and threads don't).
    place: it says where data is: remembered, but data is known by its content.
    may_change: a run can go on with another value, from where it is, if that is asked for.
    needs: an attribute that the Config of one of the choices must have true for this to mean
        something: "fitted", an estimator that learns.
    """
    return dataclasses.field(default=default, metadata={**locals(), "registry": None})


def choice(registry: "Registry", default: str, help: str, **defaults: Any) -> Any:
    """A field whose value is a Config of ``registry``, made of its name and of its own options.

    defaults: of options of whichever is chosen, in the place of their own.
    """
    metadata = option(default, help, "NAME", shown=default).metadata
    metadata = {**metadata, "registry": registry, "defaults": defaults}
    return dataclasses.field(default=default, metadata=metadata)


def changed(options: type, name: str, **changes: Any) -> Any:
    """The option of that name in another dataclass, with another default, help, ..."""
    field = fields_of(options)[name]
    default = changes.pop("default", field.default)
    return dataclasses.field(default=default, metadata={**field.metadata, **changes})


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def key_value(text: str) -> tuple[str, Any]:
    """Reads KEY=VALUE, with VALUE a Python literal or else a word."""
    key, equals, value = text.partition("=")
    if not (key.isidentifier() and equals):
        raise ValueError(f"must be KEY=VALUE; got {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


class Config:
    """A frozen dataclass of options, each checked against its type and bounds as it is made.

    A subclass that is given a ``name`` enters the registry of its kind under it; the first line of
    its docstring is what --help says of it.
    """

    name: ClassVar[str] = ""
    registry: ClassVar["Registry"]
    spell: ClassVar[Callable[[str], str]] = staticmethod(flag)  # how an error calls an option

    def __init_subclass__(cls, name: str | None = None, **keywords: Any):
        super().__init_subclass__(**keywords)
        own = vars(cls).get("__annotations__", {})
        for field, kind in own.items():
            if isinstance(kind, str):  # from __future__ import annotations
                own[field] = eval(kind, vars(sys.modules[cls.__module__]))
        if "registry" in vars(cls):
            cls.registry.base = cls
        if name is not None:
            cls.name = name
            cls.registry.enter(cls)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = tupled(getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            if field.metadata["registry"] is None:
                check(self.spell(field.name), value, field)

    def __str__(self) -> str:
        return self.name

    @classmethod
    def summary(cls) -> str:
        return (cls.__doc__ or "").split("\n")[0].rstrip(".")


def tupled(value: Any) -> Any:
    """Lists, which JSON has for tuples, as tuples."""
    return tuple(map(tupled, value)) if isinstance(value, (list, tuple)) else value


NAMES = {int: "an int", float: "a number", str: "a word", bool: "true or false"}


def check(name: str, value: Any, field: Field) -> None:
    """Raises ValueError, saying what was expected, for a value that is not for this option."""
    rule = field.metadata
    kinds = typing.get_args(field.type) or (field.type,)
    if value is None and type(None) in kinds:
        return
    if tuple in kinds:
        if rule["many"] is key_value:
            pairs = value.items() if isinstance(value, dict) else value
            if isinstance(pairs, str) or not all(isinstance(p, tuple) and len(p) == 2 for p in pairs):
                raise ValueError(f"{name} must be pairs of a name and a value; got {value!r}")
            return
        if not isinstance(value, tuple):
            raise ValueError(f"{name} must be a list; got {value!r}")
        kinds = (rule["many"], *([str] if rule["words"] else []))
    for one in value if isinstance(value, tuple) else (value,):
        check_one(name, one, rule, kinds)


def check_one(name: str, value: Any, rule: Mapping, kinds: tuple) -> None:
    if rule["choices"]:
        if value not in rule["choices"]:
            raise ValueError(f"{name} must be one of {', '.join(rule['choices'])}; got {value!r}")
        return
    if rule["words"] and value in rule["words"]:
        return
    wanted = [kind for kind in kinds if kind in NAMES and not (kind is str and rule["words"])]
    takes = (*wanted, int) if float in wanted else tuple(wanted)
    if type(value) is bool and bool not in wanted or not isinstance(value, takes):
        least = "" if rule["at_least"] is None else f" of at least {rule['at_least']}"
        expected = [*(NAMES[kind] + least for kind in wanted), *map(repr, rule["words"])]
        raise ValueError(f"{name} must be {' or '.join(expected)}; got {value!r}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite; got {value}")
    if rule["at_least"] is not None and value < rule["at_least"]:
        raise ValueError(f"{name} must be at least {rule['at_least']}; got {value}")
    if rule["at_most"] is not None and value > rule["at_most"]:
        raise ValueError(f"{name} must be at most {rule['at_most']}; got {value}")
    if rule["above"] is not None and value <= rule["above"]:
        raise ValueError(f"{name} must be above {rule['above']}; got {value}")
    if rule["below"] is not None and value >= rule["below"]:
        raise ValueError(f"{name} must be below {rule['below']}; got {value}")


class Registry(Mapping[str, type[Config]]):
    """The Configs of a kind by their names, in alphabetical order.

    kind: what errors call it, and the flag that chooses one: "core". base: the class that all inherit
    from.
    """

    base: type[Config]

    def __init__(self, kind: str):
        self.kind = kind
        self.known: dict[str, type[Config]] = {}
        self.own: dict[str, type[Config]] = {}

    def enter(self, config: type[Config]) -> None:
        if self.known.setdefault(config.name, config) is not config:
            raise ValueError(f"there are two of the {self.kind} {config.name}")

    def __getitem__(self, name: str) -> type[Config]:
        """Of a name that is entered, or of a class that is not: "package.module:Class".

        Such a class is a Config of the kind, or has one as its attribute Config, or is what
        ``base.of_class`` makes one of. Raises KeyError for a name that is not entered, ValueError
        for a class that can't be found or is of another kind.
        """
        if ":" in name and name not in self.known:
            self.own[name] = self.own.get(name) or self.of_class(name)
        return self.own.get(name) or self.known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.known))

    def __len__(self) -> int:
        return len(self.known)

    def of_class(self, name: str) -> type[Config]:
        found, base = imported(name, flag(self.kind)), self.base
        config = getattr(found, "Config", found)
        if not (isinstance(config, type) and issubclass(config, base)):
            config = base.of_class(found, name)
        return type(config.__name__, (config,), {"name": name, "__doc__": config.__doc__})


def imported(name: str, told: str) -> Any:
    """The object at "package.module:name"; the working folder is looked in last."""
    module, _, attribute = name.partition(":")
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{told} must be a name or package.module:Class; got {name!r}: {error}") from None
    finally:
        if added:
            sys.path.remove(here)


class OptionGroup(Config):
    """Options of a run, in which some fields are choices; made, read and replaced flat.

    Raises ValueError, naming the flag, for an option that there is none of, or that does not go with
    what is chosen.
    """

    def __init__(self, **values: Any):
        values, fields = self.completed(values), dataclasses.fields(self)
        for field in fields:
            if field.metadata["registry"] is not None:
                object.__setattr__(self, field.name, chosen(field, values))
        for field in fields:
            if field.metadata["registry"] is None:
                object.__setattr__(self, field.name, values.pop(field.name, field.default))
        for name in values:
            raise ValueError(misplaced(type(self), name, self.choices()))
        self.__post_init__()

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = self.choices()
        for field in dataclasses.fields(self):
            if getattr(self, field.name) != field.default and not goes(field, choices):
                raise ValueError(misplaced(type(self), field.name, choices))

    def __getattr__(self, name: str) -> Any:
        for config in self.choices().values():
            if name in fields_of(config):
                return getattr(config, name)
        raise AttributeError(f"{type(self).__name__} has no option {name}")

    @classmethod
    def completed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The values with what some of them choose without naming it."""
        return values

    def choices(self) -> dict[str, Any]:
        """What is chosen, by the field's name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Config)}

    def but(self, **changes: Any) -> "OptionGroup":
        """With some options changed; what does not go with another choice then goes with the old one.

        Raises ValueError where one of ``changes`` does not go with what is chosen.
        """
        usual = dict((field.name, default) for field, default in listed(type(self), self.choices()))
        values = {name: value for name, value in flat(self).items() if value != usual[name]}
        return type(self)(**{**fitting(type(self), {**values, **changes}), **changes})


def fields_of(config: Any) -> dict[str, Field]:
    """The fields of a dataclass or of its object by name."""
    return {field.name: field for field in dataclasses.fields(config)}


def chosen(field: Field, values: dict[str, Any]) -> Config:
    """Makes what a choice chooses of its options among the values, which it takes from there."""
    value = values.pop(field.name, field.default)
    registry = field.metadata["registry"]
    if not isinstance(value, registry.base):
        kind = kind_of(field, value)
        known = fields_of(kind)
        check_words(field, kind, values)
        usual = {k: v for k, v in field.metadata["defaults"].items() if k in known}
        return kind(**{**usual, **{name: values.pop(name) for name in known if name in values}})
    own = {name: values.pop(name) for name in fields_of(value) if name in values}
    return dataclasses.replace(value, **own) if own else value


def check_words(field: Field, kind: type[Config], values: Mapping[str, Any]) -> None:
    """Raises ValueError for a word in the place of a number that only others of the choice take."""
    for name, own in fields_of(kind).items():
        word = values.get(name)
        if isinstance(word, str) and own.metadata["words"] == ():
            others = [
                other
                for other, config in field.metadata["registry"].items()
                if name in fields_of(config) and word in fields_of(config)[name].metadata["words"]
            ]
            if others:
                asked = f"{flag(field.name)} {' or '.join(others)} only; got {kind.name}"
                raise ValueError(f"{flag(name)} {word} goes with {asked}")


def kind_of(field: Field, name: Any) -> type[Config]:
    """The Config that a choice calls by this name. Raises ValueError where there is none."""
    registry = field.metadata["registry"]
    if isinstance(name, Config):
        return type(name)
    if not isinstance(name, str) or ":" not in name and name not in registry.known:
        raise ValueError(f"{flag(field.name)} must be one of {', '.join(registry)}; got {name!r}")
    return registry[name]


def kinds_of(options: type[OptionGroup], values: Mapping[str, Any]) -> dict[str, type[Config]]:
    """The Configs that these values choose, by the fields' names."""
    values = options.completed(dict(values))
    return {
        field.name: kind_of(field, values.get(field.name, field.default))
        for field in dataclasses.fields(options)
        if field.metadata["registry"] is not None
    }


def goes(field: Field, choices: Mapping[str, Any]) -> bool:
    needs = field.metadata["needs"]
    return needs is None or any(getattr(config, needs, False) for config in choices.values())


def listed(options: type[OptionGroup], choices: Mapping[str, Any]) -> Iterator[tuple[Field, Any]]:
    """Every option that goes with these choices, those of each choice after it, and its default."""
    for field in dataclasses.fields(options):
        if goes(field, choices):
            yield field, field.default
        if field.metadata["registry"] is not None:
            for own in dataclasses.fields(choices[field.name]):
                yield own, field.metadata["defaults"].get(own.name, own.default)


def every_option(options: type[OptionGroup]) -> dict[str, list[Field]]:
    """All options by name, those of every Config that can be chosen too."""
    found: dict[str, list[Field]] = {}
    for field in dataclasses.fields(options):
        found.setdefault(field.name, []).append(field)
        for config in (field.metadata["registry"] or {}).values():
            for own in dataclasses.fields(config):
                found.setdefault(own.name, []).append(own)
    return found


def fitting(options: type[OptionGroup], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that go with what they choose."""
    names = {field.name for field, _ in listed(options, kinds_of(options, values))}
    return {name: value for name, value in values.items() if name in names}


def misplaced(options: type[OptionGroup], name: str, choices: Mapping[str, Config]) -> str:
    """What is wrong with an option that does not go with what is chosen, or that there is none of."""
    for field in dataclasses.fields(options):
        if field.metadata["registry"] is None:
            continue
        own = fields_of(options).get(name)
        needs = None if own is None else own.metadata["needs"]
        allowed = [
            kind
            for kind, config in field.metadata["registry"].items()
            if name in fields_of(config) or needs and getattr(config, needs, False)
        ]
        if allowed:
            asked = f"{flag(field.name)} {choices[field.name]}"
            return f"{flag(name)} goes with {flag(field.name)} {' or '.join(allowed)} only; got {asked}"
    return f"there is no option {flag(name)}"


def flat(options: OptionGroup) -> dict[str, Any]:
    """Every option that goes with what is chosen, and its value; of a choice, its name."""
    found = {}
    for field, _ in listed(type(options), options.choices()):
        value = getattr(options, field.name)
        found[field.name] = value.name if isinstance(value, Config) else value
    return found
