"""The layout of config.json, and what is made of those that older versions of dnirnn wrote."""

from dnirnn.renamed import by_name_of_now

# 1 (which the file does not name) had the options of every core and estimator, and null for a default
# that depended on which it was. 2 has the options of those that are chosen.
LAYOUT = 2
BY_CHOICE = ("layers", "scale", "discount", "trace_decay")
# The names that a TrainerConfig's fields had, in a configuration made of them alone.
RENAMED = {"options": "optimizer_options", "estimator_options": "estimator_optimizer_options"}

# The default that the temperature of teachers had, also where there are none: it is refused there now.
TEMPERATURE_BEFORE = 2.0

# What the runs of a task did before it had an option for it.
BEFORE = {"digits": {"cuts": "ticks"}}


def upgraded(config: dict) -> dict:
    """A configuration in today's layout; one that is, as it is.

    Raises ValueError for one of a later layout than this version of dnirnn knows.
    """
    version = config.get("version", 1)
    # A file that a person wrote may have anything there.
    config = {**BEFORE.get(str(config.get("task")), {}), **config}
    config = by_name_of_now(config)
    if isinstance(defaults := config.get("defaults"), dict):
        config["defaults"] = by_name_of_now(defaults)
    taught = config.get("teachers") or config.get("codistill")
    of_text = config.get("task") in ("char-lm", "word-lm")
    if of_text and not taught and config.get("temperature") == TEMPERATURE_BEFORE:
        for place in (config, config.get("defaults")):
            if isinstance(place, dict):
                place.pop("temperature", None)
    if version == LAYOUT:
        return config
    if version != 1:
        raise ValueError(
            f"config.json is of layout {version!r}; this version of dnirnn reads up to {LAYOUT}"
        )
    if "task" not in config:
        renamed = RENAMED if RENAMED.keys() <= config.keys() else {}
        return {renamed.get(name, name): value for name, value in config.items()}
    by_choice = {name for name in BY_CHOICE if config.get(name, 0) is None}
    found = {name: value for name, value in config.items() if name not in by_choice}
    if isinstance(defaults := config.get("defaults"), dict):
        found["defaults"] = {k: v for k, v in defaults.items() if k not in BY_CHOICE or v is not None}
    return found
