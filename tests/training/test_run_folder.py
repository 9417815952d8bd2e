"""What people do to a run folder: move its data, change a rate, damage, mix up or remove a part."""

import json
import shutil
from pathlib import Path

import pytest
from command_line import SHORT, TINY
from small_runs import make_trainer, rows_of

from dnirnn.commands import training
from dnirnn.commands.cli import main
from dnirnn.device import usable_cores
from dnirnn.training import checkpoint as ckpt
from dnirnn.training.checkpoint import CheckpointError, checkpoints
from dnirnn.training.log import read_log
from dnirnn.training.trainer import check_config, history, load_weights, read_config

DONE = dict(updates=12, evaluate_every=4, checkpoint_every=4)


@pytest.fixture
def words(tmp_path) -> list[str]:
    """The words of a short run in tmp_path/run on tmp_path/data/tiny.txt."""
    (tmp_path / "data").mkdir()
    text = tmp_path / "data" / "tiny.txt"
    text.write_text("tick tock the clock\n" * 150)
    where = ["--corpus", str(text), "--out", str(tmp_path / "run"), "--quiet"]
    return ["train", "char-lm", *where, *TINY, *SHORT, "--decay", "none"]


def edit(checkpoint: Path, change) -> None:
    """Makes ``change(state)`` in a checkpoint, with right sums."""
    state = json.loads((checkpoint / ckpt.STATE).read_bytes())
    change(state)
    contents = {
        ckpt.TENSORS: (checkpoint / ckpt.TENSORS).read_bytes(),
        ckpt.STATE: json.dumps(state).encode(),
    }
    contents[ckpt.MANIFEST] = ckpt.manifest(contents)
    for name, content in contents.items():
        (checkpoint / name).write_bytes(content)


# Which run it is


def test_a_run_goes_on_where_its_data_was_moved_and_says_so(words, tmp_path):
    assert main([*words, "--updates", "20"]) == 0
    shutil.move(tmp_path / "data", tmp_path / "moved")
    moved = [word.replace(f"{tmp_path}/data", f"{tmp_path}/moved") for word in words]
    assert main(moved) == 0
    (row,) = history(tmp_path / "run")
    assert row["update"] == 20 and row["moved"]["corpus"][1].endswith("moved/tiny.txt")
    assert read_config(tmp_path / "run")["corpus"].endswith("moved/tiny.txt")
    assert main(["eval", str(tmp_path / "run")]) == 0


def test_another_text_of_the_same_name_is_another_run(words, tmp_path, capsys):
    assert main(words) == 0
    (tmp_path / "data" / "tiny.txt").write_text("tick tock the cluck\n" * 150)
    assert main(words) == 2
    assert "corpus_sha256" in capsys.readouterr().err


@pytest.mark.parametrize("known, here, same", [
    ({"a": 1}, {"a": 1, "b": 2, "defaults": {"a": 1, "b": 2}}, True),
    ({"a": 1}, {"a": 1, "b": 3, "defaults": {"a": 1, "b": 2}}, False),
    ({"a": 1, "b": 2, "defaults": {"a": 1, "b": 2}}, {"a": 1, "defaults": {"a": 1}}, True),
    ({"a": 1, "b": 3, "defaults": {"a": 1, "b": 2}}, {"a": 1, "defaults": {"a": 1}}, False),
    ({"a": 1, "defaults": {"a": 1}}, {"a": 2, "defaults": {"a": 2}}, False),
], ids=["added", "added and set", "removed", "removed and set", "another default"])  # fmt: skip
def test_an_option_at_its_default_makes_no_other_run(tmp_path, known, here, same):
    (tmp_path / "config.json").write_text(json.dumps(known))
    if same:
        check_config(tmp_path, here)
        return
    with pytest.raises(ValueError, match="another configuration"):
        check_config(tmp_path, here)


def test_a_run_goes_on_with_a_lower_rate_where_that_is_asked_for(words, tmp_path, capsys):
    assert main([*words, "--updates", "30"]) == 0
    lower = [*words, "--lr", "0.0005"]
    assert main(lower) == 2
    assert "lr (0.002 there, 0.0005 here)" in (said := capsys.readouterr().err)
    assert "--resume-with" in said and "--restart" in said
    assert main([*lower, "--resume-with"]) == 0
    rows = [row for row in read_log(tmp_path / "run" / "log.jsonl", "train")]
    rates = {row["lr"] for row in rows if row["update"] > 30}
    assert rates == {0.0005} and {row["lr"] for row in rows if row["update"] <= 30} == {0.002}
    assert history(tmp_path / "run") == [{"update": 30, "changed": {"lr": [0.002, 0.0005]}}]
    assert read_config(tmp_path / "run")["lr"] == 0.0005
    assert main([*lower, "--updates", "70"]) == 0, "from here on that is the run"
    assert main(["eval", str(tmp_path / "run")]) == 0


