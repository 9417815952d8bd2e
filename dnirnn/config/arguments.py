"""Options as flags of the command line: all of them are read, those that go with what is chosen shown."""

import argparse
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from dnirnn.groups import OptionGroup, every_option, goes
from dnirnn.options import Config, Field, fields_of, flag, key_value


class UsageError(ValueError):
    """Words on the command line that argparse does not take."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like every other error of the command line."""

    def __init__(self, **keywords: Any):
        super().__init__(
            **keywords,
            allow_abbrev=False,
            formatter_class=partial(argparse.HelpFormatter, max_help_position=32, width=100),
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def given_last(words: Sequence[str], name: str) -> str | None:
    """The word that is last given for a flag, before anything else is read; None: none is."""
    found = None
    for word, following in zip(words, [*words[1:], None]):
        start, equals, value = word.partition("=")
        if start == flag(name):
            found = value if equals else following
    return found


def add_options(
    parser: argparse.ArgumentParser,
    options: type[OptionGroup],
    chosen: Iterable[Mapping[str, type[Config]]],
    omit: Iterable[str] = (),
) -> None:
    """Gives ``parser`` a flag for every option, grouped as the dataclasses are.

    chosen: what --help is to show the options of: the Configs of one run, or of several. What goes
        with none of them is read too, and refused where the options object is made, which can say
        what it goes with.
    omit: options that are not to be given.
    """
    taken, known = set(omit), every_option(options)
    for kinds in chosen:
        for title, fields in grouped(options, kinds):
            group = parser.add_argument_group(title)
            for field, default in fields:
                if field.name not in taken:
                    add_flag(group, field, reader(field, *known.get(field.name, ())), default)
                    taken.add(field.name)
    for name, fields in known.items():
        if name not in taken:
            add_flag(parser, fields[0], reader(*fields), hidden=True)
            taken.add(name)
    parser.set_defaults(known_options=taken - set(omit))


def grouped(
    options: type[OptionGroup], chosen: Mapping[str, type[Config]]
) -> Iterator[tuple[str, list[tuple[Field, Any]]]]:
    """(title, options with their defaults) of each dataclass that ``options`` inherits from.

    An option belongs to the dataclass that first had it, whoever changed its default. What a choice
    chooses has a group of its own.
    """
    groups = [group for group in options.__mro__ if issubclass(group, Config)]
    for i, group in enumerate(groups):
        earlier = {name for base in groups[i + 1 :] for name in annotations(base)}
        own = annotations(group) - earlier
        fields = [field for name, field in fields_of(options).items() if name in own]
        yield group.summary(), [(field, field.default) for field in fields if goes(field, chosen)]
        for field in fields:
            if field.name in chosen:
                config, defaults = chosen[field.name], field.metadata["defaults"]
                yield f"{field.name} {config.name}: {config.summary()}", [
                    (one, defaults.get(name, one.default))
                    for name, one in fields_of(config).items()
                ]


def annotations(kind: type) -> set[str]:
    return set(vars(kind).get("__annotations__", {}))


def add_flag(
    group: Any, field: Field, read: Callable[[str], Any], default: Any = None, hidden: bool = False
) -> None:
    rule = field.metadata
    if field.type is bool:
        text = argparse.SUPPRESS if hidden else escaped(rule["help"])
        group.add_argument(
            flag(field.name), action="store_true", default=argparse.SUPPRESS, help=text
        )
        return
    words = " ".join(map(str, default)) if isinstance(default, tuple) else default
    shown = rule["shown"] if default in (None, ()) and rule["shown"] else words
    text = f"{rule['help']}{known_to(rule['registry'])} (default: {'none' if shown in (None, '') else shown})"
    keywords = {"nargs": "+"} if rule["many"] else {}
    group.add_argument(
        flag(field.name),
        type=read,
        default=argparse.SUPPRESS,
        choices=rule["choices"],
        metavar=None if rule["choices"] else rule["unit"] or "NUMBER",
        help=argparse.SUPPRESS if hidden else escaped(text),
        **keywords,
    )


def known_to(registry: Mapping[str, type[Config]] | None) -> str:
    """What can be chosen, as --help shows it."""
    if registry is None:
        return ""
    kinds = "; ".join(f"{name}, {config.summary()}" for name, config in registry.items())
    return f": {kinds}. With it, --help shows its options. A class of your own: package.module:Class"


def escaped(text: str) -> str:
    return text.replace("%", "%%")


def reader(*fields: Field) -> Callable[[str], Any]:
    """From one word of the command line to its value, of any of the options of one name."""
    kind = fields[0].metadata["many"] or (typing.get_args(fields[0].type) or (fields[0].type,))[0]
    words = dict.fromkeys(word for field in fields for word in field.metadata["words"])
    if kind is not key_value and not words:
        return kind if kind in (int, float) else str

    def read(text: str) -> Any:
        if text in words:
            return text
        try:
            return kind(text)
        except ValueError as error:
            expected = f"{'an int' if kind is int else 'a number'} or {' or '.join(map(repr, words))}"
            message = str(error) if kind is key_value else f"must be {expected}; got {text!r}"
            raise argparse.ArgumentTypeError(message) from None

    return read


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that the command line gives."""
    return {k: v for k, v in vars(arguments).items() if k in arguments.known_options}
