"""One network in one process, data parallel, in torch's pipelines, and decoupled: who wins where.

    python -m benchmarks.processes --quick --out results/processes

A network of equal layers on scikit-learn's digits, cut into as many parts as there are ranks, is
trained with the same batches

    one         in one process with all cores
    ddp         by torch's DistributedDataParallel, every rank with its rows of the batch
    gpipe, 1f1b by torch.distributed.pipelining, with each number of microbatches
    decoupled   by dnirnn.DecoupledParallel with a linear cDNI by least squares, for each staleness
    floor       perfect overlap: each part alone, all at once, nothing sent; the slowest one's rate

over gloo on this machine, every rank with one thread. real: 2 ranks that compute. simulated: more ranks
than there are cores; each part takes --work milliseconds of a batch asleep, beside a small real one. A
link's --delays are what every message of a pipeline and of decoupled takes longer, by one and the same
means; an all-reduce of R ranks takes 2 (R - 1) times that, as a ring has it. --slow: milliseconds that
the last rank takes longer. chars: a character model of 512 units, batch 64.

busy: the share of the time in which a rank computed (its CPU time, and what it simulated). MB: what it
sent an update. Every case has a time limit; runs.json and table.md are written after each. Cases that
--out has already stay there, until they are measured again.
"""

import argparse
import json
import time
from pathlib import Path

from benchmarks.processes import chars, network
from benchmarks.processes.cases import cores, limit_of, measured
from benchmarks.processes.tables import table

WAYS = ("one", "ddp", "gpipe", "1f1b", "decoupled", "floor")
SECTIONS = ("real", "simulated", "chars")
OVERHEAD = 2.5  # seconds of a case that are not measured: processes, warm-up, accuracy
# (ranks, link, slow), milliseconds
QUICK = {
    "real": [(2, 0, 0), (2, 10, 0)],
    "simulated": [(2, 10, 0), (4, 10, 0), (8, 10, 0), (4, 1, 0), (4, 50, 0), (4, 10, 20)],
}
FULL = {
    "real": [(2, delay, slow) for delay in (0, 1, 10, 50) for slow in (0, 20)],
    "simulated": [(r, delay, slow) for r in (2, 4, 8) for delay in (1, 10, 50) for slow in (0, 20)],
}


def planned(options: argparse.Namespace) -> list[tuple]:
    """(what makes it, processes, its case) of every case."""
    found = []
    common = dict(seed=options.seed, seconds=options.seconds, rounds=options.rounds)
    for section in ("real", "simulated"):
        if section not in options.sections:
            continue
        settings = options.settings or (QUICK if options.quick else FULL)[section]
        real, alone = section == "real", set()
        for ranks, delay, slow in settings:
            for name, make in network.ways(ranks, options.microbatches, options.staleness).items():
                if name.split()[0] not in options.ways or name == "one" and ranks in alone:
                    continue  # of one process no link and no slow rank is a part
                alone.add(ranks)
                case = argparse.Namespace(
                    **common, section=section, way=name, ranks=ranks, delay=delay / 1000,
                    slow=slow / 1000, work=0.0 if real else options.work / 1000,
                    width=options.width if real else 64, batch=options.batch if real else 64,
                    layers=options.layers,
                )  # fmt: skip
                if name == "one":
                    case.delay = case.slow = 0.0
                found.append((make, 1 if name == "one" else ranks, case))
    for steps in options.steps if "chars" in options.sections else ():
        for name, make in chars.WAYS.items():
            case = argparse.Namespace(
                **common, section="chars", way=name, ranks=2, delay=0.0, slow=0.0, work=0.0,
                width=options.hidden, batch=options.char_batch, steps=steps,
            )  # fmt: skip
            found.append((make, 1 if name.startswith("one") else 2, case))
    return found


def replaced(runs: list[dict], case: dict, row: dict) -> list[dict]:
    """The runs with this row in the place of the same case's, or at the end."""
    what = {name: value for name, value in case.items() if name not in ("seconds", "rounds")}
    same = [all(run.get(name) == value for name, value in what.items()) for run in runs]
    if True not in same:
        return [*runs, row]
    return [row if found else run for run, found in zip(runs, same)]


def setting(text: str) -> tuple[int, float, float]:
    ranks, delay, slow = text.split(",")
    return int(ranks), float(delay), float(slow)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.processes", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer settings and shorter cases: about 10 minutes")
    add("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    add("--settings", type=setting, nargs="+", metavar="RANKS,LINK,SLOW", help="in place of the planned ones")
    add("--ways", nargs="+", choices=WAYS, default=WAYS)
    add("--seconds", type=float, help="that a case is measured (10; quick: 3)")
    add("--rounds", type=int, default=6, help="accuracies in the course of a case")
    add("--microbatches", type=int, nargs="+", help="a rank, of the pipelines (1 2 4; quick: 1 2)")
    add("--staleness", type=int, nargs="+", default=[1, 8])
    add("--work", type=float, default=20, help="of a simulated rank a batch, milliseconds")
    add("--layers", type=int, default=8)
    add("--width", type=int, default=512)
    add("--batch", type=int, default=256)
    add("--hidden", type=int, default=512, help="of the character model")
    add("--char-batch", type=int, default=64)
    add("--steps", type=int, nargs="+", default=[8, 40])
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("results/processes"))
    options = parser.parse_args(argv)
    options.seconds = options.seconds or (3 if options.quick else 10)
    options.microbatches = options.microbatches or ([1, 2] if options.quick else [1, 2, 4])
    options.out.mkdir(parents=True, exist_ok=True)
    cases = planned(options)
    usual, most = (len(cases) * s / 60 for s in (options.seconds + OVERHEAD, limit_of(options)))
    print(f"{len(cases)} cases on {cores()} cores: about {usual:.0f} minutes, never more than {most:.0f}")
    network.digits()
    kept = options.out / "runs.json"
    runs: list[dict] = json.loads(kept.read_text()) if kept.exists() else []
    for number, (make, processes, case) in enumerate(cases, 1):
        began = time.monotonic()
        found = measured(make, processes, case)
        described = {**vars(case), "delay": 1000 * case.delay, "slow": 1000 * case.slow}
        runs = replaced(runs, described, {**described, **found})
        kept.write_text(json.dumps(runs, indent=1))
        (options.out / "table.md").write_text(table(runs))
        rate = found.get("failed") or f"{found['updates_per_second']:.1f} updates/s"
        where = f"{case.section}, {case.ranks} ranks, link {described['delay']:g} ms, slow {described['slow']:g} ms"
        print(f"{number}/{len(cases)} {where}, {case.way}: {rate} ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
