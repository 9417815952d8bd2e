"""plain_loop.py with half of the core's recurrent weights pruned after the first epoch.

    python examples/with_pruning.py

The core stays on its fused operator: what it multiplies with is the module's attribute of that moment,
here weight_hh_l0 = weight_hh_l0_orig * weight_hh_l0_mask.
"""

from plain_loop import EPOCHS, epoch, make, report
from torch.nn.utils import prune


def train(amount: float = 0.5) -> list[float]:
    """The loss of every update."""
    network, optimizer = make()
    losses, state = epoch(network, optimizer, network.initial_state())
    # The parameter that the optimizer holds is weight_hh_l0_orig from here on.
    prune.l1_unstructured(network.recurrent.core, "weight_hh_l0", amount)
    for _ in range(EPOCHS - 1):
        more, state = epoch(network, optimizer, state)
        losses += more
    return losses


if __name__ == "__main__":
    report(train())
