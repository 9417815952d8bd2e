"""reproduce timescales: each stack on the task that it was made for, beside the plain LSTM."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from dnirnn.config.registry import TASKS
from dnirnn.config.task import Figure, figures_of
from dnirnn.reports import plots
from dnirnn.reports.contests import CONTESTS, SEEDS, SKIPPED, Contest
from dnirnn.reports.curves import points
from dnirnn.reports.runs import (
    Failure,
    Run,
    checked,
    run_missing,
    write_log,
    write_rows,
    write_whole,
)
from dnirnn.training.trainer import LOG

SUMMARIES = {
    "timescales": "each stack on the task of its own paper, beside the plain LSTM at equal parameters and"
    " equal seconds"
}
REMEMBERED = "from memory, not checked against the paper; their settings and budgets are not ours"


class Section(NamedTuple):
    """A contest with its runs, by (arm, seed)."""

    name: str
    contest: Contest
    runs: dict[tuple[str, int], Run]


def plan(
    budget: str, folder: Path, common: dict[str, Any], data: Path | None, seeds: Sequence[int],
    minutes: float | None,
) -> list[Section]:  # fmt: skip
    """All contests of a budget, with all their runs."""
    sections = []
    for name, make in CONTESTS.items():
        if name in SKIPPED[budget]:
            continue
        contest, runs = make(budget), {}
        options = {**contest.options, **contest.sizes[budget]}
        if data is not None and contest.data is not None and budget != "quick":
            options["data_dir"] = str(data / contest.data)
        if minutes is not None:
            options["minutes"] = minutes
        for seed in seeds:
            for arm, (_, changes, _) in contest.arms.items():
                run = f"{name}-{arm}-seed{seed}"
                estimator = {} if "training" in changes else {"estimator": "none"}
                every = {"log_every": max(1, options["evaluate_every"] // 10)}
                given = {**options, **estimator, **every, **common, **changes, "seed": seed}
                made = TASKS[contest.task].Options(quiet=True, **given)
                runs[arm, seed] = Run(run, made, folder / run)
        sections.append(Section(name, contest, runs))
    return sections


def reproduce(
    budget: str, folder: Path, jobs: int, command: str, common: dict[str, Any], data: Path | None,
    seeds: Sequence[int] | None, minutes: float | None, only: Sequence[str] | None,
) -> list[Failure]:  # fmt: skip
    """Does what is not done, and writes report.md, results.csv, log.jsonl, and a picture a contest.

    only: names of runs must have one of these words; None: all.
    """
    sections = []
    for section in plan(budget, folder, common, data, seeds or SEEDS[budget], minutes):
        kept = {
            key: run for key, run in section.runs.items()
            if only is None or any(word in run.name for word in only)
        }  # fmt: skip
        sections += [section._replace(runs=kept)] if kept else []
    if not sections:
        raise ValueError(f"--only {' '.join(only or ())} leaves no run of timescales")
    # All at once, before anything is run: data that is missing, folders that hold other runs.
    notices = {
        section.name: checked(section.contest.task, list(section.runs.values())) for section in sections
    }
    failures: list[Failure] = []
    try:
        for section in sections:
            runs = list(section.runs.values())
            failures += run_missing(section.contest.task, runs, folder, jobs, False)
    finally:
        report(sections, folder, notices, command, failures)
    return failures


def report(
    sections: Sequence[Section], folder: Path, notices: dict[str, str], command: str,
    failures: Sequence[Failure],
) -> None:  # fmt: skip
    """Writes what came out, and prints the report."""
    verdicts, details, known = [], [], []
    for section in sections:
        done = {key: run for key, run in section.runs.items() if run.result() is not None}
        if not done:
            continue
        known += done.items()
        figure = figure_of(section.contest)
        values = {
            arm: [figures_of(run.result())[figure.key] for (one, _), run in done.items() if one == arm]
            for arm in dict.fromkeys(arm for arm, _ in done)
        }
        verdicts += verdict(section.contest, figure, values)
        details += table(section, figure, values, done, notices[section.name])
        draw(section, done, folder / f"{section.name}.png")
    lines = [f"# {SUMMARIES['timescales']}".replace("# e", "# E"), "", f"    {command}", ""]
    lines += [
        "Every network of a table has about as many parameters (of digits: as many) and the same seconds of"
        " training, of one process; mean (lowest to highest seed) on test of the model that was best on"
        " validation. *Ahead*: every seed is better than every seed of every plain arm.",
        "", "| task | network | its figure | the best plain arm | ahead |", "| --- | --- | --- | --- | --- |",
        *verdicts, "", *details,
    ]  # fmt: skip
    lines += [f"† {failure.run} failed: {failure.reason}" for failure in failures]
    written = "\n".join(lines) + "\n"
    write_whole(folder / "report.md", lambda file: file.write(written))
    write_rows(folder / "results.csv", [row for section in sections for row in rows_of(section)])
    write_log(folder / "log.jsonl", [(run, {"arm": arm, "seed": seed}) for (arm, seed), run in known])
    print(written)
    print(folder / "report.md")


def figure_of(contest: Contest) -> Figure:
    return next(one for one in TASKS[contest.task].FIGURES if one.key == f"test_{contest.figure}")


def verdict(contest: Contest, figure: Figure, values: dict[str, list[float]]) -> list[str]:
    """A line an arm that is not plain, of it and the plain arm of the best mean."""
    best = min if figure.lower_is_better else max
    others = {arm: found for arm, found in values.items() if contest.arms[arm].plain}
    lines = []
    for arm, own in values.items():
        if contest.arms[arm].plain or not others:
            continue
        rival = best(others, key=lambda name: fmean(others[name]))
        lines.append(
            f"| {contest.title} | {contest.arms[arm].label} | {spread(own, figure)} |"
            f" {contest.arms[rival].label}: {spread(others[rival], figure)} |"
            f" {'yes' if ahead(own, others.values(), figure) else 'no'} |"
        )
    return lines


def ahead(own: Sequence[float], others, figure: Figure) -> bool:
    """Whether every seed is better than every seed of every other arm."""
    sign = -1 if figure.lower_is_better else 1
    return min(sign * one for one in own) > max(sign * one for other in others for one in other)


def table(
    section: Section, figure: Figure, values: dict[str, list[float]],
    done: dict[tuple[str, int], Run], notice: str,
) -> list[str]:  # fmt: skip
    contest = section.contest
    lines = [f"## {contest.title}", "", notice, ""]
    lines += [f"| network | {figure.label} | updates made | share of steps that update |"]
    lines += ["| --- | --- | --- | --- |"]
    for arm, found in values.items():
        results = [run.result() for (one, _), run in done.items() if one == arm]
        shares = [r["best"]["updates"] for r in results if "updates" in r["best"]]
        share = f"{fmean(shares):.3f}" if shares else ""
        made = f"{fmean(r['update'] for r in results):,.0f}"
        lines.append(f"| {contest.arms[arm].label} | {spread(found, figure)} | {made} | {share} |")
    lines += ["", f"*quoted*, {REMEMBERED}: {contest.quoted}.", ""]
    seen = [run.folder for run in done.values() if run.options.core.name == "hm-lstm"]
    if seen:
        command = f"`dnirnn detectors {seen[0]} --length 20000`"
        lines += [f"How well its detectors find spaces and line ends, recall and precision: {command}", ""]
    return lines


def spread(values: Sequence[float], figure: Figure) -> str:
    mean, low, high = map(figure.form.format, (fmean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"


def rows_of(section: Section) -> list[dict[str, Any]]:
    figure, found = figure_of(section.contest), []
    for (arm, seed), run in section.runs.items():
        result = run.result()
        if result is not None:
            found.append({
                "run": run.name, "task": section.contest.task, "arm": arm, "seed": seed,
                "figure": figure.key, "value": figures_of(result)[figure.key],
                "share_of_updates": (result["best"] or {}).get("updates"),
                **{name: result[name] for name in ("update", "symbols", "epochs", "seconds", "stopped")},
            })  # fmt: skip
    return found


def draw(section: Section, done: dict[tuple[str, int], Run], path: Path) -> None:
    contest, figure = section.contest, figure_of(section.contest)
    curves = [
        plots.Curve(
            contest.arms[arm].label, arm, "--" if contest.arms[arm].plain else "-",
            points(run.place / LOG, contest.figure),
        )
        for (arm, _), run in done.items()
    ]  # fmt: skip
    label = figure.label.replace("test", "validation")
    plots.learning_curves(
        {"": curves}, path, label, TASKS[contest.task].UNIT, contest.title, figure.lower_is_better
    )
    print(path)
