"""make bench: every figure beside what a user would take instead, in one run.

python -m benchmarks [op] [bfloat16] [sample] [step] [cost] [stacks] [ragged] [cuda] [--quick] [--seconds S]
                     [--points POINT ...] [--timelines] [--out FILE]
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from benchmarks import cost, cuda, depth, op, ragged, stacks, steps
from benchmarks.timing import alternate, machine
from dnirnn.device import find_device

PARTS = ("op", "bfloat16", "sample", "step", "cost", "stacks", "ragged", "depth", "cuda")
STEP_HIDDEN, STEP_BATCH, STEP_LENGTH = (256, 512, 1024), (32, 128), 8


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", default=[], help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="a few points, a minute or two")
    parser.add_argument("--seconds", type=float, default=0.7, help="a side and point (default 0.7)")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark.json"))
    parser.add_argument(
        "--points", nargs="+", metavar="POINT",
        help="of cuda alone: bfloat16,H,B, the whole step, and bfloat16,H,B,T,CHUNKS[,INPUTS], the operator",
    )  # fmt: skip
    parser.add_argument(
        "--timelines", action="store_true", help="of cuda: the kernels of a whole step, in --out"
    )
    options = parser.parse_args()
    try:
        points = [cuda.point_of(word) for word in options.points or []]
    except ValueError as error:
        parser.error(str(error))
    options.points = points or cuda.points_of(options.quick)
    if (points or options.timelines) and options.parts and "cuda" not in options.parts:
        parser.error(f"--points and --timelines are of cuda; got {' '.join(options.parts)}")
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"parts are {', '.join(PARTS)}; got {', '.join(sorted(unknown))}")
    parts = options.parts or (("cuda",) if points or options.timelines else PARTS)

    found: dict[str, object] = {"machine": machine()}
    for name, value in found["machine"].items():
        print(f"{name}: {value}")
    if {"op", "step", "stacks"} & set(parts):
        found["ceiling_gflops"] = rates = op.ceiling(options.seconds / 4)
        print("\nATen's brgemm alone, float32, 32 rows, GFLOP/s by H:", end=" ")
        print(", ".join(f"{h}: {rate:.0f}" for h, rate in rates.items()))
    if "op" in parts:
        found["op"] = bench_op(options)
    if "bfloat16" in parts:
        found["bfloat16"] = bench_bfloat16(options)
    if "sample" in parts:
        found["sample"] = bench_sample(options)
    if "step" in parts:
        found["step"] = bench_step(options, rates)
    if "cost" in parts:
        found["cost"] = bench_cost(options)
    if "stacks" in parts:
        found["stacks"] = bench_stacks(options, rates[stacks.HIDDEN])
    if "ragged" in parts:
        found["ragged"] = bench_ragged(options)
    if "depth" in parts:
        found["depth"] = bench_depth(options)
    if "cuda" in parts:
        # As it comes: the time on a GPU may end before its figures do.
        found["cuda"] = bench_cuda(options, lambda so_far: write(options.out, found | {"cuda": so_far}))
    write(options.out, found)
    print(f"\nwritten to {options.out}")


def write(path: Path, found: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def bench_depth(options: argparse.Namespace) -> dict[str, float]:
    print("\nA feed-forward network of 6 x 256, batch 256, cut above every layer, linear estimators;")
    print("floor: the products of the step with estimators, and its Adam, alone")
    times = alternate(depth.sides(), options.seconds)
    row = {f"{name}_ms": 1e3 * seconds for name, seconds in times.items()}
    row["dni_vs_backpropagation"] = times["dni"] / times["backpropagation"]
    print(f"{'DNI ms':>8} {'backpropagation ms':>19} {'DNI/backpropagation':>20} {'floor ms':>9}")
    print(
        f"{row['dni_ms']:8.3f} {row['backpropagation_ms']:19.3f}"
        f" {row['dni_vs_backpropagation']:20.2f} {row['floor_ms']:9.3f}",
        flush=True,
    )
    return row


def bench_op(options: argparse.Namespace) -> list[dict]:
    print("\nThe operator, float32, input 64; ratios above 1: ours is faster;")
    print("of brgemm: our products' rate over that of brgemm alone, which took turns with it")
    print(f"{'':8} {'H':>5} {'B':>4} {'T':>3} {'ours ms':>9} {'x oneDNN':>9} {'x native':>9}", end="")
    print(f" {'GFLOP/s':>8} {'of brgemm':>9}")
    rows = []
    for backward in (False, True):
        for hidden in (256,) if options.quick else op.HIDDEN:
            for batch in (1, 32) if options.quick else op.BATCH:
                for length in (4, 8) if options.quick else op.STEPS:
                    row = op.point(hidden, batch, length, backward, options.seconds)
                    rows.append(row)
                    share = "" if row["of_ceiling"] is None else f"{row['of_ceiling']:9.0%}"
                    print(
                        f"{'fwd+bwd' if backward else 'fwd':8} {hidden:5} {batch:4} {length:3}"
                        f" {row['ours_ms']:9.3f} {row['vs_onednn']:9.2f} {row['vs_native']:9.2f}"
                        f" {row['gflops']:8.0f} {share}",
                        flush=True,
                    )
    for backward in (False, True):
        some = [row["vs_faster"] for row in rows if row["backward"] == backward]
        slower = sum(ratio < 0.9 for ratio in some)
        print(
            f"{'fwd+bwd' if backward else 'fwd'}: against the faster path at each point, from"
            f" x{min(some):.2f} to x{max(some):.2f}; more than 10 % slower at {slower} of {len(some)}"
        )
    return rows


def bench_bfloat16(options: argparse.Namespace) -> list[dict]:
    print("\nThe operator in bfloat16 (autocast), forward with backward, over our own float32")
    print(f"{'H':>5} {'B':>4} {'T':>3} {'bf16 ms':>9} {'x float32':>9} {'GFLOP/s':>8} {'of brgemm':>9}")
    rows = []
    for hidden in (512,) if options.quick else op.HIDDEN[1:]:
        for batch in (32,) if options.quick else (1, 32):
            for length in (8, 40):
                row = op.in_bfloat16(hidden, batch, length, options.seconds)
                rows.append(row)
                share = "" if row["of_ceiling"] is None else f"{row['of_ceiling']:9.0%}"
                print(
                    f"{hidden:5} {batch:4} {length:3} {row['bfloat16_ms']:9.3f}"
                    f" {row['vs_float32']:9.2f} {row['gflops']:8.0f} {share}",
                    flush=True,
                )
    return rows


def bench_sample(options: argparse.Namespace) -> list[dict]:
    print("\nOne step a call, B 1, input 64, no gradients: against torch.nn.LSTM called likewise")
    print(f"{'H':>5} {'ours us':>9} {'oneDNN us':>10} {'native us':>10} {'x faster one':>13}")
    rows = []
    for hidden in (256,) if options.quick else op.HIDDEN:
        row = op.step_by_step(hidden, options.seconds)
        rows.append(row)
        print(
            f"{hidden:5} {row['ours_us']:9.1f} {row['onednn_us']:10.1f} {row['native_us']:10.1f}"
            f" {row['vs_faster']:13.2f}",
            flush=True,
        )
    return rows


def bench_step(options: argparse.Namespace, rates: dict[int, float]) -> list[dict]:
    print("\nThe whole training step of a character model, T 8, estimator one hidden layer of H")
    print("ratios: plain torch's time over ours; DNI and BPTT: ours over ours")
    print("floor: what the estimator's products at brgemm's rate, and its Adam alone, add to BPTT")
    print("x looked up: the embedding looked up at once, over its rows as the operator's table (lazy)")
    print(f"{'H':>5} {'B':>4} {'ours ms':>8} {'x strong':>9} {'x usual':>8}", end="")
    print(f" {'DNI/BPTT':>9} {'floor':>6} {'width H/4':>10} {'floor':>6}", end="")
    print(f" {'chars/s of BPTT 40':>19} {'5 chunks':>9} {'x looked up: DNI':>17} {'BPTT':>5}")
    rows = []
    for hidden in (256,) if options.quick else STEP_HIDDEN:
        for batch in (32,) if options.quick else STEP_BATCH:
            widths = {"dni": hidden, "quarter": hidden // 4}
            alone = {f"adam_{name}": steps.estimator_alone(hidden, widths[name]) for name in widths}
            times = alternate(
                {
                    **alone,
                    "dni": steps.ours(hidden, batch, STEP_LENGTH, hidden),
                    "dni_quarter": steps.ours(hidden, batch, STEP_LENGTH, hidden // 4),
                    "bptt": steps.ours(hidden, batch, STEP_LENGTH, None),
                    "bptt_40": steps.ours(hidden, batch, 40, None),
                    "dni_looked_up": steps.ours(hidden, batch, STEP_LENGTH, hidden, lazy=False),
                    "bptt_looked_up": steps.ours(hidden, batch, STEP_LENGTH, None, lazy=False),
                    "dni_5_chunks": steps.ours(hidden, batch, STEP_LENGTH, hidden, 5),
                    "plain_bptt": steps.plain_truncated(hidden, batch, STEP_LENGTH),
                    "plain_strong": steps.plain_strong(hidden, batch, STEP_LENGTH, hidden),
                    "plain_usual": steps.plain_usual(hidden, batch, STEP_LENGTH, hidden),
                },
                options.seconds,
            )
            floors = {}
            for name, width in widths.items():
                floors[name] = None
                if rates[hidden]:
                    products = steps.estimator_flops(hidden, width, batch) / (1e9 * rates[hidden])
                    floors[name] = 1 + (products + times[f"adam_{name}"]) / times["bptt"]
            shown = {name: "" if floor is None else f"{floor:.2f}" for name, floor in floors.items()}
            row = {
                "hidden": hidden,
                "batch": batch,
                **{f"{name}_ms": 1e3 * value for name, value in times.items()},
                "vs_strong": times["plain_strong"] / times["dni"],
                "vs_usual": times["plain_usual"] / times["dni"],
                "dni_over_bptt": times["dni"] / times["bptt"],
                "quarter_over_bptt": times["dni_quarter"] / times["bptt"],
                **{f"{name}_floor": floor for name, floor in floors.items()},
                "lazy_dni": times["dni_looked_up"] / times["dni"],
                "lazy_bptt": times["bptt_looked_up"] / times["bptt"],
                "rate_of_bptt_40": times["bptt_40"] / 5 / times["dni"],
                "rate_of_bptt_40_5_chunks": times["bptt_40"] / times["dni_5_chunks"],
            }
            rows.append(row)
            print(
                f"{hidden:5} {batch:4} {row['dni_ms']:8.2f} {row['vs_strong']:9.2f}"
                f" {row['vs_usual']:8.2f} {row['dni_over_bptt']:9.2f}"
                f" {shown['dni']:>6} {row['quarter_over_bptt']:10.2f}"
                f" {shown['quarter']:>6} {row['rate_of_bptt_40']:19.2f}"
                f" {row['rate_of_bptt_40_5_chunks']:9.2f}"
                f" {row['lazy_dni']:17.2f} {row['lazy_bptt']:5.2f}",
                flush=True,
            )
    return rows


def bench_cost(options: argparse.Namespace) -> dict:
    print("\n5 chunks of 8 steps in one call over our own backpropagation through 40 steps, H 256")
    side = [cost.chunks_side_by_side(batch, options.seconds) for batch in (1, 2, 4, 8)]
    print(", ".join(f"B {row['batch']}: {row['ratio']:.2f}" for row in side))
    print("\nTime = fixed + each * n, H 256, forward with backward, n in", cost.SIZES)
    lines = [cost.line(along, options.seconds / 4) for along in cost.LINES]
    for one in lines:
        print(
            f"{one.along:32} {one.fixed:6.2f} +{one.each:6.2f} n ms,"
            f" at most {one.worst:.0%} off"
        )
    print("\nPeak memory: what another chunk's length takes, over the histories it keeps")
    memory = [
        cost.memory_of_a_chunk(*sizes) for sizes in ((512, 32, 64), (1024, 32, 40), (1024, 128, 8))
    ]
    for row in memory:
        print(f"H {row['hidden']}, B {row['batch']}, T {row['steps']}: x{row['ratio']:.3f}")
    counts = (100, 1000) if options.quick else (100, 10_000)
    peaks = {count: cost.memory_of_updates(count) for count in counts}
    shown = ", ".join(f"{count}: {peak / 2**20:.1f} MiB" for count, peak in peaks.items())
    print(f"peak of a process after so many DNI updates (H 128, B 32, T 8): {shown}")
    return {
        "chunks_side_by_side": side,
        "lines": [one._asdict() for one in lines],
        "memory": memory,
        "peak_after_updates": peaks,
    }


def bench_stacks(options: argparse.Namespace, ceiling: float) -> list[dict]:
    sizes = f"B {stacks.BATCH}, input {stacks.INPUT}, H {stacks.HIDDEN} a layer"
    print(f"\nStacks against a Python loop of torch's cells, forward with backward, {sizes}")
    print("at most: what the loop's time is of its products alone at brgemm's rate")
    print("bf16: ours under autocast, x ours in float32")
    print(f"{'':24} {'T':>3} {'ours ms':>8} {'loop ms':>8} {'x loop':>7} {'at most':>8} {'bf16':>6}")
    rows = []
    for length in stacks.STEPS[:1] if options.quick else stacks.STEPS:
        for name in stacks.PEERS:
            row = stacks.point(name, length, options.seconds)
            row["at_most"] = row["loop_ms"] * 1e6 * ceiling / row["flops"] if ceiling else None
            rows.append(row)
            most = "" if row["at_most"] is None else f"{row['at_most']:.1f}"
            print(
                f"{name:24} {length:3} {row['ours_ms']:8.2f} {row['loop_ms']:8.2f}"
                f" {row['vs_loop']:7.2f} {most:>8} {row['bfloat16_vs_float32']:6.2f}",
                flush=True,
            )
    return rows


def bench_ragged(options: argparse.Namespace) -> list[dict]:
    sizes = f"B {ragged.BATCH}, T {ragged.STEPS}, input {ragged.INPUT}, H {ragged.HIDDEN}"
    print(f"\nStreams of sequences that follow each other in rows, forward with backward, {sizes}:")
    print("resets inside the operator against a PackedSequence, and a loop of cells that masks")
    print(f"{'':12} {'sequences':>9} {'ours ms':>9} {'x packed':>9} {'x masked':>9}")
    rows = []
    for name in ragged.STREAMS:
        row = ragged.point(name, options.seconds)
        rows.append(row)
        print(
            f"{name:12} {row['sequences']:9} {row['ours_ms']:9.1f} {row['vs_packed']:9.2f}"
            f" {row['vs_masked']:9.2f}",
            flush=True,
        )
    return rows


def bench_cuda(options: argparse.Namespace, keep: Callable[[dict], None]) -> dict | None:
    try:
        find_device("cuda")
    except ValueError as error:
        print(f"\ncuda: skipped, {error}")
        return None
    return cuda.report(options.points, options.seconds, keep, options.timelines)


if __name__ == "__main__":
    main()
