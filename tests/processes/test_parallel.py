"""Decoupled networks in processes of their own: the arithmetic of one, late targets, lost ranks. Gloo."""

import os
import signal
import time
from functools import partial

import pytest
import torch
from rank_runs import LOST, codes_of, command, run
from small_runs import assert_equal_runs, assert_same_but_for_rng, rows_of
from torch import nn
from torch.nn import functional as F

import dnirnn
from dnirnn.commands.cli import main
from dnirnn.data import images
from dnirnn.parallel import DecoupledParallel
from dnirnn.training.checkpoint import checkpoints, load

ROWS, UPDATES, WIDTH, CLASSES = 6, 9, 5, 3


def network(seed: int = 0) -> tuple[list[nn.Module], list[dnirnn.SyntheticGradient]]:
    torch.manual_seed(seed)
    modules = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(3)]
    modules.append(nn.Linear(WIDTH, CLASSES))
    estimators = [
        dnirnn.SyntheticGradient(WIDTH, (), 1.0, discount, context_size=CLASSES)
        for discount in (1.0, 0.5, 1.0)
    ]
    for estimator in estimators:
        nn.init.normal_(estimator.layers[-1].weight, std=0.3)
    return [m.double() for m in modules], [e.double() for e in estimators]


def batches() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    found = []
    for _ in range(UPDATES):
        x = torch.randn(ROWS, WIDTH, generator=draw, dtype=torch.float64)
        y = torch.randint(CLASSES, (ROWS,), generator=draw)
        found.append((x, y, F.one_hot(y, CLASSES).double()))
    return found


adam = partial(torch.optim.Adam, lr=0.05)


def optimizers(modules) -> list[torch.optim.Optimizer]:
    return [adam(module.parameters()) for module in modules]


