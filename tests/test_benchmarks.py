"""What the benchmarks compare computes the same thing on both sides."""

import pytest
import torch
from benchmarks.stacks import INPUT, PEERS
from strategies import assert_close


@pytest.mark.parametrize("name", PEERS)
def test_a_stack_and_its_loop_of_torch_cells_agree(name):
    peer = PEERS[name]()
    peer.core.double()
    x = torch.randn(9, 2, INPUT, dtype=torch.float64)
    outputs, _ = peer.core(x, peer.core.initial_state(2))
    assert_close(peer.loop(x), outputs)
