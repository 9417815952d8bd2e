"""--core: every core that it names trains, is resumed and measured; what goes with which."""

import json
import re

import pytest
import torch

from dnirnn import HMLSTM, Core
from dnirnn.commands import detectors, training
from dnirnn.commands.cli import main
from dnirnn.core import CORES
from dnirnn.options import fields_of, flag
from dnirnn.tasks import char_lm
from dnirnn.tasks.char_lm import CharLMOptions
from dnirnn.tasks.copy import CopyOptions
from dnirnn.training.checkpoint import checkpoints, load
from dnirnn.training.log import read_log
from dnirnn.training.trainer import load_weights, read_config

TINY = "--batch 4 --truncation 5 --evaluate-every 100000 --decay none --quiet".split()

# Another value than its default for every option of a core.
OTHER = {
    "hidden": 12,
    "layers": 4,
    "residual": True,
    "skip_inputs": True,
    "layer_dropout": 0.25,
    "same_mask": True,
    "dilations": (1, 3),
    "cell": "gru",
    "every": 3,
    "gather": "mean",
    "periods": (1, 3),
    "fast_cells": 3,
    "slow_hidden": 5,
    "no_layer_norm": True,
    "zoneout_h": 0.25,
    "zoneout_c": 0.25,
    "recurrent_dropout": 0.25,
    "weight_drop": 0.25,
    "shortest_period": 2.0,
    "longest_period": 9.0,
    "open_ratio": 0.25,
    "skip_bias": -1.0,
    "skip_cost": 0.5,
    "slope_growth": 0.5,
}
NEEDED = {"same_mask": {"layer_dropout": 0.25}}  # what else must be given


@pytest.fixture
def train(text, tmp_path):
    """train(*words) runs char-lm in tmp_path/run; its exit code."""

    def run(*words: str, out: str = "run") -> int:
        where = ["--corpus", str(text), "--out", str(tmp_path / out), "--embedding", "4"]
        return main(["train", "char-lm", *where, *TINY, *words])

    return run


def tensors_of(folder) -> dict:
    return load(checkpoints(folder / "checkpoints")[-1])[0]


def all_options(core: str) -> list[str]:
    """Every option that goes with a core, as words."""
    words = []
    for name, value in goes_with(core).items():
        words.append(flag(name))
        if value is not True:
            words += map(str, value if isinstance(value, tuple) else [value])
    return words


def goes_with(core: str) -> dict:
    return {name: OTHER[name] for name in fields_of(CORES[core])}


# Every core


@pytest.mark.parametrize("core", CORES)
def test_a_core_says_what_it_is_and_what_it_builds(core):
    config = CORES[core](hidden=8)
    made = config.build(3)
    assert (config.name, str(config)) == (core, core) and config.summary()
    assert isinstance(made, Core) and made.input_size == 3
    assert [name for name, field in fields_of(config).items() if not field.metadata["help"]] == []


@pytest.mark.parametrize("core", CORES)
def test_char_lm_resumed_is_the_uninterrupted_run(train, tmp_path, core):
    """With all that goes with the core; its masks and slopes too are those of one run."""
    words = ["--core", core, *all_options(core)]
    assert train(*words, "--updates", "5") == 0
    assert train(*words, "--updates", "9") == 0
    assert train(*words, "--updates", "9", out="whole") == 0
    resumed, whole = tensors_of(tmp_path / "run"), tensors_of(tmp_path / "whole")
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_skip_that_pays_for_its_updates_makes_fewer(train, tmp_path, capsys):
    """And says how many; the bits that it reports are those of the text, without the price."""
    shares, bits = [], []
    for cost in ("0", "5"):
        words = ["--core", "skip", "--hidden", "8", "--lr", "0.1", "--skip-cost", cost]
        assert train(*words, "--updates", "12", out=cost) == 0
        said = capsys.readouterr().out
        best = json.loads((tmp_path / cost / "result.json").read_text())["best"]
        assert f"share of the steps that update the state: {best['updates']:.3f}" in said
        shares.append(best["updates"])
        bits.append(read_log(tmp_path / cost / "log.jsonl", "train")[0]["bits"])
    assert shares[1] < 0.5 < shares[0]
    assert max(bits) < 6


@pytest.mark.parametrize("core", CORES)
def test_copy_trains_and_is_measured(tmp_path, capsys, core):
    folder = str(tmp_path / "run")
    words = "--bits 1 --max-length 2 --hidden 8 --updates 3".split()
    assert main(["train", "copy", "--out", folder, "--core", core, *TINY, *words]) == 0
    assert main(["eval", folder]) == 0
    assert "error by length" in capsys.readouterr().out


