"""Contests: a stack, the task that it was made for, and the plain LSTM beside it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

BUDGETS = ("quick", "cpu", "gpu")
SEEDS = {"quick": (0,), "cpu": (0, 1, 2), "gpu": (0, 1, 2)}
LSTM = "plain LSTM"


class Arm(NamedTuple):
    """A network in a contest. plain: a plain LSTM, that the others are measured against."""

    label: str
    changes: dict[str, Any]
    plain: bool = False


class Contest(NamedTuple):
    """A task, and the networks that are trained on it.

    figure: what is tested, without its "test_", and is followed on validation on the way.
    options: of every arm. sizes: what differs by budget, "minutes" of training a run among it.
    data: the folder in --data-dir that it reads, if any. quoted: the paper's figures.
    """

    title: str
    task: str
    figure: str
    options: dict[str, Any]
    sizes: dict[str, dict[str, Any]]
    arms: dict[str, Arm]
    quoted: str
    data: str | None = None


def whole(steps: int, core: str = "lstm", **changes: Any) -> dict[str, Any]:
    """Trained by backpropagation over the whole sequence."""
    return dict(core=core, truncation=steps, **changes)


def plain(steps: int | None, cut: int, **changes: Any) -> dict[str, Arm]:
    """The plain LSTM, cut, and with backpropagation over the whole sequence where it has so many steps."""
    found = {"lstm": Arm(f"{LSTM}, cut every {cut} steps", dict(core="lstm", truncation=cut, **changes), True)}
    if steps is not None:
        found["lstm-whole"] = Arm(f"{LSTM}, whole sequences", whole(steps, **changes), True)
    return found


def copy_memory(budget: str) -> Contest:
    blanks = {"quick": 10, "cpu": 100, "gpu": 1000}[budget]
    steps = blanks + 20
    dilations = tuple(2**i for i in range({"quick": 4, "cpu": 7, "gpu": 10}[budget]))
    return Contest(
        f"Copy memory over {blanks} blank steps",
        "copy-memory",
        "nats",
        dict(blanks=blanks, lr=1e-3),
        {
            "quick": dict(parameters=10_000, minutes=0.05, evaluate_every=10_000),
            "cpu": dict(parameters=20_000, minutes=2.0, evaluate_every=2_000_000),
            "gpu": dict(parameters=100_000, batch=128, minutes=20.0, evaluate_every=20_000_000),
        },
        {
            "dilated": Arm("dilated RNNs", whole(steps, "dilated", dilations=dilations, cell="rnn")),
            "dilated-lstm": Arm("dilated LSTMs", whole(steps, "dilated", dilations=dilations)),
            **plain(steps, 20),
        },
        "Chang et al. 2017: dilated networks come near zero at T = 500 and 1,000, where plain LSTMs and GRUs"
        " stay at the baseline",
    )


def permuted(budget: str) -> Contest:
    quick = budget == "quick"
    steps = 64 if quick else 784
    dilations = tuple(2**i for i in range(4 if quick else 9))
    return Contest(
        f"Permuted {'8 x 8 digits' if quick else 'MNIST'} by pixel",
        "pixels",
        "accuracy",
        dict(digits="builtin" if quick else "mnist", permuted=0, lr=2e-3),
        {
            "quick": dict(parameters=10_000, minutes=0.05, evaluate_every=1_000),
            "cpu": dict(parameters=40_000, minutes=3.5, evaluate_every=8_000),
            "gpu": dict(parameters=100_000, batch=128, minutes=20.0, evaluate_every=100_000),
        },
        {
            "dilated": Arm("dilated RNNs", whole(steps, "dilated", dilations=dilations, cell="rnn")),
            "dilated-lstm": Arm("dilated LSTMs", whole(steps, "dilated", dilations=dilations)),
            **plain(steps, steps // 16),
        },
        "Chang et al. 2017, permuted: dilated RNN, GRU, LSTM about 95.5, 94.6, 94.2 %, LSTM 91.3 %",
        "mnist",
    )


def signal(budget: str) -> Contest:
    quick = budget == "quick"
    steps, sines = (32, (4.0, 16.0)) if quick else (256, (8.0, 32.0, 128.0))
    periods = (1, 4) if quick else (1, 4, 16, 64)
    return Contest(
        f"A signal of {len(sines)} rates, sampled evenly, to be gone on with",
        "signal",
        "error",
        dict(goal="continue", sines=sines, length=steps, lr=3e-3),
        {
            "quick": dict(parameters=5_000, minutes=0.05, evaluate_every=20_000),
            "cpu": dict(parameters=20_000, minutes=1.5, evaluate_every=1_000_000),
            "gpu": dict(parameters=100_000, batch=128, minutes=10.0, evaluate_every=50_000_000),
        },
        {
            "clockwork-lstm": Arm("clockwork LSTMs", whole(steps, "clockwork-lstm", periods=periods)),
            "clockwork": Arm("clockwork RNNs", whole(steps, "clockwork", periods=periods)),
            **plain(steps, steps // 16),
        },
        "Koutnik et al. 2014, section 4.1: on generated audio a clockwork RNN has a much lower error than an"
        " LSTM of as many parameters",
    )


def uneven(budget: str) -> Contest:
    steps = 32 if budget == "quick" else 128
    return Contest(
        "A sine at random times: is it in tune?",
        "signal",
        "error",
        dict(goal="tuned", uneven=True, sines=(6.0,), length=steps, lr=3e-3),
        {
            "quick": dict(parameters=5_000, minutes=0.05, evaluate_every=1_000),
            "cpu": dict(parameters=20_000, minutes=1.5, evaluate_every=20_000),
            "gpu": dict(parameters=100_000, batch=128, minutes=10.0, evaluate_every=500_000),
        },
        {
            "phased": Arm(
                "phased LSTM", whole(steps, "phased", shortest_period=2.0, longest_period=50.0, open_ratio=0.3)
            ),
            **plain(steps, steps // 8),
        },
        "Neil et al. 2016, section 3.1: at random times a phased LSTM tells a period of 5 to 6 from others"
        " in a few epochs, an LSTM that reads the time does far worse",
    )


def skipping(costs: Sequence[float], steps: int) -> dict[str, Arm]:
    return {
        f"skip-{cost:g}": Arm(f"skip LSTM, {cost:g} an update", whole(steps, "skip", skip_cost=cost))
        for cost in costs
    }


def adding(budget: str) -> Contest:
    length = {"quick": 12, "cpu": 100, "gpu": 500}[budget]
    return Contest(
        f"Adding over {length} steps",
        "adding",
        "error",
        dict(length=length, lr=3e-3),
        {
            "quick": dict(parameters=5_000, minutes=0.05, evaluate_every=2_000),
            "cpu": dict(parameters=20_000, minutes=1.5, evaluate_every=20_000),
            "gpu": dict(parameters=50_000, batch=128, minutes=10.0, evaluate_every=400_000),
        },
        {**skipping((0.0, 1e-5), length), **plain(length, length // 4)},
        "Campos et al. 2018, of 50 steps: skip LSTMs solve it with about half of the updates",
    )


def rows(budget: str) -> Contest:
    quick = budget == "quick"
    steps = 8 if quick else 28
    return Contest(
        f"{'8 x 8 digits' if quick else 'MNIST'} by rows",
        "pixels",
        "accuracy",
        dict(digits="builtin" if quick else "mnist", rows=True, lr=2e-3),
        {
            "quick": dict(parameters=5_000, minutes=0.05, evaluate_every=1_000),
            "cpu": dict(parameters=40_000, minutes=1.5, evaluate_every=20_000),
            "gpu": dict(parameters=100_000, batch=128, minutes=10.0, evaluate_every=200_000),
        },
        {**skipping((0.0, 1e-3, 1e-2), steps), **plain(steps, steps // 4)},
        "Campos et al. 2018, by pixel: skip LSTM 97.3 % with 379 of 784 updates, LSTM 91.0 %",
        "mnist",
    )


def text(budget: str) -> Contest:
    quick = budget == "quick"
    return Contest(
        f"Characters of {'a generated text' if quick else 'Penn Treebank'}",
        "char-lm",
        "bits",
        dict(corpus="builtin" if quick else "ptb", lr=3e-3),
        {
            "quick": dict(parameters=20_000, minutes=0.05, evaluate_every=50_000),
            "cpu": dict(parameters=300_000, minutes=3.5, evaluate_every=500_000),
            "gpu": dict(parameters=4_000_000, batch=128, minutes=30.0, evaluate_every=10_000_000),
        },
        {
            "hm-lstm": Arm("HM-LSTM", dict(core="hm-lstm", truncation=40)),
            "fast-slow": Arm("fast-slow", dict(core="fast-slow", truncation=40)),
            **plain(None, 40),
        },
        "Chung et al. 2016: HM-LSTM 1.24; Mujika et al. 2017: fast-slow 1.19; an LSTM with layer norm 1.27",
        "ptb",
    )


def digits(period: int) -> Callable[[str], Contest]:
    def contest(budget: str) -> Contest:
        quick = budget == "quick"
        ways = {"dni": "DNI", "full": "waiting for T * T steps", "truncated": "truncated"}
        return Contest(
            f"Digits counted by two networks, T = {period}",
            "digits",
            "threes",
            dict(digits="builtin" if quick else "mnist", period=period, lr=1e-3),
            {
                "quick": dict(hidden=16, front=(16,), minutes=0.05, evaluate_every=5_000),
                "cpu": dict(hidden=64, front=(64,), minutes=2.0, evaluate_every=100_000),
                "gpu": dict(minutes=20.0, evaluate_every=2_000_000),
            },
            {
                way: Arm(label, dict(training=way), plain=way != "dni") for way, label in ways.items()
            },
            "Jaderberg et al. 2017, section 3.2, T = 4: DNI learns both counts in fewer digits than"
            " backpropagation that waits",
            "mnist",
        )

    return contest


CONTESTS: dict[str, Callable[[str], Contest]] = {
    "copy-memory": copy_memory,
    "permuted": permuted,
    "signal": signal,
    "uneven": uneven,
    "adding": adding,
    "rows": rows,
    "text": text,
    "digits-4": digits(4),
    "digits-5": digits(5),
    "digits-10": digits(10),
}
# Budgets that leave a contest out.
SKIPPED: dict[str, tuple[str, ...]] = {"quick": ("digits-5", "digits-10"), "cpu": ("digits-10",), "gpu": ()}
