"""The two networks of a Hierarchy as parts: one process's arithmetic, late words, lost ranks. Gloo."""

import os
import signal
import time
from functools import partial

import pytest
import torch
from command_line import refused
from rank_runs import LOST, codes_of, command, run
from small_runs import assert_same_but_for_rng, rows_of
from strategies import assert_close
from torch import nn
from torch.nn import functional as F

import dnirnn
from dnirnn.commands.cli import main
from dnirnn.data import images
from dnirnn.hierarchy_parallel import HierarchyParallel
from dnirnn.training.checkpoint import checkpoints, update_of

ROWS, PERIOD, WIDTH, TICKS = 3, 2, 4, 5  # ticks of a sequence


def part_of(late: int, estimator=None, optimizer=None, **options) -> HierarchyParallel:
    torch.manual_seed(0)
    core = dnirnn.Hierarchy(dnirnn.LSTM(2 * WIDTH, WIDTH), dnirnn.LSTM(WIDTH, WIDTH), PERIOD, delay=late)
    encoder, readouts = nn.Linear(2, WIDTH), nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(2))
    made = [
        dnirnn.SyntheticGradient(size, (), scale, scale)
        for size, scale in ((2 * WIDTH, 0.5), (2 * WIDTH, 0.5), (WIDTH, 1.0), (WIDTH, 1.0))
    ]
    for one in made:
        nn.init.normal_(one.layers[-1].weight, std=0.2)
    if estimator is not None:
        made = [estimator() for _ in made]
    whole = nn.ModuleList([core, encoder, readouts, *made]).double()

    def loss(place, outputs, y):
        said = readouts[place](outputs)[..., 0]
        return (said - y[-len(said) :]).square().sum() / ROWS

    adam = optimizer or partial(torch.optim.Adam, lr=0.02)
    opened = tuple([adam(list(whole.parameters()))])
    part = HierarchyParallel(
        core, encoder, (partial(loss, 0), partial(loss, 1)), made[:2], made[2:], [opened] * 2, **options
    )
    part.whole = whole
    return part


def learned(part: HierarchyParallel, sequences: int = 3, before=lambda tick: None) -> list[float]:
    """The losses of all ticks of some sequences."""
    draw, losses = torch.Generator().manual_seed(1), []
    core = part.whole[0]
    for _ in range(sequences):
        state = core.initial_state(ROWS).double()
        for tick in range(TICKS):
            x = torch.randn(PERIOD, ROWS, 2, generator=draw, dtype=torch.float64)
            before(tick)
            final = tick == TICKS - 1
            _, state = part.learn(x, x.sum(2), state, tick * PERIOD, final, 1 / ROWS)
            losses.append([float(loss) for loss in part.losses])
    part.close()
    return losses


def of_side(part: HierarchyParallel) -> list:
    return [[p.tolist() for p in side.parameters()] for side in (part.fast, part.slow) if side is not None]


@pytest.mark.parametrize("late", [0, 1, 7])
def test_the_parts_say_what_the_hierarchy_says(late):
    """Loss by loss and in the last state, where the weights stay; each sequence begins anew."""
    part = part_of(late, dnirnn.ZeroGradient, partial(torch.optim.SGD, lr=0.0))
    core, encoder, readouts = part.whole[:3]
    draw = torch.Generator().manual_seed(1)
    found = torch.tensor(learned(part, sequences=2), dtype=torch.float64)
    expected = []
    for _ in range(2):
        x = torch.stack([torch.randn(PERIOD, ROWS, 2, generator=draw, dtype=torch.float64) for _ in range(TICKS)])
        outputs, _ = core(encoder(x.flatten(0, 1)), core.initial_state(ROWS).double())
        fast, slow = outputs.unflatten(0, (TICKS, PERIOD)).split(WIDTH, -1)
        for tick in range(TICKS):
            y, given = x[tick].sum(2), (fast[tick], slow[tick, -1:])
            said = [readout(one)[..., 0] for readout, one in zip(readouts, given)]
            expected.append([(one - y[-len(one) :]).square().sum() / ROWS for one in said])
    assert_close(found, torch.tensor([[float(x) for x in one] for one in expected], dtype=torch.float64))