@pytest.mark.parametrize("core", CORES)
def test_each_option_reaches_its_core(core):
    """Another value makes another core: of other sizes, or one that says something else."""

    def say(options):
        torch.manual_seed(0)
        made = options.build(3).train()
        x = torch.randn(24, 4, 3)
        sizes = [(name, tuple(p.shape)) for name, p in made.named_parameters()]
        output, state = made(x, made.initial_state(4))
        return sizes, repr(made), torch.cat([output[-1], state], 1)

    for name, value in goes_with(core).items():
        if name == "slope_growth":
            continue  # no core's: see below
        usual = {"hidden": 24 if name == "hidden" else 12, **NEEDED.get(name, {})}
        before = say(CORES[core](**usual))
        after = say(CORES[core](**(usual | {name: value})))
        same = before[:2] == after[:2] and torch.equal(before[2], after[2])
        assert not same, f"{name} changed nothing in {core}"


@pytest.mark.parametrize("name", [name for name in OTHER if name != "hidden"])
def test_an_option_is_refused_by_the_cores_that_do_not_read_it(name):
    given = NEEDED.get(name, {}) | {name: OTHER[name]}
    flags = "|".join(map(flag, given))
    for core in CORES:
        if name in goes_with(core):
            CopyOptions(core=core, **given)
        else:
            with pytest.raises(ValueError, match=f"^({flags}) goes with --core .* only"):
                CopyOptions(core=core, **given)


BAD = {
    "another core's": (["--periods", "1", "2"], "--periods goes with --core clockwork or clock"),
    "periods": (["--core", "clockwork", "--periods", "2", "1"], "periods must be .* ascending"),
    "a word": (["--core", "dilated", "--dilations", "two"], "invalid int value: 'two'"),
    "modules": (["--core", "clockwork", "--hidden", "9"], "must be a multiple of the 4 periods"),
    "one layer": (["--core", "hm-lstm", "--layers", "1"], "num_layers must be .* at least 2"),
    "no core": (["--core", "transformer"], "--core must be one of .*, skip, .*; got 'transformer'"),
    "no module": (["--core", "nowhere:Core"], "--core must be .*; got 'nowhere:Core': No module"),
    "no class": (["--core", "dnirnn:Kore"], "--core must be .*; got 'dnirnn:Kore': .*no attribute"),
    "another kind": (["--core", "dnirnn:Truncated"], "--core must name a dnirnn.Core; dnirnn:Trunc"),
    "two sizes": (["--hidden", "9", "--parameters", "9000"], "give one of them; got 9000 and 9"),
    "too few": (["--parameters", "20"], r"--parameters must be at least \d+, the smallest lstm's"),
    "no dropout": (["--core", "deep", "--same-mask"], "--same-mask goes with --layer-dropout only"),
}


@pytest.mark.parametrize("words, message", BAD.values(), ids=BAD)
def test_bad_input_is_one_line(train, tmp_path, capsys, words, message):
    assert train(*words, "--updates", "2") == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"dnirnn: [^\n]+\n", said) and re.search(message, said), said
    assert not (tmp_path / "run").exists()


# Sizes


@pytest.mark.parametrize("core", CORES)
def test_parameters_gives_the_nearest_size(text, core):
    """No other size that the core can have is nearer."""

    def count(**size):
        options = CharLMOptions(corpus=str(text), core=core, embedding=4, truncation=8, **size)
        model = training.TASKS["char-lm"].build(options).model
        return sum(p.numel() for p in model.core_parameters()), model.truncated.core

    found, made = count(parameters=3000)
    step = 4 if core.startswith("clockwork") else 1
    hidden = made.output_size // (2 if core == "hierarchy" else 1)
    assert found == count(hidden=hidden)[0]
    for other in (hidden - step, hidden + step):
        assert abs(count(hidden=other)[0] - 3000) >= abs(found - 3000)


def test_a_run_of_so_many_parameters_is_restored(train, tmp_path, capsys):
    assert train("--parameters", "2000", "--updates", "2") == 0
    assert main(["eval", str(tmp_path / "run")]) == 0
    config = read_config(tmp_path / "run")
    assert config["parameters"] == 2000
    options = CopyOptions(parameters=2000, core="gru", seed=3)
    assert training.default_folder("copy", options).name == "copy-8bit-gru-2000-T8-dni-seed3"


# Slopes


@pytest.mark.parametrize("growth, slope", [(5.4, 1.5), (27.0, 3.5), (54.0, 5.0), (0.0, 1.0)])
def test_the_slope_grows_with_the_epochs_up_to_5(train, tmp_path, growth, slope):
    """The sixth update starts after 5 of the 54 of an epoch (1,080 characters, 4 rows, 5 steps)."""
    words = "--core hm-lstm --hidden 4 --layers 2 --estimator none --updates 6".split()
    assert train(*words, "--slope-growth", str(growth)) == 0
    model = char_lm.restore(read_config(tmp_path / "run"))[0]
    load_weights(tmp_path / "run", model, "latest")
    assert float(model.truncated.core.slope) == pytest.approx(slope)