def test_a_rate_can_not_change_under_a_schedule(words, capsys):
    words = [*words[: words.index("--decay")], "--schedule", "StepLR", "--schedule-options"]
    words += ["step_size=20"]
    assert main(words) == 0
    assert main([*words, "--lr", "0.001", "--resume-with"]) == 2
    assert "lr can't change under schedule StepLR" in capsys.readouterr().err


def test_what_a_run_can_not_change_is_refused(words, tmp_path, capsys):
    assert main(words) == 0
    assert main([*words, "--hidden", "9", "--resume-with"]) == 2
    said = capsys.readouterr().err
    assert "hidden (8 there, 9 here)" in said and "--restart" in said
    assert not history(tmp_path / "run")


def test_a_run_that_is_begun_anew_leaves_the_one_before(words, tmp_path):
    assert main(words) == 0
    before = {p.relative_to(tmp_path / "run"): p.read_bytes()
              for p in (tmp_path / "run").rglob("*") if p.is_file()}  # fmt: skip
    assert main([*words, "--hidden", "9", "--restart"]) == 0
    kept = tmp_path / "run.before-1"
    assert before == {p.relative_to(kept): p.read_bytes() for p in kept.rglob("*") if p.is_file()}
    assert read_config(tmp_path / "run")["hidden"] == 9
    assert history(tmp_path / "run") == [{"update": 0, "restarted": "run.before-1"}]
    assert main([*words, "--restart"]) == 0
    assert read_config(tmp_path / "run.before-2")["hidden"] == 9


def test_a_run_that_was_not_finite_says_what_to_do_and_goes_on(words, tmp_path, capsys):
    wild = [*words, "--lr", "1e30"]
    assert main(wild) == 1
    said = capsys.readouterr().err
    assert "--resume-with --lr RATE" in said
    assert main([*words, "--lr", "1e-3", "--resume-with", "--restart"]) == 2
    assert main([*words, "--lr", "1e-3", "--resume-with"]) in (0, 1)
    assert history(tmp_path / "run")[0]["changed"] == {"lr": [1e30, 1e-3]}


# What was done to its files


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    for name, lr in (("one", 0.01), ("other", 0.02)):
        make_trainer(tmp_path / name, lr=lr, **DONE).run()
    for kind in ("checkpoints", "best"):
        mine, its = (checkpoints(tmp_path / name / kind)[-1] for name in ("one", "other"))
        shutil.rmtree(mine)
        shutil.copytree(its, mine)
    with pytest.raises(CheckpointError, match="of another run: its lr differ"):
        make_trainer(tmp_path / "one", lr=0.01, **DONE).run()
    trainer = make_trainer(tmp_path / "spare", lr=0.01, **DONE)
    for which in ("best", "latest"):
        with pytest.raises(CheckpointError, match="of another run: its lr differ"):
            load_weights(tmp_path / "one", trainer.model, which)


ABSURD = {
    "no update": lambda state: state.pop("update"),
    "no stream": lambda state: state.pop("stream"),
    "no model": lambda state: state.pop("model"),
    "a negative update": lambda state: state.update(update=-1),
    "an update of words": lambda state: state.update(update="many"),
    "seconds of nothing": lambda state: state.update(seconds=None),
    "a stream elsewhere": lambda state: state.update(stream={"position": 10**9, "epoch": 0}),
    "a stream of another kind": lambda state: state.update(stream=[]),
    "a best of no update": lambda state: state.update(best={"bits": 1.0}),
    "pending of nothing": lambda state: state.update(pending={}),
    "a tensor that is not there": lambda state: state["state"].update({"$tensor": "none"}),
    "optimizers of nothing": lambda state: state.update(optimizers=[{}]),
    "rng of words": lambda state: state.update(rng=["a"]),
}


