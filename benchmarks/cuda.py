"""On a GPU: the whole training step and the operator, against cuDNN's LSTM, eager and in CUDA graphs.

Every figure is a median of CUDA events; the sides take turns. float32 products may use tf32, on both
sides, but where the precision says float32. In the whole step bfloat16 is autocast, parameters and
state of float32; for the operator alone it is a model of bfloat16 or float16 parameters.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import dnirnn
from benchmarks.cuda_timing import (
    PRECISIONS,
    alternate,
    captured,
    ceilings,
    path_of,
    peak_of,
    products_of,
    timeline,
)
from benchmarks.op import INPUT
from benchmarks.steps import EMBEDDING, SCALE, SYMBOLS, Text, plain_estimator
from dnirnn.config.network import BFloat16Model
from dnirnn.data import Batch
from dnirnn.device import own_stream
from dnirnn.model import SequenceModel, symbol_nats
from dnirnn.training.optimizers import make_optimizer
from dnirnn.training.updater import CUDAGraphs, Updater

HIDDEN, BATCH = (256, 512, 1024), (32, 128, 256)
SHAPES = ((8, 1), (40, 1), (40, 5))  # steps, chunks
# What others published for an H100: bfloat16, B 16, T 1024, 768 units; milliseconds.
PUBLISHED = {"hidden": 768, "batch": 16, "steps": 1024, "inputs": 768}
PUBLISHED_MS = {"cudnn": (2.01, 5.19), "flashrnn, without the input's product": (4.87, 13.61)}
PATHS = ("auto", "steps", "on chip")
RATE, UNREAD = 1e-4, 4096


class Step:
    """A whole DNI step in plain torch around nn.LSTM, one backward pass, and the same of dnirnn.

    plain: the step, on tensors that stay where they are: eager, or to be captured.
    ours: the same step, of an Updater.
    """

    def __init__(
        self,
        hidden: int,
        batch: int,
        steps: int,
        dtype: torch.dtype,
        device: torch.device,
        graphs: bool,
    ):
        torch.manual_seed(0)
        self.text, self.core = Text(hidden).to(device), nn.LSTM(EMBEDDING, hidden).to(device)
        self.estimator = plain_estimator(hidden, hidden).to(device)
        self.reduced, self.device = dtype == torch.bfloat16, device
        symbols = torch.randint(SYMBOLS, (steps + 1, batch), device=device)
        self.x, self.y = symbols[:-1].contiguous(), symbols[1:].contiguous()
        self.state = torch.zeros(2, 1, batch, hidden, device=device, requires_grad=True)
        self.fitted = [*self.text.parameters(), *self.core.parameters()]
        both = (self.fitted, list(self.estimator.parameters()))
        self.optimizers = [make_optimizer("", parameters, "Adam", RATE, {}) for parameters in both]
        self.model, self.updater = self.of_dnirnn(hidden, batch, steps, graphs)
        self.ours_state, self.t = self.model.initial_state(batch), 0

    def of_dnirnn(
        self, hidden: int, batch: int, steps: int, graphs: bool
    ) -> tuple[SequenceModel, Updater]:
        core = dnirnn.LSTM(EMBEDDING, hidden)
        core.load_state_dict(self.core.state_dict())
        estimator = dnirnn.SyntheticGradient(core.state_size, (hidden,), SCALE, SCALE)
        for layer, given in zip(estimator.layers, (self.estimator[0], self.estimator[2])):
            layer.load_state_dict(given.state_dict())
        text = Text(hidden, dnirnn.Embedding)
        text.load_state_dict(self.text.state_dict())
        kind = BFloat16Model if self.reduced else SequenceModel
        truncated = dnirnn.Truncated(core, steps, estimator)
        model = kind(text.embedding, truncated, text.readout, symbol_nats).to(self.device)
        parts = (model.core_parameters(), model.estimator_parameters())
        optimizers = [make_optimizer("", parameters, "Adam", RATE, {}) for parameters in parts]
        bounds = [(None, 1.0), (None, None)]
        updater = Updater(
            model, optimizers, bounds, batch, batch, 1 / (batch * steps), watch=False,
            capture=CUDAGraphs() if graphs else None, capacity=UNREAD,
        )  # fmt: skip
        return model, updater

    def ours(self) -> None:
        if self.updater.full:
            self.updater.read()
        self.ours_state = self.updater(Batch(self.x, self.y), self.ours_state, self.t)
        self.t += len(self.x)

    def plain(self) -> None:
        batch, hidden = self.state.shape[2:]
        unit = 1 / self.y.numel()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.reduced):
            outputs, ended = self.core(self.text.embedding(self.x), tuple(self.state))
            loss = self.text.loss(outputs, self.y)
            with torch.no_grad():
                after = torch.stack(ended)
                synthetic = self.estimator(self.joined(after)) * (SCALE * unit)
                seeds = synthetic.view(batch, 2, 1, hidden).permute(1, 2, 0, 3).contiguous()
        torch.autograd.backward([loss, *ended], [None, *(s.to(after.dtype) for s in seeds)])
        entered, target = self.joined(self.state.detach()), self.joined(self.state.grad) / unit
        error = 0.5 * (self.estimator(entered) - target).square().sum(-1).mean()
        error.backward()
        nn.utils.clip_grad_norm_(self.fitted, 1.0, foreach=True)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.state.grad = None
        with torch.no_grad():
            self.state.copy_(after)

    def joined(self, parts: Tensor) -> Tensor:
        """[B, 2 H], h then c, of [2, 1, B, H]."""
        return parts.squeeze(1).transpose(0, 1).flatten(1)


def step_point(hidden: int, batch: int, precision: str, seconds: float, steps: int = 8) -> dict:
    """One size of the whole step: ours replayed and eager, plain torch captured and eager."""
    device = torch.device("cuda", torch.cuda.current_device())
    made = {
        name: Step(hidden, batch, steps, PRECISIONS[precision], device, graphs)
        for name, graphs in (("graph", True), ("eager", False))
    }
    plain = made["graph"].plain
    plain(), made["eager"].ours()
    peaks = {"peak_mib": peak_of(made["eager"].ours), "plain_peak_mib": peak_of(plain)}
    sides = {
        "ours": made["graph"].ours,
        "ours_eager": made["eager"].ours,
        "plain_eager": made["eager"].plain,
        "plain_graph": captured(plain),
    }
    times = alternate(sides, seconds)
    return {
        "hidden": hidden,
        "batch": batch,
        "precision": precision,
        **{f"{name}_ms": 1e3 * value for name, value in times.items()},
        "vs_eager": times["plain_eager"] / times["ours"],
        "vs_graph": times["plain_graph"] / times["ours"],
        "characters_per_second": batch * steps / times["ours"],
        **peaks,
    }


def op_point(
    hidden: int,
    batch: int,
    steps: int,
    chunks: int,
    precision: str,
    seconds: float,
    rates: dict,
    inputs: int = INPUT,
) -> dict:
    """Forward, and forward with backward, in graphs: ours in chunks, cuDNN over all the steps.

    Ours by each of its paths; "auto" is what a user gets.
    """
    dtype = PRECISIONS[precision]
    made = dict(device="cuda", dtype=dtype)
    reference, core = nn.LSTM(inputs, hidden, **made), dnirnn.LSTM(inputs, hidden, **made)
    core.load_state_dict(reference.state_dict())
    truncated = dnirnn.Truncated(core, steps // chunks, dnirnn.ZeroGradient())
    x = torch.randn(steps, batch, inputs, **made, requires_grad=True)
    grad = torch.randn(steps, batch, hidden, **made)
    state = core.initial_state(batch)
    start = tuple(torch.zeros(2, 1, batch, hidden, **made))

    def both(module: nn.Module, initial: object) -> Callable[[], None]:
        parameters = [x, *module.parameters()]

        def call() -> None:
            for parameter in parameters:
                parameter.grad = None
            module(x, initial)[0].backward(grad)

        return call

    def forward(module: nn.Module, initial: object) -> Callable[[], None]:
        return lambda: module(x, initial)

    calls = {"ours": both(truncated, state), "cudnn": both(reference, start)}
    peaks = {f"{name}_peak_mib": peak_of(call) for name, call in calls.items()}
    sides = {}
    for name, make in (("forward", forward), ("both", both)):
        for path in PATHS:
            with path_of(path):
                sides[f"{name}, {path}"] = captured(make(truncated, state))
        sides[f"{name}, cudnn"] = captured(make(reference, start))
    times = alternate(sides, seconds)
    floors = floor_of(hidden, batch, steps, chunks, precision, rates, inputs)
    ours = times["both, auto"]
    return {
        "hidden": hidden,
        "batch": batch,
        "inputs": inputs,
        "steps": steps,
        "chunks": chunks,
        "precision": precision,
        "ms": {side: 1e3 * value for side, value in times.items()},
        "forward_vs_cudnn": times["forward, cudnn"] / times["forward, auto"],
        "vs_cudnn": times["both, cudnn"] / ours,
        **{f"floor_{name}_ms": 1e3 * value for name, value in floors.items()},
        "of_floor": max(floors.values()) / ours,
        **peaks,
    }


def floor_of(
    hidden: int,
    batch: int,
    steps: int,
    chunks: int,
    precision: str,
    rates: dict,
    inputs: int = INPUT,
) -> dict[str, float]:
    """Seconds that no forward with backward goes below: by arithmetic, by bytes, by steps.

    bytes: the weights read forwards and backwards and their gradients written; inputs, outputs,
    their gradients, and the histories of h, c and the gates written and read once. steps: of the
    forward pass and of a chunk's backward pass, each after the one before.
    """
    size = PRECISIONS[precision].itemsize
    weights = 4 * hidden * (hidden + inputs) + 8 * hidden
    rows = steps * batch
    moved = 3 * weights * size + rows * (3 * inputs + 2 * hidden) * size + 2 * 6 * rows * hidden * 4
    # Products with the inputs, and with h but for the first step's: forwards, and twice backwards.
    products = 3 * 2 * rows * 4 * hidden * (inputs + hidden)
    return {
        "flops": products / rates[precision],
        "bytes": moved / rates["bytes"],
        "steps": (steps + steps // chunks) * rates["step"],
    }


# Of the whole step: precision, H, B. Of the operator: T, chunks and the inputs' size too.
Point = tuple[str, int, int] | tuple[str, int, int, int, int, int]


def points_of(quick: bool) -> list[Point]:
    batches = BATCH[:2] if quick else BATCH
    precisions = ("bfloat16", "float16", "tf32") if quick else tuple(PRECISIONS)
    sizes = [(p, h, b) for p in precisions for h in HIDDEN for b in batches]
    wide, b, steps = PUBLISHED["hidden"], PUBLISHED["batch"], PUBLISHED["steps"]
    return [
        *(size for size in sizes if size[0] != "float16"),
        *((*size, *shape, INPUT) for size in sizes for shape in SHAPES),
        *(("bfloat16", wide, b, steps, chunks, PUBLISHED["inputs"])
          for chunks in ((1, 16, 128) if quick else (1, 8, 16, 32, 64, 128))),
    ]  # fmt: skip


def point_of(word: str) -> Point:
    """A point as --points has it: bfloat16,512,128 or bfloat16,512,128,40,5[,INPUTS].

    Raises ValueError for another.
    """
    precision, *sizes = word.split(",")
    if precision not in PRECISIONS or len(sizes) not in (2, 4, 5) or not all(map(str.isdecimal, sizes)):
        raise ValueError(
            f"--points must be {'|'.join(PRECISIONS)},H,B for the whole step, and ,T,CHUNKS[,INPUTS] further for"
            f" the operator; got {word!r}"
        )
    numbers = [int(size) for size in sizes]
    if 0 in numbers or len(numbers) > 2 and numbers[2] % numbers[3]:
        raise ValueError(f"--points must have sizes of at least 1, and CHUNKS must divide T; got {word!r}")
    return (precision, *numbers, *((INPUT,) if len(numbers) == 4 else ()))


def report(
    points: Sequence[Point], seconds: float, keep: Callable[[dict], None], timelines: bool = False
) -> dict:
    """All of these points, printed and kept as they are found: first those of the whole step.

    timelines: also what the device does in one of its steps, kernel by kernel, ours and plain torch's.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    found = {
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    print("\n{gpu}, CUDA {cuda}, cuDNN {cudnn}".format(**found))
    with own_stream(device):
        found["ceilings"] = rates = ceilings()
        print(
            "ceilings: "
            + ", ".join(f"{rates[name] / 1e12:.0f} TFLOP/s {name}" for name in PRECISIONS)
            + f", {rates['bytes'] / 1e12:.2f} TB/s, {rates['step'] * 1e6:.2f} us a dependent kernel"
            " in a graph"
        )
        found["step"], found["op"], found["timeline"] = [], [], {}
        keep(found)
        steps = [point for point in points if len(point) == 3]
        if steps:
            print("\nThe whole DNI step, T 8; x: plain torch's time over ours")
            print(f"{'':9}{'H':>5} {'B':>4} {'ours ms':>8} {'x eager':>8} {'x graph':>8}", end="")
            print(f" {'ours eager ms':>14} {'chars/s':>12} {'MiB':>6} {'plain MiB':>10}")
        for precision, h, b in steps:
            with products_of(precision):
                row = step_point(h, b, precision, seconds)
                if timelines:
                    found["timeline"][f"{precision},{h},{b}"] = timelines_of(h, b, precision)
            found["step"].append(row)
            keep(found)
            print(
                f"{precision:9}{h:5} {b:4} {row['ours_ms']:8.3f} {row['vs_eager']:8.2f}"
                f" {row['vs_graph']:8.2f} {row['ours_eager_ms']:14.3f}"
                f" {row['characters_per_second']:12,.0f} {row['peak_mib']:6.0f}"
                f" {row['plain_peak_mib']:10.0f}",
                flush=True,
            )
        if len(steps) == len(points):
            return found
        print("\nThe operator in graphs, milliseconds forward | forward with backward, by path;")
        print("x: cuDNN's time over ours; 5 chunks of 8 over 40")
        print(f"{'':9}{'H':>5} {'B':>4} {'T':>4} {'N':>3} {'auto':>7} {'steps':>7} {'chip':>7}", end="")
        print(f" {'cuDNN':>7} {'x':>5} | {'auto':>7} {'steps':>7} {'chip':>7} {'cuDNN':>7} {'x':>5}", end="")
        print(f" {'of floor':>9}  floor: flops, bytes, steps ms")
        for point in points:
            if len(point) == 3:
                continue
            precision, h, b, length, chunks, inputs = point
            with products_of(precision):
                row = op_point(h, b, length, chunks, precision, seconds, rates, inputs)
            found["op"].append(row)
            keep(found)
            sides = (*PATHS, "cudnn")
            first, both = (
                " ".join(f"{row['ms'][f'{name}, {side}']:7.3f}" for side in sides)
                for name in ("forward", "both")
            )
            floors = [row[f"floor_{of}_ms"] for of in ("flops", "bytes", "steps")]
            print(
                f"{precision:9}{h:5} {b:4} {length:4} {chunks:3} {first} {row['forward_vs_cudnn']:5.2f}"
                f" | {both} {row['vs_cudnn']:5.2f} {row['of_floor']:9.0%}  "
                + ", ".join(f"{floor:.3f}" for floor in floors),
                flush=True,
            )
            if length == PUBLISHED["steps"] and h == PUBLISHED["hidden"]:
                print(f"published for this shape on an H100, ms: {PUBLISHED_MS}")
    return found


def timelines_of(hidden: int, batch: int, precision: str) -> dict[str, list[str]]:
    """What the device does in one replay of the whole step, ours and plain torch's."""
    device = torch.device("cuda", torch.cuda.current_device())
    step = Step(hidden, batch, 8, PRECISIONS[precision], device, True)
    sides = {"ours": step.ours, "plain": captured(step.plain)}
    return {name: timeline(call) for name, call in sides.items()}
