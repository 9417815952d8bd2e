"""The tasks there are: this package's own, and those that installed packages bring.

A package brings tasks by an entry point in its pyproject.toml,

    [project.entry-points."dnirnn.tasks"]
    mine = "my_package.tasks"

which names a module with TASKS, a dictionary from a task's name to the module that holds it:

    TASKS = {"parity": "my_package.parity"}
"""

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import entry_points
from types import ModuleType

GROUP = "dnirnn.tasks"
# The tasks that come with dnirnn. Where it is not installed, as in a checkout on the path, no entry
# point names them.
OWN = "dnirnn.tasks"


class Tasks(Mapping[str, ModuleType]):
    """The tasks by name, in the order in which packages list them; each is imported when asked for.

    Raises ValueError for a name that two packages bring, or a package without TASKS.
    """

    @cached_property
    def places(self) -> dict[str, str]:
        """The module of each task, by the task's name."""
        packages = [OWN] if importlib.util.find_spec(OWN) else []
        packages += sorted(point.value for point in entry_points(group=GROUP))
        places: dict[str, str] = {}
        for package in dict.fromkeys(packages):
            brought = getattr(importlib.import_module(package), "TASKS", None)
            if not isinstance(brought, Mapping):
                raise ValueError(
                    f"{package}, an entry point of {GROUP}, must have TASKS, a dictionary from a"
                    f" task's name to its module; got {brought!r}"
                )
            for name, place in brought.items():
                if places.setdefault(name, place) != place:
                    raise ValueError(f"two packages bring a task {name}: {places[name]} and {place}")
        return places

    def __getitem__(self, name: str) -> ModuleType:
        return importlib.import_module(self.places[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


TASKS = Tasks()
