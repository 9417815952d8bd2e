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
    identity: bool = True,
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
    identity: whether another value makes it another run (budgets and threads don't).
    place: it says where data is: of the identity, but data is known by its content.
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


def override(options: type, name: str, **changes: Any) -> Any:
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


@dataclasses.dataclass(frozen=True)
class Config:
    """A frozen dataclass of options, each checked against its type and bounds as it is made.

    A subclass that is given a ``name`` enters the registry of its kind under it; the first line of
    its docstring is what --help shows of it.
    """

    name: ClassVar[str] = ""
    registry: ClassVar["Registry"]

    @staticmethod
    def spell(name: str) -> str:
        """How an error calls an option."""
        return flag(name)

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
    def of_class(cls, found: Any, name: str) -> "type[Config]":
        """What makes an object of a person's own class, which has no Config; of most kinds, nothing."""
        raise ValueError(f"{flag(cls.registry.kind)} must name one of these; {name} is {found!r}")

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
            pairs = tuple(value.items()) if isinstance(value, dict) else value
            if not isinstance(pairs, tuple) or not all(isinstance(p, tuple) and len(p) == 2 for p in pairs):
                raise ValueError(f"{name} must be pairs of a name and a value; got {value!r}")
            return
        if not isinstance(value, tuple):
            raise ValueError(f"{name} must be a list; got {value!r}")
        for one in value:
            check_one(name, one, rule, (rule["many"], *([str] if rule["words"] else [])))
        return
    check_one(name, value, rule, kinds)


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


def imported(name: str, flag_text: str) -> Any:
    """The object at "package.module:name"; the working folder is looked in last."""
    module, _, attribute = name.partition(":")
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{flag_text} must be a name or package.module:Class; got {name!r}: {error}") from None
    finally:
        if added:
            sys.path.remove(here)


def fields_of(config: Any) -> dict[str, Field]:
    """The fields of a dataclass or of its object by name."""
    return {field.name: field for field in dataclasses.fields(config)}
