"""The names of before, for one release: each warns, and is what the new one is."""

import dataclasses
import json

import pytest
import torch
from small_runs import make_trainer
from strategies import assert_close

from dnirnn import LSTM, LeastSquares, SyntheticGradient, Truncated, backward
from dnirnn.commands.cli import main
from dnirnn.commands.compare import name_of
from dnirnn.config.registry import TASKS
from dnirnn.model import SequenceModel, symbol_nats
from dnirnn.renamed import OPTIONS, TENSORS
from dnirnn.training import checkpoint
from dnirnn.training.checkpoint import CheckpointError
from dnirnn.training.config import TrainerConfig
from dnirnn.training.run_folder import check_owner, differing, read_config
from dnirnn.unroll import Chunks

X, STATE = torch.randn(5, 3, 2).double(), torch.randn(3, 6).double()


def make(**knobs):
    estimator = SyntheticGradient(6, scale=0.5, discount=0.3, **knobs).double()
    torch.nn.init.normal_(estimator.layers[0].weight)
    return Truncated(LSTM(2, 3).double(), 2, estimator)


def test_an_option_by_both_names():
    with pytest.warns(DeprecationWarning, match="lift is called min_norm"):
        with pytest.raises(TypeError, match="lift and min_norm are one option: give one; got 0.2, 0.1"):
            TrainerConfig(min_norm=0.1, lift=0.2)
    with pytest.warns(DeprecationWarning, match="lift is called min_norm"):
        assert dataclasses.replace(TrainerConfig(updates=1), lift=0.5).min_norm == 0.5


def test_a_name_of_before_is_varied():
    assert name_of(["estimator-lift", "0.1"]) == "estimator_min_norm" and name_of(["lr"]) == "lr"


def test_a_change_of_before_in_a_run_s_history(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"update": 3, "changed": {"lift": [0.0, 0.5]}}\n')
    tree = {"config": {"updates": 5, "min_norm": 0.0}}
    check_owner(tmp_path, tmp_path / "a", tree, {"updates": 5, "min_norm": 0.5})
    with pytest.raises(CheckpointError, match="its updates differ"):
        check_owner(tmp_path, tmp_path / "a", tree, {"updates": 6, "min_norm": 0.5})


def test_a_trainer_s_folder_of_before_an_option_existed(tmp_path):
    made = make_trainer(tmp_path / "run", updates=2)
    made.run()
    known = {k: v for k, v in made.run_config.items() if k not in ("truncation_plan", "defaults")}
    assert differing(known, made.run_config) == []
    assert differing({**known, "seed": 7}, made.run_config) == [("seed", 7, made.run_config["seed"])]


def test_fields_of_an_interface():
    truncated = make(trace_decay=0.5)
    output, _, (cut,) = truncated(X, STATE, final=True)
    boot, back = truncated.estimator.bootstrap(cut), cut.vjp(1, STATE)[0]
    names = {"entered": cut.start, "sent": cut.end, "bootstrap": boot}
    for name, expected in names.items():
        with pytest.warns(DeprecationWarning, match=rf"Interface\.{name} is called"):
            assert_close(getattr(cut, name), expected)
    with pytest.warns(DeprecationWarning, match=r"Interface\.\w+ is called"):
        assert cut.steps == 5 and cut.terminal is True
        assert_close(cut.pull(1, STATE), back)
    with pytest.raises(AttributeError, match="no 'carry'"):
        _ = cut.carry


@pytest.mark.parametrize("way", ["unroll_chunks", "unroll_dense", "unroll_pulling"])
def test_ways_of_unrolling_a_core(way):
    core, dense, vjp = LSTM(2, 3).double(), way == "unroll_dense", way == "unroll_pulling"
    probe = torch.zeros(5 if dense else 3, 3, 6, dtype=torch.float64, requires_grad=True)
    with pytest.warns(DeprecationWarning, match=rf"Core\.{way} is called Core\.unroll"):
        output, sent, third = getattr(core, way)(X, STATE, probe, 2)
    found = core.unroll(X, STATE, probe, Chunks(5, 2, dense=dense, vjp=vjp))
    assert_close((output, sent), (found.output, found.end))
    if dense:
        assert_close(third, found.start)
    if vjp:
        assert_close(third(1, STATE), found.vjp(1, STATE)[0])


