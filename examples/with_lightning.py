"""plain_loop.py as a Lightning module: manual optimisation, and a state that a checkpoint holds.

    pip install lightning
    python examples/with_lightning.py

Automatic optimisation would call loss.backward(), which leaves the synthetic gradients out; dnirnn
refuses it. On several devices, `average_gradients` as in with_ddp.py.
"""

import tempfile
from pathlib import Path

import lightning
import torch
from plain_loop import EPOCHS, loss_of, make, report, windows
from torch.utils.data import DataLoader

import dnirnn


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.network, self.optimizer = make()
        self.state = self.network.initial_state()
        self.losses: list[float] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer

    def training_step(self, batch, index):
        x, y = batch
        logits, self.state, interfaces = self.network(x, self.state)
        loss = loss_of(logits, y)
        dnirnn.backward(loss, interfaces, reduction="mean")
        optimizer = self.optimizers()
        optimizer.step()
        optimizer.zero_grad()
        self.losses.append(loss.item())

    def on_save_checkpoint(self, checkpoint):
        checkpoint["state"] = self.state

    def on_load_checkpoint(self, checkpoint):
        self.state = checkpoint["state"]


def fit(folder: Path, epochs: int, **more) -> list[float]:
    """Trains up to so many epochs; the losses of those that this call trained."""
    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(list(windows()), batch_size=None), **more)
    trainer.save_checkpoint(folder / "last.ckpt")
    return module.losses


def train() -> list[float]:
    """One epoch, and the others from its checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        losses = fit(Path(folder), 1)
        return losses + fit(Path(folder), EPOCHS, ckpt_path=Path(folder) / "last.ckpt")


if __name__ == "__main__":
    report(train())