def part_of(ranks, seed=0, **options) -> DecoupledParallel:
    """This rank's part: of four modules, equally many where the ranks divide them."""
    modules, estimators = network(seed)
    own = slice(4 * ranks.rank // ranks.size, 4 * (ranks.rank + 1) // ranks.size)
    parts, cuts = modules[own], estimators[own]
    return DecoupledParallel(
        parts, cuts, F.cross_entropy, optimizers(parts), optimizers(cuts), **options
    )


def values(module: nn.Module) -> list[list]:
    return [p.tolist() for p in module.parameters()]


@pytest.mark.parametrize("ranks", [2, 3])
def test_without_lateness_it_is_unlocked_in_one_process(ranks):
    modules, estimators = network()
    whole = dnirnn.Decoupled(
        modules, estimators, F.cross_entropy, optimizers(modules), optimizers(estimators),
        update="unlocked",
    )  # fmt: skip
    expected = [float(whole.learn(*batch)["loss"]) for batch in batches()]

    def work(together):
        part = part_of(together, staleness=0)
        losses = [float(part.learn(*batch).get("loss", 0)) for batch in batches()]
        part.close()
        return [losses, values(part.parts), values(part.estimators)]

    found = run(ranks, work)
    assert found[-1][0] == expected
    assert [p for part in found for p in part[1]] == values(whole.parts)
    assert [p for part in found for p in part[2]] == values(whole.estimators)


def test_a_late_target_meets_its_own_activations():
    """By hand: rank 0's estimator is fitted to the target of update n at h_n, however late it comes."""

    def work(ranks):
        part = part_of(ranks, staleness=3, delay=0.2 if ranks.rank == 0 else 0.0)
        kept, met, take = {}, [], part.take

        def watched(number, target):
            interface, _ = part.kept[number]
            met.append((number, torch.equal(interface.start[0], kept[number])))
            return take(number, target)

        part.take = watched
        for n, batch in enumerate(batches(), 1):
            if ranks.rank == 0:
                kept[n] = part.parts[1](part.parts[0](batch[0])).detach()
            part.learn(*batch)
            if ranks.rank == 0:
                assert len(part.kept) <= 3
        part.close()
        return [met, part.waits, part.kept == {}]

    (met, waits, settled), _ = run(2, work)
    assert [number for number, _ in met] == list(range(1, UPDATES + 1))
    assert all(same for _, same in met)
    assert waits > 0 and settled


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_a_slow_rank_and_a_slow_link_stop_nothing(slow):
    def work(ranks):
        part = part_of(ranks, staleness=2, delay=0.004)
        losses = []
        for batch in batches():
            time.sleep(0.01 * (ranks.rank == slow))
            losses.append(float(part.learn(*batch).get("loss", 0)))
        part.close()
        return [losses, part.update, part.sent_bytes > 0]

    found = run(3, work)
    assert [update for _, update, _ in found] == [UPDATES] * 3
    assert all(0 < loss < 5 for loss in found[-1][0])


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_rank_ends_all(victim):
    def work(ranks):
        part = part_of(ranks, staleness=2)
        for n, batch in enumerate(batches()):
            if n == 4 and ranks.rank == victim:
                os.kill(os.getpid(), signal.SIGKILL)
            part.learn(*batch)
        part.settle()
        part.wait(part.below.get if part.above is None else part.above.get)

    codes = codes_of(3, work)
    assert codes == [-signal.SIGKILL if rank == victim else LOST for rank in range(3)]


def test_layers_that_recur_are_cut_in_time_and_between_ranks():
    """Two LSTM layers, chunks of 3 steps, no target late: the lower one moves, and the loss falls."""

    class Layer(nn.Module):
        def __init__(self, size):
            super().__init__()
            core = dnirnn.LSTM(size, WIDTH)
            estimator = dnirnn.SyntheticGradient(core.state_size, (), 0.5, 0.5)
            self.cut, self.state = dnirnn.Truncated(core, 3, estimator), core.initial_state(ROWS)

        def forward(self, x):
            output, self.state, interfaces = self.cut(x, self.state)
            return output, interfaces

    def work(ranks):
        torch.manual_seed(0)
        layer, readout = Layer(WIDTH), nn.Linear(WIDTH, CLASSES)

        class Top(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.readout = layer, readout

            def forward(self, x):
                output, interfaces = self.layer(x)
                return self.readout(output).flatten(0, 1), interfaces

        last = ranks.rank == 1
        module = Top() if last else layer
        estimators = [] if last else [dnirnn.SyntheticGradient(WIDTH, (), 1.0, 1.0)]
        part = DecoupledParallel(
            [module], estimators, F.cross_entropy, optimizers([module]), optimizers(estimators),
            staleness=0,
        )  # fmt: skip
        before, losses = values(module), []
        draw = torch.Generator().manual_seed(3)
        x = torch.randn(3, ROWS, WIDTH, generator=draw)
        y = (x[..., 0] > 0).long().flatten()
        for _ in range(60):
            losses.append(float(part.learn(x, y).get("loss", 0)))
        part.close()
        return [losses, before != values(module)]

    (_, moved), (losses, _) = run(2, work)
    assert moved and losses[-1] < 0.5 * losses[0]


def test_bad_arguments_are_named():
    def work(ranks):
        said = []
        for options in (dict(staleness=-1), dict(delay=-1.0)):
            with pytest.raises(ValueError) as caught:
                part_of(ranks, **options)
            said.append(str(caught.value))
        modules, _ = network()
        with pytest.raises(ValueError) as caught:
            DecoupledParallel(modules, [], F.cross_entropy, optimizers(modules), [])
        return [*said, str(caught.value)]

    (staleness, delay, estimators), _ = run(2, work)
    assert staleness == "staleness must be an int of at least 0; got -1"
    assert delay == "delay must be finite and not negative; got -1.0"
    assert estimators == "estimators must be 4 on rank 0 of 2, 4 modules; got 0"


# The command line


def words(folder, *more: str) -> list[str]:
    said = "train images --hidden 12 --batch 60 --symbols 1800 --evaluate-every 900 --log-every 300"
    said += " --parallel decoupled --estimator cdni --quiet --threads 1 --staleness 0"
    return [*said.split(), "--out", str(folder), *more]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    images.load("builtin", None)  # what reads them need not be imported in each process
    folder = tmp_path_factory.mktemp("images") / "whole"
    assert codes_of(2, command(words(folder))) == [0, 0]
    return folder


def test_a_run_of_parts_is_measured_and_saved_whole(whole_run):
    rows = [row for row in rows_of(whole_run) if row["kind"] == "train"]
    assert [row["update"] for row in rows] == [5, 10, 15, 20, 25, 30]
    assert rows[-1]["bits"] < rows[0]["bits"] and rows[-1]["estimator_error"] > 0
    assert main(["eval", str(whole_run), "--split", "valid"]) == 0


@pytest.mark.parametrize("victim", [1])
def test_a_killed_part_loses_nothing(victim, whole_run, tmp_path):
    run_folder = tmp_path / "run"
    codes = codes_of(2, command(words(run_folder), kill=(victim, 17)))
    assert codes == [-signal.SIGKILL if rank == victim else LOST for rank in range(2)]
    assert codes_of(2, command(words(run_folder))) == [0, 0]
    assert_equal_runs(run_folder, whole_run)


def test_one_process_that_holds_all_parts_is_the_same_run(whole_run, tmp_path):
    assert main(words(tmp_path)) == 0
    assert_same_but_for_rng(tmp_path, whole_run)


def test_decoupled_parts_need_cuts(tmp_path, capsys):
    assert main([*words(tmp_path / "one"), "--update", "random"]) == 2
    assert "no --update random" in capsys.readouterr().err
    for more in (["--estimator", "none"], ["--clip", "1"]):
        assert main([*words(tmp_path / "one"), *more]) == 2


def test_what_is_not_finite_leaves_the_last_checkpoint(tmp_path, capfd):
    """Its parts have stepped by then: what they are is not saved."""
    said = words(tmp_path / "run", "--lr", "1e38", "--checkpoint-seconds", "1000")

    def work(ranks):
        torch.distributed.destroy_process_group()
        os._exit(main(said))

    assert codes_of(2, work) == [1, 1]
    assert "the last good state is in" in capfd.readouterr().err
    (saved,) = checkpoints(tmp_path / "run" / "checkpoints")
    assert saved.name == "update-00000000"
    assert all(tensor.isfinite().all() for tensor in load(saved)[0].values())
