"""Options that belong together in a run: groups of them, in which some are a choice among Configs."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from dnirnn.options import Config, Field, fields_of, flag
from dnirnn.renamed import by_name_of_now


@dataclasses.dataclass(frozen=True, init=False)
class OptionGroup(Config):
    """Options of a run, in which some fields are choices; made, read and replaced flat:

        CopyOptions(core="skip", skip_cost=0.1, lr=1e-3).skip_cost

    Raises ValueError, naming the flag, for an option that there is none of, or that does not go with
    what is chosen.
    """

    def __init__(self, **values: Any):
        values = self.completed(by_name_of_now(values, warn=True))
        fields = dataclasses.fields(self)
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
