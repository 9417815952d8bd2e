"""reproduce feed-forward and reproduce chain: the tables of the paper's feed-forward part, and more."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from dnirnn.config.registry import TASKS
from dnirnn.reports import plots
from dnirnn.reports.curves import Point, points, reading
from dnirnn.reports.runs import (
    Failure,
    Run,
    checked,
    run_missing,
    write_csv,
    write_log,
    write_rows,
    write_whole,
)
from dnirnn.training.log import read_log
from dnirnn.training.trainer import LOG

SUMMARIES = {
    "feed-forward": "DNI and cDNI between the layers of feed-forward networks, and in random order",
    "chain": "8 layers, cut above the 1st, 4th and 6th: what each link of a chain of predictors adds",
}
QUOTED = (
    "*quoted*: Jaderberg et al., Decoupled Neural Interfaces using Synthetic Gradients, ICML 2017,"
    " its table of feed-forward networks; from memory, not checked against the paper. Their settings,"
    " budget and hardware are not ours."
)
# Error, %, by network and images, then arm and layers.
PAPER: dict[tuple[str, str], dict[str, dict[int, float]]] = {
    ("fcn", "mnist"): {
        "zero": {3: 9.3, 4: 12.6, 5: 16.2, 6: 21.4},
        "none": {3: 2.0, 4: 1.8, 5: 1.8, 6: 1.8},
        "dni": {3: 1.9, 4: 2.2, 5: 3.4, 6: 4.3},
        "cdni": {3: 2.2, 4: 1.9, 5: 1.7, 6: 1.6},
    },
    ("fcn", "cifar10"): {
        "zero": {3: 54.9, 6: 61.9},
        "none": {3: 43.5, 6: 42.0},
        "dni": {3: 42.5, 6: 49.7},
        "cdni": {3: 48.5, 6: 46.8},
    },
    ("cnn", "cifar10"): {
        "zero": {3: 28.7}, "none": {3: 17.9}, "dni": {3: 19.5}, "cdni": {3: 19.0}
    },
}  # fmt: skip
LABELS = {
    "none": "backpropagation",
    "zero": "nothing sent back",
    "dni": "DNI",
    "cdni": "cDNI",
}
STYLES = {"none": "--", "zero": ":", "dni": "-", "cdni": "-."}
# The tables to edit: what serves each arm best, of what was tried.
DNI: dict[str, Any] = dict(
    estimator="dni", estimator_hidden=(512,), estimator_batch_norm=True, estimator_lr=1e-3, lr=1e-4
)
ARMS: dict[str, dict[str, Any]] = {
    "zero": dict(estimator="zero"),
    "none": dict(estimator="none"),
    "dni": DNI,
    "cdni": dict(estimator="cdni"),
}
PROBABILITIES = (1.0, 0.5, 0.1, 0.05)
CHAIN = dict(layers=8, cuts=(1, 4, 6))  # layers 0, 3 and 5, counted from 0
CHAIN_ARMS: dict[str, dict[str, Any]] = {
    "zero": dict(estimator="zero"),
    "dni": DNI,
    "dni-warm-up": dict(DNI, warm_up=500),
    "zero-warm-up": dict(DNI, warm_up=500, scale=0.0),  # the control of dni-warm-up
    "cdni": dict(estimator="cdni"),
    "cdni-warm-up": dict(estimator="cdni", warm_up=500),
    "true": dict(estimator="true"),
}
BUDGETS = ("quick", "cpu")
SEEDS = {"quick": (0,), "cpu": (0, 1, 2)}
EPOCHS = {  # by budget: of the images, and in random order at p = 1
    "quick": {("fcn", "builtin"): 20, "random": 20},
    "cpu": {("fcn", "mnist"): 30, ("fcn", "cifar10"): 20, ("cnn", "cifar10"): 2, "random": 10},
}
IMAGES = {"builtin": 1199, "mnist": 55_000, "cifar10": 45_000}
BATCH = {"quick": 64, "cpu": 256}


class Section(NamedTuple):
    """A table: its title, the names of its rows, and its runs by (row, column, seed)."""

    title: str
    label: str
    runs: dict[tuple[str, str, int], Run]
    quoted: dict[tuple[str, str], float]


def updates_of(images: str, epochs: float, batch: int) -> int:
    return max(1, round(epochs * (IMAGES[images] // batch)))


def arm_of(arm: dict[str, Any], network: str) -> dict[str, Any]:
    """Of a cnn, whose predictors are convolutions, the hidden layers count channels: as many as its own."""
    if network == "cnn" and "estimator_hidden" in arm:
        return {**arm, "estimator_hidden": (64,)}
    return arm


def plan(
    table: str, budget: str, folder: Path, common: dict[str, Any], data: Path | None,
    seeds: Sequence[int], epochs: float | None,
) -> list[Section]:  # fmt: skip
    """The sections of a table, with all their runs."""
    batch = BATCH[budget]
    epochs_of = {kind: known if epochs is None else epochs for kind, known in EPOCHS[budget].items()}

    def run(name: str, images: str, seed: int, passes: float, **changes: Any) -> Run:
        updates = updates_of(images, passes, batch)
        whole = updates * batch
        where = None if data is None or images == "builtin" else str(data / images)
        options = TASKS["images"].Options(
            images=images, data_dir=where, seed=seed, batch=batch, updates=updates, quiet=True,
            evaluate_every=max(batch, whole // 15), log_every=max(batch, whole // 100),
            **{**common, **changes},
        )  # fmt: skip
        return Run(f"{name}-seed{seed}", options, folder / f"{name}-seed{seed}")

    if table == "chain":
        images = "builtin" if budget == "quick" else "mnist"
        passes = epochs_of["random"]
        every = max(batch, updates_of(images, passes, batch) * batch // 20)
        runs = {
            (name, "", seed): run(
                name, images, seed, passes, **CHAIN, **arm,
                fidelity_every=None if arm["estimator"] == "zero" else every,
            )  # fmt: skip
            for name, arm in CHAIN_ARMS.items()
            for seed in seeds
        }
        return [Section(f"A chain of three predictors in 8 layers, {images}", "arm", runs, {})]
    sections = []
    for kind, passes in epochs_of.items():
        if kind == "random":
            continue
        network, images = kind
        depths = (3, 4, 5, 6) if (network, images) == ("fcn", "mnist") else (3, 6)
        depths = (3,) if network == "cnn" else depths
        runs = {
            (name, str(layers), seed): run(
                f"{images}-{network}{layers}-{name}", images, seed, passes,
                network=network, layers=layers, **arm_of(arm, network),
            )
            for layers in depths for name, arm in ARMS.items() for seed in seeds
        }  # fmt: skip
        quoted = {
            (name, str(layers)): error
            for name, row in PAPER.get(kind, {}).items() for layers, error in row.items()
        }  # fmt: skip
        sections.append(Section(f"{network.upper()} on {images}, by layers", "layers", runs, quoted))
    images = "builtin" if budget == "quick" else "mnist"
    passes = epochs_of["random"]
    runs = {}
    for estimator in ("dni", "cdni"):
        for synthetic in (False, True):
            for probability in PROBABILITIES:
                name = f"{estimator}{'-inputs' if synthetic else ''}"
                for seed in seeds:
                    # As many updates of each layer, on average, whatever the probability.
                    runs[name, f"{probability:g}", seed] = run(
                        f"random-{name}-p{probability:g}", images, seed, passes / probability,
                        layers=4, update="random", update_probability=probability,
                        synthetic_inputs=synthetic, **ARMS[estimator],
                    )  # fmt: skip
    title = f"4 layers in random order on {images}, by probability, at equal updates of each layer"
    return [*sections, Section(title, "p", runs, {})]


def reproduce(
    table: str, budget: str, folder: Path, jobs: int, command: str, common: dict[str, Any],
    data: Path | None, seeds: Sequence[int] | None, epochs: float | None,
    only: Sequence[str] | None,
) -> list[Failure]:  # fmt: skip
    """Does what is not done of a table, and writes report.md, results.csv, log.jsonl, curves.png.

    only: names of runs must have one of these words; None: all.
    """
    sections = plan(table, budget, folder, common, data, seeds or SEEDS[budget], epochs)
    sections = [
        section._replace(runs={
            key: run for key, run in section.runs.items()
            if only is None or any(word in run.name for word in only)
        })
        for section in sections
    ]  # fmt: skip
    sections = [section for section in sections if section.runs]
    if not sections:
        raise ValueError(f"--only {' '.join(only or ())} leaves no run of {table}")
    runs = [run for section in sections for run in section.runs.values()]
    notices = {}
    for section in sections:
        of = list(section.runs.values())
        for images in dict.fromkeys(run.options.images for run in of):
            some = [run for run in of if run.options.images == images]
            notices[images] = checked("images", some)
    failures: list[Failure] = []
    try:
        failures += run_missing("images", runs, folder, jobs, False)
    finally:
        write = chain_report if table == "chain" else report
        write(sections, folder, list(notices.values()), command, failures)
    return failures


def report(
    sections: Sequence[Section], folder: Path, notices: Sequence[str], command: str,
    failures: Sequence[Failure],
) -> None:  # fmt: skip
    """Writes what came out of reproduce feed-forward, and prints the report."""
    lines, curves = [f"# {SUMMARIES['feed-forward']}", "", f"    {command}", ""], {}
    lines += [*(f"- {notice}" for notice in notices), ""]
    for section in sections:
        done = {key: run for key, run in section.runs.items() if run.result() is not None}
        if not done:
            continue
        random = section.label == "p"
        lines += [f"## {section.title}", ""]
        lines += ["Test error, %, of the model with the fewest validation bits; mean (lowest to highest"
                  " seed) after equal updates.", ""]  # fmt: skip
        lines += grid(section, done, lambda run: run.result()["test"]["test_error"])
        if not random:
            lines += ["Validation error, %, by the time that the fastest arm of its column needs"
                      " in all.", ""]  # fmt: skip
            fastest: dict[str, float] = {}
            for (_, column, _), run in done.items():
                fastest[column] = min(fastest.get(column, 1e99), run.result()["seconds"])
            at = {run.name: fastest[key[1]] for key, run in done.items()}
            lines += grid(section._replace(quoted={}), done,
                          lambda run, at=at: reading(curve(run), "seconds", at[run.name], True))  # fmt: skip
        drawn = {(r, c): run for (r, c, _), run in done.items()}
        columns = list(dict.fromkeys(c for _, c in drawn))
        curves[section.title] = [
            plots.Curve(
                f"{LABELS.get(row, row)}, {section.label} {column}", column if random else row,
                STYLES.get(row.split("-")[0], "-"), curve(run),
            )
            for (row, column, _), run in done.items()
            if random or column in (columns[0], columns[-1])
        ]  # fmt: skip
    if any(section.quoted for section in sections):
        lines += [QUOTED, ""]
    lines += [f"† {failure.run} failed: {failure.reason}" for failure in failures]
    finish(sections, folder, lines)
    if curves:
        plots.learning_curves(
            curves, folder / "curves.png", "validation error, %", "images",
            "feed-forward networks, cut between layers",
        )  # fmt: skip
        print(folder / "curves.png")


def curve(run: Run) -> list[Point]:
    return points(run.place / LOG, "error")


def grid(
    section: Section, done: dict[tuple[str, str, int], Run], value: Callable[[Run], float | None]
) -> list[str]:
    """A Markdown table: a line a row, its value by column, beside what is quoted."""
    rows = list(dict.fromkeys(row for row, _, _ in done))
    columns = list(dict.fromkeys(column for _, column, _ in done))
    lines = [f"| {section.label} | " + " | ".join(columns) + " |", "| --- " * (1 + len(columns)) + "|"]
    for row in rows:
        cells = []
        for column in columns:
            values = [
                found
                for (r, c, _), run in done.items()
                if (r, c) == (row, column) and (found := value(run)) is not None
            ]
            cells.append(spread(values))
        lines.append(f"| {LABELS.get(row, row)} | " + " | ".join(cells) + " |")
        if any(r == row for r, _ in section.quoted):
            quoted = [section.quoted.get((row, column)) for column in columns]
            cells = ["-" if error is None else f"*{error:g}*" for error in quoted]
            lines.append("| *quoted* | " + " | ".join(cells) + " |")
    return [*lines, ""]


def spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = f"{fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f} to {max(values):.2f})"


def chain_report(
    sections: Sequence[Section], folder: Path, notices: Sequence[str], command: str,
    failures: Sequence[Failure],
) -> None:  # fmt: skip
    """Writes what came out of reproduce chain, and prints the report."""
    (section,) = sections
    done = {key: run for key, run in section.runs.items() if run.result() is not None}
    lines = [f"# {section.title}", "", f"    {command}", ""]
    lines += [*(f"- {notice}" for notice in notices), ""]
    lines += [
        "Cuts 1, 2 and 3 are above the 1st, 4th and 6th layer: cut 3 is taught by the loss, cut 2 by"
        " cut 3's predictor, cut 1 by cut 2's. Cosine of each one's output with the gradient of"
        " backpropagation there, on 1,000 validation images: the mean over a run's measurements (20),"
        " then over seeds. *true*: nothing is cut, the predictors are fitted to the true gradient and"
        " not used: what three predictors with nothing between them and the truth reach. *zero*: cut, and"
        " nothing sent back: what the layers above the last cut learn alone. *warm-up*: the first 500"
        " updates are backpropagation, by which the predictors are fitted; after them *zero-warm-up* sends"
        " nothing back.",
        "",
        "| arm | test error, % | cosine at cut 3 | cut 2 | cut 1 |",
        "| --- | --- | --- | --- | --- |",
    ]
    rows, drawn = [], []
    for name in dict.fromkeys(row for row, _, _ in done):
        runs = [run for (row, _, _), run in done.items() if row == name]
        measured = {run.name: read_log(run.place / LOG, "fidelity") for run in runs}
        cells = [spread([run.result()["test"]["test_error"] for run in runs])]
        for place in (3, 2, 1):
            followed = {name: found for name, found in measured.items() if found}
            means = [fmean(row[f"cosine_{place}"] for row in found) for found in followed.values()]
            cells.append(spread(means))
            drawn += [
                plots.Curve(
                    f"{name}, cut {place}", name, ("-", "--", ":")[3 - place],
                    [Point(r["symbols"], r["update"], r["update"], r[f"cosine_{place}"]) for r in found],
                )
                for found in followed.values()
            ]  # fmt: skip
        rows += [{"run": key, **r} for key, found in measured.items() for r in found]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", *(f"† {failure.run} failed: {failure.reason}" for failure in failures)]
    finish(sections, folder, lines)
    write_rows(folder / "fidelity.csv", rows)
    if drawn:
        plots.learning_curves(
            {"": drawn}, folder / "curves.png", "cosine with the true gradient", "images",
            section.title, False,
        )  # fmt: skip
        print(folder / "curves.png")


def finish(sections: Sequence[Section], folder: Path, lines: Sequence[str]) -> None:
    """Writes report.md, results.csv and log.jsonl; prints the first."""
    arms = [
        (run, {"table": section.title, "arm": row, "layers": run.options.layers,
               "probability": run.options.update.update_probability, "seed": seed})
        for section in sections
        for (row, _, seed), run in section.runs.items()
        if run.result() is not None
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    write_whole(folder / "report.md", lambda file: file.write(text))
    if arms:
        write_csv(folder / "results.csv", arms, TASKS["images"].FIGURES)
        write_log(folder / "log.jsonl", arms)
    print(text)

