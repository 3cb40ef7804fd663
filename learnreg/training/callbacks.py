"""Callbacks: amortization gap, progressive levels, learned templates, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.io import write_image
from learnreg.metrics import score
from learnreg.networks import ConditionalTemplate, LaplacianPyramid, LearnedTemplate
from learnreg.optimization import IterativeStage
from learnreg.reporting.figures import registration_figure
from learnreg.training.module import Batch, RegistrationModule
from learnreg.transforms import chain


class AmortizationGap(pl.Callback):
    """Log how much the classical solver improves the network's answer.

    ``val/objective_after_k`` (images and fields, without labels or landmarks) and ``val/dice_after_k`` for k = 0 and
    each of ``steps``, averaged over the first validation batches. ``val/amortization_gap`` is the decrease of the
    objective with the most steps. If it stays large, the network limits the accuracy; if Dice decreases with the
    objective, the objective does.

    Args:
        refinement: A stage of one level, as in ``conf/refinement``; its correction is composed with the answer.
            ``None`` logs nothing.
        steps: Numbers of classical steps.
        pairs: Number of validation batches.
        every: Log at every ``every``-th validation.
    """

    def __init__(
        self, refinement: IterativeStage | None, steps: Sequence[int] = (10, 50), *, pairs: int = 2, every: int = 1
    ) -> None:
        self.refinement, self.steps, self.pairs, self.every = refinement, tuple(steps), pairs, every
        self.seen = -1

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count validations."""
        self.seen += not trainer.sanity_checking

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking or batch_idx >= self.pairs or self.seen % self.every:
            return
        if isinstance(pl_module, RegistrationModule) and self.refinement is not None:
            values = amortization(pl_module, batch, self.refinement, self.steps)
            values["amortization_gap"] = values["objective_after_0"] - values[f"objective_after_{max(self.steps)}"]
            for name, value in values.items():
                pl_module.log(f"val/{name}", value, batch_size=batch[0].batch_size, sync_dist=True)


def amortization(
    module: RegistrationModule, batch: Batch, refinement: IterativeStage, steps: Sequence[int]
) -> dict[str, float]:
    """Return ``objective_after_k`` and, with labels, ``dice_after_k`` for k = 0 and each of ``steps``."""
    task = module.task(batch)
    fixed, moving = task.fixed, task.moving
    objective = task.objective.unsupervised().prepare(module.compared(fixed), module.compared(moving))
    with torch.no_grad():
        answer = module.predict(fixed, moving, weight=task.weight).transform.detach()
    found = {}
    for k in (0, *steps):
        transform = answer
        if k:
            with torch.enable_grad():
                transform = chain(refinement.limited(k)(fixed, moving, answer).transform, answer)
        with torch.no_grad():
            found[f"objective_after_{k}"] = float(objective(transform).total)
            overlap = score(fixed, moving, transform).dice
        if overlap is not None:
            found[f"dice_after_{k}"] = float(overlap.nanmean())
    return found


class Progressive(pl.Callback):
    """Activate the levels of a :class:`learnreg.networks.LaplacianPyramid` one after the other.

    Args:
        joins: Shares of the training at which the second level joins, the third, and so on; ``None`` is equal shares.

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
            InputError: The network has no levels.
        """
        if not isinstance(pl_module, RegistrationModule) or not isinstance(pl_module.network, LaplacianPyramid):
            raise InputError(
                "The callback Progressive needs the network LaplacianPyramid; leave it out (~callbacks.progressive)."
            )
        stages = pl_module.network.stages
        joins = self.joins or tuple(k / stages for k in range(1, stages))
        pl_module.network.levels = min(stages, 1 + sum(pl_module.progress() >= share for share in joins))


class SaveTemplate(pl.Callback):
    """Write the template of a :class:`learnreg.networks.LearnedTemplate` at the end of the training.

    Args:
        file: Such as ``template.nii.gz``; its center is at 0, as in the training images.
        spacing: mm, of the training images.
        covariates: Rows of values for a :class:`learnreg.networks.ConditionalTemplate`: one file per row, such as
            ``template_70.nii.gz``.
    """

    def __init__(self, file: str, spacing: float = 1.0, covariates: Sequence[Sequence[float]] | None = None) -> None:
        self.file, self.spacing = Path(file), float(spacing)
        self.covariates = None if covariates is None else [[float(v) for v in row] for row in covariates]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the network before the training.

        Raises:
            InputError: The network has no template, or ``covariates`` does not fit it.
        """
        network = pl_module.network if isinstance(pl_module, RegistrationModule) else None
        if not isinstance(network, LearnedTemplate):
            raise InputError("The callback SaveTemplate needs the network LearnedTemplate; leave it out.")
        if isinstance(network, ConditionalTemplate) != (self.covariates is not None):
            raise InputError(
                "The template depends on covariates; say for which values it is saved, such as "
                "callbacks.template.covariates=[[30], [70]]."
                if self.covariates is None
                else "callbacks.template.covariates needs network=conditional_template."
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the template."""
        if not trainer.is_global_zero:
            return
        network: LearnedTemplate = pl_module.network  # type: ignore[assignment]
        known = None if self.covariates is None else torch.tensor(self.covariates, device=pl_module.device)
        with torch.no_grad():
            found = network.appearance(1 if known is None else len(known), known).cpu().float()
        name, *suffixes = self.file.name.split(".")
        for number, values in enumerate(found):
            row = [] if self.covariates is None else self.covariates[number]
            file = self.file.with_name(".".join(["_".join([name, *(f"{v:g}" for v in row)]), *suffixes]))
            write_image(values, Grid.regular(tuple(values.shape[1:]), self.spacing), file)


class Pictures(pl.Callback):
    """Save the figure of the first validation pair, and send it to the logger.

    Args:
        folder: Of the ``step_<step>.png`` files.
        every: Save at every ``every``-th validation.
    """

    def __init__(self, folder: str, every: int = 5) -> None:
        self.folder, self.every, self.seen = Path(folder), every, 0

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
        if not isinstance(pl_module, RegistrationModule):
            raise InputError(f"The callback Pictures needs a RegistrationModule, got {type(pl_module).__name__}.")
        task = pl_module.task(batch)
        fixed, moving = task.fixed, task.moving
        with torch.no_grad():
            transform = pl_module.predict(fixed, moving, weight=task.weight).transform
        figure = registration_figure(fixed, moving, transform, title=f"step {trainer.global_step}")
        self.folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.folder / f"step_{trainer.global_step:07d}.png", dpi=80)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("validation", figure, trainer.global_step, close=False)
            elif isinstance(logger, WandbLogger):
                logger.log_image("validation", [figure], step=trainer.global_step)
        plt.close(figure)
