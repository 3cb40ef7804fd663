"""What a training run records beside its losses: pictures, and the amortization gap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.io import write_image
from learnreg.networks import LaplacianPyramid, LearnedTemplate
from learnreg.optimization import DenseParametrization, Descent, descend
from learnreg.reporting.figures import registration_figure
from learnreg.training.module import RegistrationModule
from learnreg.transforms import Affine


class AmortizationGap(pl.Callback):
    """Logs how much the objective still falls when the network's answer is refined classically.

    The mean over the first validation pairs of the objective at the network's answer, minus the
    objective after ``steps`` classical steps from there, which compose a correction with it. A gap that
    stays large says that the network, not the objective, is what limits accuracy.

    Args:
        steps: Classical steps.
        pairs: How many validation batches.
        learning_rate: mm a step.
    """

    def __init__(self, steps: int = 10, pairs: int = 2, learning_rate: float = 0.1) -> None:
        self.steps, self.pairs, self.learning_rate = steps, pairs, learning_rate

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking or batch_idx >= self.pairs or not isinstance(pl_module, RegistrationModule):
            return
        fixed, moving = pl_module.pair(batch)
        gap = amortization_gap(pl_module, fixed, moving, steps=self.steps, learning_rate=self.learning_rate)
        pl_module.log("val/amortization_gap", gap, batch_size=fixed.batch_size, sync_dist=True)


def amortization_gap(
    module: RegistrationModule, fixed: Image, moving: Image, *, steps: int, learning_rate: float = 0.1
) -> float:
    """Objective (for images alone) at the network's answer minus that after classical steps from there."""
    objective = module.weighted_objective().unsupervised()
    with torch.no_grad():
        answer = module(fixed, moving).detach()
    with torch.enable_grad():
        correction = DenseParametrization(fixed.grid, None, steps=3)
        descend(correction, objective, fixed, moving, Descent(steps, learning_rate, tolerance=0), initial=answer)
    with torch.no_grad():
        before = objective(fixed, moving, Affine.identity(fixed.ndim, dtype=fixed.grid.dtype), answer).total
        return float(before - objective(fixed, moving, correction(fixed, moving), answer).total)


class Progressive(pl.Callback):
    """Lets the finer levels of a network join one after the other, as its :attr:`levels`.

    Args:
        joins: Shares of the training at which the second level joins, the third, and so on; equal shares
            unless given.

    Source:
        Mok and Chung, LapIRN, MICCAI 2020.
    """

    def __init__(self, joins: Sequence[float] | None = None) -> None:
        self.joins = None if joins is None else tuple(float(j) for j in joins)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the number of levels.

        Raises:
            ValueError: The network has no levels to let join.
        """
        if not isinstance(pl_module, RegistrationModule) or not isinstance(pl_module.network, LaplacianPyramid):
            raise ValueError(
                "The callback Progressive needs the network LaplacianPyramid; leave it out (~callbacks.progressive)."
            )
        stages = pl_module.network.stages
        joins = self.joins or tuple(k / stages for k in range(1, stages))
        pl_module.network.levels = min(stages, 1 + sum(pl_module.progress() >= share for share in joins))


class SaveTemplate(pl.Callback):
    """Writes what a :class:`learnreg.networks.LearnedTemplate` has learned, at the end of the training.

    Args:
        file: Such as ``template.nii.gz``; its middle is at 0, as the training images lie.
        spacing: mm, of the training images.
    """

    def __init__(self, file: str, spacing: float = 1.0) -> None:
        self.file, self.spacing = FilePath(file), float(spacing)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it.

        Raises:
            ValueError: The network has no template.
        """
        network = pl_module.network if isinstance(pl_module, RegistrationModule) else None
        if not isinstance(network, LearnedTemplate):
            raise ValueError("The callback SaveTemplate needs the network LearnedTemplate; leave it out.")
        if trainer.is_global_zero:
            values = network.values.detach().cpu()[0].float()
            write_image(values, Grid.regular(tuple(values.shape[1:]), self.spacing), self.file)


class Pictures(pl.Callback):
    """Saves, and sends to the logger, the figure of the first validation pair.

    Args:
        folder: Where ``<step>.png`` files go.
        every: Once in so many validations.
    """

    def __init__(self, folder: str, every: int = 5) -> None:
        self.folder, self.every, self.seen = FilePath(folder), every, 0

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx != 0 or trainer.sanity_checking or not trainer.is_global_zero:
            return
        self.seen += 1
        if (self.seen - 1) % self.every:
            return
        fixed, moving = pl_module.pair(batch) if isinstance(pl_module, RegistrationModule) else batch
        with torch.no_grad():
            transform = pl_module(fixed, moving)
        figure = registration_figure(fixed, moving, transform, title=f"step {trainer.global_step}")
        self.folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.folder / f"step_{trainer.global_step:07d}.png", dpi=80)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("validation", figure, trainer.global_step, close=False)
            elif isinstance(logger, WandbLogger):
                logger.log_image("validation", [figure], step=trainer.global_step)
        plt.close(figure)