# What an HM-LSTM detects


@pytest.fixture
def spaces(train, tmp_path):
    """A run whose bottom layer detects at the character k and at nothing else, made by hand."""
    assert train("--core", "hm-lstm", "--hidden", "6", "--updates", "1") == 0
    config = read_config(tmp_path / "run")
    model, vocabulary = char_lm.restore(config)
    core = model.truncated.core
    assert isinstance(core, HMLSTM)
    with torch.no_grad():
        for layer in (0, 1):
            for name in ("weight_ih", "weight_hh", "weight_top", "bias"):
                getattr(core, f"{name}_l{layer}")[-1] = 0
        core.weight_ih_l0[-1, 0] = 1
        model.encoder.weight[:, 0] = -1
        model.encoder.weight[vocabulary.encode("k"), 0] = 1
    return model, vocabulary


def test_what_is_marked_is_what_the_core_detects(spaces):
    found = detectors.detect(*spaces, "tick tock\nk")
    assert found.shape == (11, 2) and not found[:, 1].any()
    assert found[:, 0].nonzero().flatten().tolist() == [3, 8, 10]
    assert detectors.marked("tick tock\nk", found).split("\n") == [
        "         tick tock↵k",
        "layer 1:    |    | |",
        "layer 2:",
    ]
    assert detectors.shares("tick tock\nk", found).split("\n") == [
        "layer 1: at 27.3% of the characters, 0.0% of the spaces",
        "layer 2: at 0.0% of the characters, 0.0% of the spaces",
    ]


def test_long_texts_are_marked_line_by_line(spaces):
    text = "k" * 100
    lines = detectors.marked(text, detectors.detect(*spaces, text)).split("\n")
    assert [line.count("k") for line in lines[::3]] == [80, 20]
    assert [line.count("|") for line in lines[1::3]] == [80, 20]


def test_the_command_prints_and_draws(train, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert train("--core", "hm-lstm", "--hidden", "6", "--updates", "2") == 0
    capsys.readouterr()
    assert main(["detectors", run, "--length", "30"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"best model, update 2 of {run}"
    assert said[1] == "         tick tock the clock↵tick tock " and said[2].startswith("layer 1:")
    assert said[-1] == f"{run}/detectors.png"
    assert (tmp_path / "run" / "detectors.png").read_bytes().startswith(b"\x89PNG")
    picture = str(tmp_path / "new" / "picture.png")
    assert main(["detectors", run, "--text", "the clock", "--out", picture]) == 0
    assert "         the clock\n" in capsys.readouterr().out
    assert (tmp_path / "new" / "picture.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "words, message",
    [
        (["--text", ""], "must leave at least one character"),
        (["--text", "the zebra"], "the character 'z' at offset"),
        (["--length", "0"], "--length: must be at least 1; got 0"),
    ],
)
def test_texts_that_can_not_be_read_are_refused(train, tmp_path, capsys, words, message):
    assert train("--core", "hm-lstm", "--hidden", "6", "--updates", "1") == 0
    assert main(["detectors", str(tmp_path / "run"), *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and message in said, said


def test_runs_without_detectors_are_refused(train, tmp_path, capsys):
    assert train("--hidden", "6", "--updates", "1") == 0
    assert main(["detectors", str(tmp_path / "run")]) == 2
    assert "needs a run of char-lm with --core hm-lstm" in capsys.readouterr().err


# compare


def test_cores_are_compared_each_with_its_own_options(text, tmp_path, capsys):
    words = ["--cores", "rnn", "clockwork", "dilated", "--periods", "1", "2", "--dilations", "2"]
    words += "--truncations 5 --estimators none --parameters 900 --embedding 4 --batch 4".split()
    words += ["--updates", "3", "--quiet", "--corpus", str(text)]
    compared = ["compare", "char-lm", *words, "--out", str(tmp_path / "all")]
    assert main(compared) == 0
    said = capsys.readouterr().out
    for core in ("rnn", "clockwork", "dilated"):
        config = read_config(tmp_path / "all" / f"{core}-T5-none-seed0")
        assert config["core"] == core
        assert config.get("periods") == ([1, 2] if core == "clockwork" else None)
        assert config.get("dilations") == ([2] if core == "dilated" else None)
        assert re.search(rf"^ *{core}  +5  +none", said, re.M), said
    assert main(compared) == 0
    assert "3 of them done before" in capsys.readouterr().out


def test_an_option_that_no_compared_core_reads_is_refused(text, tmp_path, capsys):
    words = ["compare", "char-lm", "--corpus", str(text), "--out", str(tmp_path / "all")]
    assert main([*words, "--cores", "lstm", "gru", "--periods", "1", "2"]) == 2
    assert "--periods goes with --core clockwork or clockwork-lstm only" in capsys.readouterr().err
    assert not (tmp_path / "all").exists()
