"""Devices: named, found, refused in one line; and a run that is none of theirs."""

import json
import re

import pytest
import torch
from small_runs import make_model, make_trainer, small_stream

from dnirnn.commands import cli
from dnirnn.data import Batch, TextStream
from dnirnn.device import find_device, own_stream
from dnirnn.training.checkpoint import load
from dnirnn.training.optimizers import make_optimizer, restore_optimizer


@pytest.fixture
def machine(monkeypatch):
    """machine(count): what torch, built for CUDA, says of so many GPUs."""

    def made(count):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: count - 1)

    return made


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:x", "CUDA", "cpu:0", "", "mps"])
def test_another_name_is_refused(name):
    with pytest.raises(ValueError, match=f"^device must be cpu, cuda or cuda:N; got '{name}'$"):
        find_device(name)


def test_a_torch_without_cuda_is_named(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    says = f"^device cuda:1 needs a torch built for CUDA; {re.escape(torch.__version__)} is built"
    with pytest.raises(ValueError, match=says):
        find_device("cuda:1")


def test_a_machine_without_a_gpu_is_named(machine):
    machine(0)
    with pytest.raises(ValueError, match="^device cuda: torch .* sees no CUDA device here$"):
        find_device("cuda")


@pytest.mark.parametrize("count, name, says", [
    (1, "cuda:1", "there is only cuda:0 here"), (3, "cuda:7", "there is cuda:0 to cuda:2 here"),
])  # fmt: skip
def test_a_gpu_that_is_not_there_is_named(machine, count, name, says):
    machine(count)
    with pytest.raises(ValueError, match=f"^device {name}: {says}$"):
        find_device(name)


def test_what_is_there_is_found(machine):
    machine(3)
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("cuda") == torch.device("cuda:2")
    assert find_device(torch.device("cuda:1")) == torch.device("cuda:1")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    words = ["train", "char-lm", "--hidden", "4", "--truncation", "2", "--updates", "2", "--quiet"]
    assert cli.main([*words, "--out", str(folder)]) == 0
    return folder


COMMANDS = {
    "train": ["train", "copy", "--hidden", "4"],
    "compare": ["compare", "copy", "--hidden", "4"],
    "eval": ["eval"],
    "sample": ["sample"],
    "fidelity": ["fidelity"],
    "detectors": ["detectors"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_takes_another_device_in_its_place(name, run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.version, "cuda", None)
    words = COMMANDS[name] + ([str(run_folder)] if len(COMMANDS[name]) == 1 else [])
    for device, says in (("cuda", "needs a torch built for CUDA"), ("tpu", "must be cpu, cuda or")):
        assert cli.main([*words, "--device", device]) == cli.BAD_INPUT
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_device_is_no_part_of_the_run(run_folder):
    config = json.loads((run_folder / "config.json").read_text())
    assert not {"device", "no_graphs"} & config.keys()


def test_on_the_cpu_there_is_no_stream():
    with own_stream(torch.device("cpu")):
        assert torch.ones(1) == 1


def test_a_trainer_moves_its_model_and_tells_its_stream(tmp_path):
    told, stream = [], small_stream()
    stream.to = told.append
    trainer = make_trainer(tmp_path, stream=stream, updates=1)
    assert told == [torch.device("cpu")] == [trainer.device]
    with pytest.raises(ValueError, match="device must be cpu"):
        type(trainer)(make_model(), stream, trainer.config, tmp_path, device="gpu")


def test_a_text_gives_its_batches_where_it_lies_and_their_weights_on_the_cpu():
    stream = TextStream(torch.arange(7), 2, 0)
    stream.to(torch.device("meta"))
    batch = stream.next(None)
    assert (batch.x.device.type, batch.y.device.type, batch.weight.device.type) == (
        "meta", "meta", "cpu",
    )  # fmt: skip
    assert batch.count() == 7
    moved = batch.to(torch.device("meta"))
    assert moved.weight.device.type == "meta" and moved.final
    assert moved.to(torch.device("meta")) is moved


def test_all_of_a_batch_moves():
    x = torch.zeros(3, 2)
    step = Batch(x[:1], x[:1], x[:1], label=x[0])
    batch = Batch(x, x, x, True, False, step, x[0]).to(torch.device("meta"))
    parts = [*batch[:3], batch.label, *batch.following[:3], batch.following.label]
    assert {part.device.type for part in parts} == {"meta"} and batch.first


@pytest.mark.parametrize("there", [dict(capturable=True, fused=True), dict(fused=None)])
def test_an_optimizer_s_state_from_another_device_is_taken_its_way_of_stepping_is_not(there):
    """A GPU's checkpoint says capturable; here that would be refused at the next step."""
    model = make_model()
    made = make_optimizer("", model.core_parameters(), "Adam", 0.25, {})
    for parameter in model.core_parameters():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    state = made.state_dict()
    state["param_groups"][0].update(there, lr=0.125, betas=(0.5, 0.75))
    other = make_optimizer("", model.core_parameters(), "Adam", 0.25, {})
    restore_optimizer(other, state)
    (group,) = other.param_groups
    assert (group["lr"], group["betas"]) == (0.125, (0.5, 0.75))
    assert (group["fused"], group["capturable"]) == (True, False)
    other.step()
    assert {float(one["step"]) for one in other.state.values()} == {2.0}


def test_checkpoints_hold_numbers_and_no_device(tmp_path):
    """The rates above all, which are tensors in an update that nobody watches."""
    trainer = make_trainer(tmp_path, updates=2)
    trainer.run()
    saved = sorted((tmp_path / "checkpoints").iterdir())[-1]
    _, state = load(saved)
    for optimizer in state["optimizers"]:
        assert isinstance(optimizer["param_groups"][0]["lr"], float)
    assert "cuda" not in json.dumps(state) and "cpu" not in json.dumps(state)
