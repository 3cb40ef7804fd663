"""Callback of the tests: what each process of a training ends with."""

from pathlib import Path

import pytorch_lightning as pl
import torch


class SaveWeights(pl.Callback):
    """Writes the weights of each process, and the sums of the images that it has seen."""

    def __init__(self, folder: str) -> None:
        self.folder, self.seen = Path(folder), []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(float(batch[0].data.sum()))

    def on_train_end(self, trainer, pl_module):
        weights = {name: p.detach().clone() for name, p in pl_module.network.named_parameters()}
        torch.save({"weights": weights, "seen": self.seen}, self.folder / f"rank_{trainer.global_rank}.pt")