@pytest.mark.parametrize("name", ABSURD)
def test_a_checkpoint_with_an_absurd_entry_is_refused(tmp_path, name):
    make_trainer(tmp_path, **DONE).run()
    edit(checkpoints(tmp_path / "checkpoints")[-1], ABSURD[name])
    with pytest.raises(CheckpointError, match="checkpoint .*update-00000012") as error:
        make_trainer(tmp_path, **DONE).run()
    assert "\n" not in str(error.value)


def test_a_damaged_best_model_stops_no_run(tmp_path):
    make_trainer(tmp_path / "run", **DONE).run()
    best = checkpoints(tmp_path / "run" / "best")[-1]
    file = best / ckpt.TENSORS
    file.write_bytes(file.read_bytes()[:-1] + b"\x00\x00")
    with pytest.warns(UserWarning, match="damaged.*goes on without it"):
        result = make_trainer(tmp_path / "run", **DONE).run()
    assert result["best"]["update"] == 12
    assert best.with_name(best.name + ".damaged-1").is_dir(), "kept"
    assert make_trainer(tmp_path / "run", **DONE).run() == result


@pytest.mark.parametrize("left", [-1, -40])
def test_a_log_that_is_cut_off_is_told_and_gone_on_from(tmp_path, left):
    make_trainer(tmp_path, updates=12).run()
    log = tmp_path / "log.jsonl"
    log.write_bytes(log.read_bytes()[:left])
    with pytest.warns(UserWarning, match="log .* is not what it was"):
        trainer = make_trainer(tmp_path, updates=12)
        trainer.run()
    assert rows_of(tmp_path)


def test_a_log_of_another_run_is_told(tmp_path):
    make_trainer(tmp_path, updates=12).run()
    log = tmp_path / "log.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"kind": "train"', b'"kind": "brain"', 1))
    with pytest.warns(UserWarning, match="log .* is not what it was"):
        make_trainer(tmp_path, updates=12).run()


@pytest.mark.parametrize("at", [4, 8])
def test_a_folder_that_is_removed_while_it_runs_is_made_again(tmp_path, at):
    def remove(row):
        if row["kind"] == "valid" and row["update"] == at:
            shutil.rmtree(tmp_path / "run")

    trainer = make_trainer(tmp_path / "run", **DONE)
    with pytest.warns(UserWarning, match="was removed or moved"):
        trainer.run(remove)
    make_trainer(tmp_path / "whole", **DONE).run()
    assert read_config(tmp_path / "run") == read_config(tmp_path / "whole")
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "whole")
    assert (tmp_path / "run" / "result.json").exists()


WRONG = {
    "a list": [],
    "a word": "word",
    "nothing": None,
    "no task": {},
    "no vocabulary": {"task": "char-lm"},
    "a vocabulary of numbers": {"task": "char-lm", "vocabulary": 3},
    "a core that is none": {"task": "char-lm", "vocabulary": "ab\n", "core": 7},
    "hidden of words": {"task": "char-lm", "vocabulary": "ab\n", "hidden": "many"},
    "periods of nothing": {"task": "char-lm", "vocabulary": "ab\n", "core": "clockwork",
                           "periods": None},
    "a task in a list": {"task": ["char-lm"]},
    "no pixels": {"task": "digits"},
}  # fmt: skip


@pytest.mark.parametrize("command", ["eval", "sample", "fidelity", "detectors"])
@pytest.mark.parametrize("name", WRONG)
def test_a_configuration_that_is_wrong_is_one_line(tmp_path, capsys, name, command):
    (tmp_path / "config.json").write_text(json.dumps(WRONG[name]))
    assert main([command, str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("dnirnn: ") and said.count("\n") == 1 and str(tmp_path) in said


# Threads


@pytest.mark.parametrize("files, cores", [
    ({"cpu.max": "150000 100000\n"}, 2),
    ({"cpu.max": "10000 100000\n"}, 1),
    ({"cpu.max": "max 100000\n"}, None),
    ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
    ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
    ({}, None),
], ids=["one and a half", "a tenth", "no limit", "version 1", "no limit, version 1", "nothing"])  # fmt: skip
def test_threads_are_the_quota_s(tmp_path, files, cores, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    (tmp_path / "cpu").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert usable_cores(tmp_path) == (cores or 8)


def test_training_takes_no_more_threads_than_it_may_use(words, monkeypatch):
    import torch

    before = torch.get_num_threads()
    monkeypatch.setattr(training, "usable_cores", lambda: 1)
    try:
        torch.set_num_threads(2)
        assert main(words) == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