@pytest.mark.parametrize("knobs", [{}, {"dense": True}, {"trace_decay": 0.5}], ids=str)
def test_a_core_with_ways_of_its_own_takes_them(knobs):
    calls = []

    class Own(LSTM):
        def unroll_chunks(self, *given):
            calls.append(1)
            return super().unroll_chunks(*given)

        def unroll_dense(self, *given):
            calls.append(2)
            return super().unroll_dense(*given)

        def unroll_pulling(self, *given):
            calls.append(3)
            return super().unroll_pulling(*given)

    truncated, gradients = make(**knobs), []
    own = Own(2, 3).double()
    own.load_state_dict(truncated.core.state_dict())
    for core in (truncated.core, own):
        truncated.core = core
        core.zero_grad()
        if core is own:
            with pytest.warns(DeprecationWarning, match=r"Own\.unroll_\w+ is called unroll"):
                output, _, cuts = truncated(X, STATE)
                backward(output.square().sum(), cuts, reduction="sum")
        else:
            output, _, cuts = truncated(X, STATE)
            backward(output.square().sum(), cuts, reduction="sum")
        gradients.append([p.grad for p in core.parameters()])
    assert_close(*gradients)
    assert calls == [2 if "dense" in knobs else 3 if "trace_decay" in knobs else 1]


def test_a_loss_of_a_core_s_own():
    class Priced(LSTM):
        def forward(self, x, state, t0=0, reset=None):
            output, ended = super().forward(x, state, t0, reset)
            self.charge(output.sum())
            return output, ended

    core = Priced(2, 3).double()
    with pytest.warns(DeprecationWarning, match=r"Core\.charge is called add_auxiliary_loss now"):
        output, _, (cut,) = Truncated(core, 9, SyntheticGradient(6).double())(X, STATE)
    assert_close(cut.auxiliary_loss, output.sum())
    with pytest.warns(DeprecationWarning, match=r"Interface\.charge is called auxiliary_loss now"):
        assert cut.charge is cut.auxiliary_loss


def test_an_estimator_that_no_graph_can_hold():
    with pytest.warns(DeprecationWarning, match=r"GradientEstimator\.waits is called graph_safe"):

        class Own(SyntheticGradient):
            waits = True

    assert not Own(3).graph_safe and SyntheticGradient(3).graph_safe


def test_the_context_of_a_sequence_model():
    parts = torch.nn.Embedding(5, 2), make(), torch.nn.Linear(3, 5), symbol_nats
    with pytest.warns(DeprecationWarning, match=r"SequenceModel's told is called context_of"):
        model = SequenceModel(*parts, told=len)
    assert model.context_of is len


def test_the_moments_of_least_squares_in_a_state_dict_and_in_a_checkpoint(tmp_path):
    def fitted(seed):
        torch.manual_seed(seed)
        estimator = LeastSquares(3, solve_every=1)
        for _ in range(3):
            estimator.accumulate(torch.randn(9, 3), torch.randn(9, 3))
        return estimator

    one, other = fitted(0), fitted(1)
    of_before = {new: old for old, new in TENSORS.items()}
    older = {of_before.get(name, name): value for name, value in one.state_dict().items()}
    assert set(older) == {"weight", "bias", "fits", *TENSORS}
    other.load_state_dict(older)
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    inside = {f"truncated.estimator.{name}": value for name, value in older.items()}
    checkpoint.save(tmp_path / "update-1", *checkpoint.flatten({"model": inside}))
    found = checkpoint.load_tree(tmp_path / "update-1")["model"]
    assert list(found) == [f"truncated.estimator.{name}" for name in one.state_dict()]


@pytest.mark.parametrize("old, new", OPTIONS.items())
def test_options_from_python_the_command_line_and_a_run_of_before(old, new, tmp_path, capsys):
    value = 2 if old == "blend" else 0.5
    with pytest.warns(DeprecationWarning, match=rf"the option {old} is called {new} now"):
        options = TASKS["copy"].Options(estimator="dni", **{old: value})
    assert options == TASKS["copy"].Options(estimator="dni", **{new: value})
    with pytest.warns(DeprecationWarning, match=rf"the option {old} is called {new} now"):
        assert TrainerConfig(updates=1, **{old: value}) == TrainerConfig(updates=1, **{new: value})
    words = "train copy --hidden 4 --updates 2 --batch 2 --max-length 2 --quiet --estimator dni".split()
    for flag in (old, new):
        given = f"--{flag.replace('_', '-')}={value}"
        assert main([*words, given, "--out", str(tmp_path / flag)]) == 0
        said = capsys.readouterr().err
        assert ("the old name goes" in said) == (flag == old)
    assert read_config(tmp_path / old) == read_config(tmp_path / new)
    config = json.loads((tmp_path / new / "config.json").read_text())
    older = {**config, old: config.pop(new), "defaults": {**config["defaults"], old: 0}}
    older = {name: value for name, value in older.items() if name != new}
    older["defaults"].pop(new)
    assert differing(older, read_config(tmp_path / new)) == []
