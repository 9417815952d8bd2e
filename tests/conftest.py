"""Fixtures: each kind of core in turn, on the path that it says; profiles of hypothesis."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from small_texts import text_of
from strategies import CORES, STRAIGHT_THROUGH

from dnirnn import Core, ops

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The same examples at every run; `pytest --hypothesis-profile explore` looks for new ones.
# A fixture chosen once per test, not per example, is what `build` means.
common = dict(
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("laws", derandomize=True, max_examples=15, database=None, **common)
settings.register_profile("explore", max_examples=300, **common)
settings.load_profile("laws")

NOT_BUILT = "the fused operators are not built here (dnirnn.ops.built is False)"


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same global seed, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def one_thread():
    """A second thread only costs time on tensors this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request, monkeypatch) -> str:
    """Where a test's tensors are made, unless it says otherwise: each device in turn."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("there is no CUDA device here")
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.set_default_device(request.param)
    yield request.param
    torch.set_default_device(None)


@pytest.fixture
def supported(request, device):
    """Skips a dtype or a cell that the device's operator does not take, and a device that has none."""
    if not ops.built_for(device):
        pytest.skip(f"the fused operators are not built for {device} here")
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    dtype, cell = params.get("dtype"), params.get("cell")
    if cell is not None and cell not in ops.CELLS[device]:
        pytest.skip(f"no fused operator of {cell} on {device}")
    if dtype is not None and dtype not in ops.DTYPES[device]:
        pytest.skip(f"no fused operator of {dtype} on {device}")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A text file of 4,000 characters over ten letters."""
    path = tmp_path_factory.mktemp("text") / "tiny.txt"
    path.write_text(text_of(4000))
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A text file of one line again and again, which a small model learns by heart."""
    path = tmp_path_factory.mktemp("text") / "tiny.txt"
    path.write_text("tick tock the clock\n" * 60)
    return path


@pytest.fixture(params=["fused", "reference"])
def path(request, monkeypatch) -> str:
    """The path that dnirnn.LSTM takes."""
    take(request.param, monkeypatch)
    return request.param


@pytest.fixture
def reference(monkeypatch) -> None:
    """Nothing runs on a fused operator."""
    take("reference", monkeypatch)


@pytest.fixture(params=CORES)
def build(request, monkeypatch) -> Callable[..., Core]:
    """build(input_size, hidden_size, seed): a float64 core of each kind in turn."""
    return builder(request.param, monkeypatch)


@pytest.fixture(params=[name for name in CORES if name not in STRAIGHT_THROUGH])
def build_smooth(request, monkeypatch) -> Callable[..., Core]:
    """The same for the kinds whose gradient is the derivative of their values."""
    return builder(request.param, monkeypatch)


def builder(name: str, monkeypatch) -> Callable[..., Core]:
    make, on = CORES[name]
    if on is not None:
        take(on, monkeypatch)

    def seeded_build(input_size: int, hidden_size: int, seed: int) -> Core:
        torch.manual_seed(seed)
        return make(input_size, hidden_size).double()

    return seeded_build


def take(path: str, monkeypatch) -> None:
    if path == "reference":
        monkeypatch.setattr(ops, "fused_for", lambda x: False)
    elif not ops.built:
        pytest.skip(NOT_BUILT)
