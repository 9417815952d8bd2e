"""All steps in one kernel: which calls take it, and what test_op's sizes leave out of it.

test_cuda_on_host runs this. The emulated GPU runs 24 blocks at once, of 8 cells each.
"""

import pytest
import torch
from op_calls import FLOOR, assert_equals_the_loop, by_loop, by_op, make_call
from strategies import assert_close

TILES = {
    "groups of blocks": dict(steps=4, batch=70, inputs=3, hidden_size=24, truncation=2),
    "tiles of rows": dict(steps=3, batch=70, inputs=3, hidden_size=96),
    "tiles in turns, all else": dict(
        steps=5, batch=70, inputs=3, hidden_size=96, truncation=2, probe="steps", reset=True
    ),
    "tiles and chunks": dict(steps=5, batch=23, inputs=2, hidden_size=48, truncation=2, probe="steps"),
    "slices of two warps": dict(steps=2, batch=3, inputs=2, hidden_size=88, reset=True),
}


@pytest.fixture
def grids(cuda_path):
    """grids(check, call): how many kernels of all steps check(call) starts."""

    def count(check, call) -> int:
        before = torch.ops.dnirnn.grids_started()
        check(call)
        return torch.ops.dnirnn.grids_started() - before

    return count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TILES)
def test_equals_the_loop(name, dtype, cuda_path, grids):
    found = grids(assert_equals_the_loop, make_call(**TILES[name], dtype=dtype))
    assert found == (2 if cuda_path == "on chip" else 0)


@pytest.mark.parametrize(
    ("hidden_size", "dtype", "kernels"),
    [(264, torch.float32, 1), (264, torch.bfloat16, 2), (520, torch.float16, 2)],
    ids=str,
)
def test_equals_the_loop_where_warps_hold_more(
    hidden_size, dtype, kernels, cuda_path, grids, request
):
    """The kernels of more than 256 cells and of more than 512, on a GPU with room for them.

    Exact products of float32 leave no registers for such a kernel backwards.
    """
    torch.ops.dnirnn.set_multiprocessors(66)
    request.addfinalizer(lambda: torch.ops.dnirnn.set_multiprocessors(12))
    found = grids(assert_equals_the_loop, make_call(2, 2, 3, hidden_size, dtype=dtype))
    assert found == (kernels if cuda_path == "on chip" else 0)


@pytest.mark.parametrize(
    "change",
    [dict(dtype=torch.float64), dict(hidden_size=12), dict(hidden_size=200)],
    ids=["float64", "cells no multiple of 8", "more cells than multiprocessors hold"],
)
def test_what_does_not_fit_takes_its_steps_one_by_one(change, grids):
    sizes = dict(steps=2, batch=2, inputs=3, hidden_size=16, dtype=torch.float32)
    assert grids(by_op, make_call(**sizes | change)) == 0


def test_equals_the_loop_with_weights_that_begin_anywhere_in_a_buffer(cuda_path, grids):
    """Contiguous, and no multiple of the 16 bytes that a kernel loads."""
    call = make_call(3, 2, 3, 16, truncation=2, dtype=torch.float32)
    flat = torch.cat([torch.zeros(1), *(w.detach().flatten() for w in call.weights)])
    parts = flat[1:].split([w.numel() for w in call.weights])
    views = [part.view(w.shape).requires_grad_() for part, w in zip(parts, call.weights)]
    assert views[1].data_ptr() % 16 and views[1].is_contiguous()
    found = grids(assert_equals_the_loop, call._replace(weights=views))
    assert found == (2 if cuda_path == "on chip" else 0)


@pytest.mark.parametrize("batch", [3, 1200], ids=["few rows", "many rows"])
def test_the_path_that_is_chosen(batch, cuda_path, grids):
    """Few rows stay on chip, where a step of many takes turn after turn."""
    if cuda_path == "steps":
        pytest.skip("what is chosen does not depend on it")
    torch.ops.dnirnn.cuda_path("auto")
    call = make_call(2, batch, 2, 88, dtype=torch.float32)
    assert grids(by_op, call) == (2 if batch == 3 else 0)


def test_tf32_where_it_is_allowed(cuda_path, monkeypatch):
    """Then, and only then, float32 products have 11 bits."""
    if cuda_path == "steps":
        pytest.skip("torch's own products are its own affair")
    call = make_call(3, 5, 4, 32, dtype=torch.float32)
    expected = by_loop(call)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    found = by_op(call)
    for one, other in zip((*found[:2], *found[3]), (*expected[:2], *expected[3])):
        assert_close(one, other, 2e-3, FLOOR)
    assert (found[0] - expected[0]).norm() > 1e-5 * expected[0].norm()


def test_what_is_not_a_number_is_passed_on(cuda_path):
    """Also in the bits that stand for what was not sent yet: nobody waits for it for ever.

    By a probe, which is added to h last: other arithmetic of the host's would give other bits.
    """
    call = make_call(4, 5, 4, 16, truncation=2, probe="chunks", dtype=torch.float32)
    with torch.no_grad():
        call.probe[1, 3] = torch.full((1,), -1, dtype=torch.int32).view(torch.float32)
    found, expected = by_op(call), by_loop(call)
    assert (found[0].isnan() == expected[0].isnan()).all()
    assert found[0][2:, 3].isnan().all() and not found[0][:2].isnan().any()


def test_more_rows_than_are_counted_are_refused():
    x = torch.zeros(1, 1, 1).expand(2**31, 1, 1)
    weights = [torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4), torch.zeros(4)]
    with pytest.raises(ValueError, match=r"below 2\*\*31 - 256; got 2147483648 steps"):
        torch.ops.dnirnn.tbptt(x, torch.zeros(1, 2), None, weights, [], 2**31, 1.0, None)
