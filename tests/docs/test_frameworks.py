"""The examples in other people's frameworks: their losses are those of the plain loop, to 1e-6."""

import importlib
import json

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from op_calls import needs_op
from strategies import EXAMPLES
from torch.func import functional_call

from dnirnn import backward

CLOSE = dict(rel=0, abs=1e-6)


@pytest.fixture(scope="module")
def plain():
    """plain_loop.py, and the losses of its updates."""
    module = importlib.import_module("plain_loop")
    torch.set_default_dtype(torch.float64)
    losses = module.train()
    assert len(losses) == 36 and losses[-1] < losses[0] - 1
    yield module, losses
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", ["grad_scaler", "functional_call"])
def test_torch(name, plain):
    assert importlib.import_module(f"with_{name}").train() == pytest.approx(plain[1], **CLOSE)


def test_lightning(plain):
    """Manual optimisation; the second epoch goes on from the first one's checkpoint."""
    pytest.importorskip("lightning", reason="lightning is not installed: pip install lightning")
    assert importlib.import_module("with_lightning").train() == pytest.approx(plain[1], **CLOSE)


def test_accelerate(plain):
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install accelerate")
    assert importlib.import_module("with_accelerate").train() == pytest.approx(plain[1], **CLOSE)


@needs_op
def test_an_exported_program_has_the_network_s_losses():
    own, program = importlib.import_module("with_export").evaluate()
    assert program == pytest.approx(own, **CLOSE) and len(own) == 12


def share(rank: int, folder) -> None:
    """One of two processes; a file stands for torchrun's rendezvous."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    losses = importlib.import_module("with_ddp").train()
    (folder / f"{rank}.json").write_text(json.dumps(losses))
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_over_gloo(plain, tmp_path):
    mp.start_processes(share, (tmp_path,), nprocs=2, start_method="fork")
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(plain[1], **CLOSE)


def test_each_is_a_screen():
    files = [EXAMPLES / "plain_loop.py", *EXAMPLES.glob("with_*.py")]
    assert {path.name: n for path in files if (n := len(path.read_text().splitlines())) > 85} == {}


def updates(plain, network, optimizer, state, before=lambda: {}, after=lambda: None):
    """An epoch of the plain loop with the tensors of ``before`` in the network; ``after`` backward."""
    losses = []
    for x, y in plain.windows():
        logits, state, interfaces = functional_call(network, before(), (x, state))
        loss = plain.loss_of(logits, y)
        backward(loss, interfaces, reduction="mean")
        after()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, state


def test_pruning(plain):
    """Against a plain weight that is masked by hand, and its gradient with it."""
    plain, whole = plain
    network, optimizer = plain.make()
    expected, state = plain.epoch(network, optimizer, network.initial_state())
    weight = network.recurrent.core.weight_hh_l0
    mask = weight.detach().abs() > weight.detach().abs().flatten().sort().values[weight.numel() // 2 - 1]

    def before():
        weight.detach().mul_(mask)
        return {}

    for _ in range(plain.EPOCHS - 1):
        more, state = updates(
            plain, network, optimizer, state, before, lambda: weight.grad.mul_(mask)
        )
        expected += more
    assert importlib.import_module("with_pruning").train() == pytest.approx(expected, **CLOSE)
    assert importlib.import_module("with_pruning").train(0.0) == pytest.approx(whole, **CLOSE)


def test_weight_norm(plain):
    """Against the weight computed by hand: a length times a direction for each row."""
    plain, _ = plain
    network, _ = plain.make()
    name = "recurrent.core.weight_hh_l0"
    direction = network.get_parameter(name).detach().clone().requires_grad_()
    length = direction.detach().norm(dim=1, keepdim=True).requires_grad_()
    fitted = [p for other, p in network.named_parameters() if other != name]
    optimizer = torch.optim.Adam([*fitted, direction, length], 0.01)
    expected, state = [], network.initial_state()
    for _ in range(plain.EPOCHS):
        more, state = updates(
            plain, network, optimizer, state,
            lambda: {name: length * direction / direction.norm(dim=1, keepdim=True)},
        )  # fmt: skip
        expected += more
    assert importlib.import_module("with_weight_norm").train() == pytest.approx(expected, **CLOSE)
