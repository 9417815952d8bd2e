"""The tables of what was measured."""


def table(runs: list[dict]) -> str:
    """All sections."""
    parts = [
        "# One network in one process, data parallel, in pipelines, decoupled",
        layers([run for run in runs if run["section"] == "real"], "2 ranks on 2 cores"),
        layers(
            [run for run in runs if run["section"] == "simulated"],
            "Simulated ranks: each part takes its time asleep",
        ),
        chars([run for run in runs if run["section"] == "chars"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def layers(runs: list[dict], title: str) -> str:
    """A line each way, link and slow rank; its rate is also given as a share of the floor's."""
    if not runs:
        return ""
    lines = [
        f"## {title}",
        "",
        "| ranks | link, ms | slow, ms | way | updates/s | of the floor | accuracy at half time | at the end | busy, by rank | MB an update, by rank |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        setting = (run["ranks"], run["delay"], run["slow"])
        first_cells = [f"{value:g}" for value in setting]
        if "failed" in run:
            lines.append(f"| {' | '.join([*first_cells, run['way'], run['failed'], *[''] * 5])} |")
            continue
        floors = [
            one["updates_per_second"]
            for one in runs
            if one["way"] == "floor" and (one["ranks"], one["delay"], one["slow"]) == setting
            and "failed" not in one
        ]  # fmt: skip
        rate, right = run["updates_per_second"], run["accuracy"]
        share = f"{100 * rate / floors[0]:.0f} %" if floors else ""
        half = ["", ""] if right is None else [f"{right[(len(right) - 1) // 2]:.4f}", f"{right[-1]:.4f}"]
        each = (" ".join(f"{value:.2f}" for value in run[name]) for name in ("busy", "mb"))
        lines.append(f"| {' | '.join([*first_cells, run['way'], f'{rate:.1f}', share, *half, *each])} |")
    return "\n".join(lines)


def chars(runs: list[dict]) -> str:
    """Characters a second of each way."""
    if not runs:
        return ""
    lines = [
        "## A character model, characters a second",
        "",
        "| steps | way | characters/s | against one process | against plain torch, likewise |",
        "| --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        first_cells = [str(run["steps"]), run["way"]]
        if "failed" in run:
            lines.append(f"| {' | '.join([*first_cells, run['failed'], '', ''])} |")
            continue
        rate = run["updates_per_second"] * run["steps"] * run["batch"]
        known = {
            one["way"]: one["updates_per_second"] * one["steps"] * one["batch"]
            for one in runs
            if one["steps"] == run["steps"] and "failed" not in one
        }
        kind, _, plain = run["way"].partition(", ")
        others = known.get(f"one, {plain}" if plain else "one"), known.get(f"{kind}, nn.LSTM")
        ratios = ["" if other is None else f"{rate / other:.2f}" for other in others]
        lines.append(f"| {' | '.join([*first_cells, f'{rate:,.0f}', *ratios])} |")
    return "\n".join(lines)