@pytest.mark.parametrize("late", [0, 1, 3])
def test_two_processes_are_one(late):
    whole = part_of(late, staleness=0)
    losses = learned(whole)

    def work(ranks):
        part = part_of(late, staleness=0)
        return [learned(part), of_side(part)]

    fast, slow = run(2, work)
    assert [[a[0], b[0]] for a, b in zip(fast[0], slow[0])] == losses
    assert fast[1] + slow[1] == of_side(whole)


def test_what_is_read_does_not_depend_on_how_fast_messages_are():
    """Where nothing is fitted to late targets, the run is that of one process whatever is late."""
    whole = part_of(1, dnirnn.ZeroGradient)
    losses = learned(whole)

    def work(ranks):
        part = part_of(1, dnirnn.ZeroGradient, staleness=3, delay=0.003 * ranks.rank)
        return learned(part, before=lambda tick: time.sleep(0.002 * (tick % 2 == ranks.rank)))

    fast, slow = run(2, work)
    assert [[a[0], b[0]] for a, b in zip(fast, slow)] == losses


def test_a_late_target_meets_its_own_word():
    def work(ranks):
        part = part_of(1, staleness=2, delay=0.01)
        (side,) = part.sides
        said, met, step, fit = {}, [], side.step, side.fit

        def keep(now, word, *rest):
            said[now.number] = word.detach()
            return step(now, word, *rest)

        def watch(number, target):
            met.append((number, torch.equal(side.kept[number][0].start[0], said[number])))
            return fit(number, target)

        side.step, side.fit = keep, watch
        learned(part)
        return [met, len(said), len(side.kept)]

    for met, said, left in run(2, work):
        assert len({number for number, _ in met}) == len(met) == said and left == 0
        assert all(same for _, same in met)


def test_the_fast_network_does_not_wait_for_the_tick_at_hand():
    def work(ranks):
        waits = []
        for late in (0, TICKS):
            part = part_of(late, dnirnn.ZeroGradient, staleness=TICKS, delay=0.03)
            state = part.whole[0].initial_state(ROWS).double()
            for tick in range(TICKS):
                x = torch.ones(PERIOD, ROWS, 2, dtype=torch.float64)
                _, state = part.learn(x, x.sum(2), state, tick * PERIOD)
            waits.append(part.waits)
            part.close()
        return waits

    (waited, never), _ = run(2, work)
    assert waited == TICKS - 1 and never == 0


class Fixed(dnirnn.GradientEstimator):
    """Predicts what it is given; keeps what it is to be fitted to."""

    def __init__(self):
        super().__init__()
        self.said, self.met = None, []

    def forward(self, state):
        return torch.zeros_like(state) if self.said is None else self.said.expand_as(state)

    def accumulate(self, entered, target, *context, weight=None):
        self.met.append(target)
        return target.new_zeros(())


def test_a_word_s_target_is_its_true_gradient_and_what_is_predicted_is_sent_back():
    """By hand, of two ticks: at no rate the weights stay, so that the second sees those of the first."""
    made = part_of(0, Fixed, partial(torch.optim.SGD, lr=0.0))
    core, encoder, readouts = made.whole[:3]
    x = torch.randn(2, PERIOD, ROWS, 2, dtype=torch.float64)
    start = core.initial_state(ROWS).double()
    fast_state, slow_state, silence = start.split(core.sizes, 1)

    def missed(place, outputs, y):
        said = readouts[place](outputs)[..., 0]
        return (said - y[-len(said) :]).square().sum()

    def heard(given, word):
        return torch.cat([encoder(given), word.expand(PERIOD, -1, -1)], 2)

    first, fast_state = core.fast(heard(x[0], silence), fast_state)
    a = first[-1]
    said, _ = core.slow(a[None], slow_state)
    b = said[-1]
    second, _ = core.fast(heard(x[1], b), fast_state.detach())
    losses = missed(0, first, x[0].sum(2)), missed(1, b[None], x[0].sum(2))
    (of_a,) = torch.autograd.grad(losses[1], a, retain_graph=True)
    (of_b,) = torch.autograd.grad(missed(0, second, x[1].sum(2)), b, retain_graph=True)
    old = [*core.fast.parameters(), *encoder.parameters(), *readouts[0].parameters()]
    gradients = torch.autograd.grad(sum(losses) / ROWS, old)
    state = start
    for tick in range(2):
        _, state = made.learn(x[tick], x[tick].sum(2), state, tick * PERIOD, tick == 1, 1 / ROWS)
    assert_close(made.fast.estimator.met[0], of_a)
    assert_close(made.slow.estimator.met[0], of_b)
    assert torch.equal(made.slow.estimator.met[1], torch.zeros_like(of_b)), "nobody hears the last word"

    # With the true gradient at a, the fast network's update is that of the whole tick's loss.
    moved = part_of(0, Fixed, partial(torch.optim.SGD, lr=1.0))
    moved.fast.estimator.said = of_a
    moved.learn(x[0], x[0].sum(2), start, 0, True, 1 / ROWS)
    new = [*moved.whole[0].fast.parameters(), *moved.whole[1].parameters(), *moved.whole[2][0].parameters()]
    for before, after, gradient in zip(old, new, gradients, strict=True):
        assert_close(before - after, gradient)


def test_a_killed_network_ends_both():
    def work(victim):
        def live(ranks):
            def before(tick):
                if ranks.rank == victim and tick == 3:
                    os.kill(os.getpid(), signal.SIGKILL)

            learned(part_of(1), before=before)

        return live

    for victim in (0, 1):
        codes = codes_of(2, work(victim))
        assert codes == [-signal.SIGKILL if rank == victim else LOST for rank in range(2)]


def test_bad_arguments_are_named():
    for options, said in ((dict(staleness=-1), "staleness"), (dict(delay=-1.0), "delay")):
        with pytest.raises(ValueError, match=said):
            part_of(0, **options)
    part = part_of(0)
    with pytest.raises(ValueError, match="t must be a multiple of the period, 2; got 1"):
        part.learn(torch.ones(1), None, torch.ones(1), 1)
    with pytest.raises(ValueError, match="delay must be an int of at least 0; got -1"):
        dnirnn.Hierarchy(dnirnn.LSTM(3, 2), dnirnn.LSTM(2, 2), 2, delay=-1)
    with pytest.raises(ValueError, match="in_time must be two"):
        HierarchyParallel(part.whole[0], nn.Identity(), (F.relu,) * 2, [], [], [])


# The command line


def words(folder, *more: str) -> list[str]:
    said = "train digits --hidden 8 --front 8 --windows 3 --batch 4 --period 2 --symbols 480"
    said += " --log-every 40 --evaluate-every 224 --estimator-lr 1e-3 --parallel decoupled --staleness 0"
    return [*said.split(), "--quiet", "--threads", "1", "--out", str(folder), *more]


def test_digits_in_two_processes_are_one_run_where_one_is_killed(tmp_path):
    """Saved in the middle of a sequence, with words that are still to be heard."""
    images.load("builtin", None)  # what reads them need not be imported in each process
    more = ("--message-delay", "2")
    assert main(words(tmp_path / "one", *more)) == 0
    codes = codes_of(2, command(words(tmp_path / "two", *more), kill=(0, 79)))
    assert codes == [-signal.SIGKILL, LOST]
    (saved, *_) = checkpoints(tmp_path / "two" / "checkpoints")[-1:]
    assert update_of(saved) % 6, "a sequence of 6 ticks had not ended"
    assert codes_of(2, command(words(tmp_path / "two", *more))) == [0, 0]
    assert_same_but_for_rng(tmp_path / "two", tmp_path / "one")
    assert main(["eval", str(tmp_path / "two"), "--split", "valid"]) == 0


@pytest.mark.parametrize("slow", [0, 1])
def test_late_messages_and_a_slow_rank_stop_no_network(slow, tmp_path):
    said = words(tmp_path, "--staleness", "2", "--symbols", "160")
    images.load("builtin", None)
    assert codes_of(2, command(said, slow=slow)) == [0, 0]
    assert [row["update"] for row in rows_of(tmp_path) if row["kind"] == "train"] == [5, 10, 15, 20]


def test_what_networks_in_parts_can_t_do_is_refused_by_name(tmp_path, capsys):
    for more, said in (
        (["--truncation", "4"], "--truncation and --update-steps must be --period 2; got 4"),
        (["--warm-up", "3"], "--warm-up does not go with"),
        (["--parallel", "data"], "--staleness goes with --parallel decoupled only"),
    ):
        refused(capsys, [*words(tmp_path / "no"), *more], said)
