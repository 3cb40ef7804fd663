"""Callbacks of a training: amortization gap, progressive levels, saved templates, figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.headers import SUFFIXES
from learnreg.image import unstacked
from learnreg.io import write_image
from learnreg.metrics import score
from learnreg.networks import ConditionalTemplate, LaplacianPyramid, LearnedTemplate
from learnreg.optimization import IterativeStage
from learnreg.reporting.figures import registration_figure
from learnreg.training.module import Batch, RegistrationModule
from learnreg.transforms import chain


@runtime_checkable
class Refinement(Protocol):
    """What goes on from the answer of a network: a :class:`learnreg.optimization.IterativeStage`, or a method."""

    def limited(self, iterations: int) -> Callable[..., Any]:
        """Return a copy with another number of iterations."""


class AmortizationGap(pl.Callback):
    """Callback that logs how much a classical solver improves the transforms of the network.

    For ``k`` = 0 and each of ``steps``, it logs ``val/objective_after_k``, without labels and landmarks, and
    ``val/dice_after_k``, both averaged over validation batches. ``val/amortization_gap`` is the decrease of the
    objective with the most steps. How to read them:

    * A large gap at the end of a training: the network limits the accuracy.
    * Dice decreases while the objective decreases: the objective limits the accuracy.

    Args:
        refinement: Stage or method that goes on from the network's transform, as in ``conf/refinement``. ``None`` logs
            nothing.
        steps: Numbers of iterations of the stage.
        pairs: Number of validation batches.
        every: Log at every ``every``-th validation.

    Raises:
        InputError: There are no steps, or a number is below 1.

    Example:
        >>> from learnreg.optimization import FieldStage
        >>> objective = learnreg.Objective(learnreg.similarity.MSE())
        >>> stage = FieldStage(objective, factors=(1,), iterations=(30,))
        >>> callback = AmortizationGap(stage, steps=[10, 50])  # goes into Trainer(callbacks=[...])
        >>> callback.steps
        (10, 50)
    """

    def __init__(
        self, refinement: Refinement | None, steps: Sequence[int] = (10, 50), *, pairs: int = 2, every: int = 1
    ) -> None:
        if not steps or min(*steps, pairs, every, 1) < 1:
            raise InputError(
                "AmortizationGap needs steps, pairs and every of at least 1, such as steps=[10, 50], got "
                f"steps={list(steps)}, pairs={pairs}, every={every}; callbacks.gap=null leaves it out."
            )
        self.refinement, self.steps, self.pairs, self.every = refinement, tuple(steps), pairs, every
        self.seen = -1

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = state_dict["seen"]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the validations, without Lightning's sanity check."""
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
        case = batch_idx * trainer.world_size + trainer.global_rank
        if trainer.sanity_checking or case >= self.pairs or self.seen % self.every:
            return
        if isinstance(pl_module, RegistrationModule) and self.refinement is not None:
            values = amortization(pl_module, batch, self.refinement, self.steps)
            values["amortization_gap"] = values["objective_after_0"] - values[f"objective_after_{max(self.steps)}"]
            pl_module.record({f"val/{name}": v for name, v in values.items()}, batch_idx, batch[0].batch_size)


def amortization(
    module: RegistrationModule, batch: Batch, refinement: Refinement, steps: Sequence[int]
) -> dict[str, float]:
    """Compute the objective and Dice of a batch before and after a refinement.

    Args:
        module: Module with the network and the objective.
        batch: Fixed and moving images.
        refinement: See :class:`AmortizationGap`.
        steps: Its numbers of iterations.

    Returns:
        ``objective_after_k`` and, with labels, ``dice_after_k``, for ``k`` = 0 and each of ``steps``; means over the
        pairs.
    """
    pairs = zip(*(unstacked(images) for images in batch), strict=True)
    found = [_amortization_of_pair(module, pair, refinement, steps) for pair in pairs]
    return {key: statistics.fmean(one[key] for one in found if key in one) for key in found[0]}


def _amortization_of_pair(
    module: RegistrationModule, batch: Batch, refinement: Refinement, steps: Sequence[int]
) -> dict[str, float]:
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
                done = refinement.limited(k)(fixed, moving, initial=answer)
                # What a stage finds leaves out its start, the transform of a method includes it.
                transform = chain(done.transform, answer if isinstance(refinement, IterativeStage) else None)
        with torch.no_grad():
            found[f"objective_after_{k}"] = float(objective(transform).total)
            overlap = score(fixed, moving, transform).dice
        if overlap is not None:
            found[f"dice_after_{k}"] = float(overlap.nanmean())
    return found


class Progressive(pl.Callback):
    """Callback that trains a :class:`learnreg.networks.LaplacianPyramid` from coarse to fine.

    It adds the levels one after the other.

    Args:
        joins: When the second, third, ... level is added, as shares of the training, from 0 to 1; ``None`` divides the
            training equally.

    Raises:
        InputError: ``joins`` does not rise from 0 to 1; or the network is not a
            :class:`learnreg.networks.LaplacianPyramid`, which is raised when the training starts.

    Source:
        Mok and Chung, LapIRN, MICCAI 2020.

    Example:
        >>> callback = Progressive([0.2, 0.5])  # level 2 after 20%, level 3 after half of the training
        >>> callback.joins
        (0.2, 0.5)
    """

    def __init__(self, joins: Sequence[float] | None = None) -> None:
        self.joins = None if joins is None else tuple(float(j) for j in joins)
        if list(self.joins or ()) != sorted(self.joins or ()) or not all(0 <= j <= 1 for j in self.joins or ()):
            raise InputError(
                f"Progressive.joins are shares of the training rising from 0 to 1, got {list(joins or ())}."
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the number of levels.

        Raises:
            InputError: The network is not a :class:`learnreg.networks.LaplacianPyramid`.
        """
        if not isinstance(pl_module, RegistrationModule) or not isinstance(pl_module.network, LaplacianPyramid):
            raise InputError(
                "The callback Progressive needs the network LaplacianPyramid; set network=laplacian, or "
                "callbacks.progressive=null."
            )
        stages = pl_module.network.stages
        joins = self.joins or tuple(k / stages for k in range(1, stages))
        pl_module.network.levels = min(stages, 1 + sum(pl_module.progress() >= share for share in joins))


class SaveTemplate(pl.Callback):
    """Callback that writes the template of a :class:`learnreg.networks.LearnedTemplate` at the end of the training.

    Args:
        file: Image file, for example ``template.nii.gz``; the center of its grid is at 0 mm, as in the training images.
        spacing: Spacing of the training images, mm.
        covariates: Only for a :class:`learnreg.networks.ConditionalTemplate`: one row of values per file. The values
            are added to the name of the file, for example ``template_70.nii.gz``.

    Raises:
        InputError: ``file`` is not the name of an image, ``spacing`` is not positive, or ``covariates`` is empty; also
            before the training, if the network has no template or ``covariates`` does not fit it.

    Example:
        >>> callback = SaveTemplate("template.nii.gz", spacing=1.5, covariates=[[30], [70]])
        >>> callback.covariates  # writes template_30.nii.gz and template_70.nii.gz
        [[30.0], [70.0]]
    """

    def __init__(self, file: str, spacing: float = 1.0, covariates: Sequence[Sequence[float]] | None = None) -> None:
        self.file, self.spacing = Path(file), float(spacing)
        self.covariates = None if covariates is None else [[float(v) for v in row] for row in covariates]
        if not self.file.name.lower().endswith(SUFFIXES):
            raise InputError(f"SaveTemplate.file must be an image such as template.nii.gz, got {file}.")
        if not 0 < self.spacing < math.inf:
            raise InputError(f"SaveTemplate.spacing must be positive, mm, got {spacing}.")
        if self.covariates == []:
            raise InputError(
                "SaveTemplate.covariates needs one row of values per file, such as [[30], [70]], got none."
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the network before the training.

        Raises:
            InputError: The network has no template, or ``covariates`` does not fit it.
        """
        network = pl_module.network if isinstance(pl_module, RegistrationModule) else None
        if not isinstance(network, LearnedTemplate):
            raise InputError(
                f"The callback SaveTemplate needs the network LearnedTemplate, got {type(network).__name__}; "
                "leave it out (callbacks.template=null)."
            )
        if isinstance(network, ConditionalTemplate) != (self.covariates is not None):
            raise InputError(
                "The template depends on covariates; say for which values to save it, for example "
                "callbacks.template.covariates=[[30], [70]]."
                if self.covariates is None
                else "callbacks.template.covariates is only for network=conditional_template; leave it out."
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the template."""
        if not trainer.is_global_zero:
            return
        network: LearnedTemplate = pl_module.network  # type: ignore[assignment]
        known = None if self.covariates is None else torch.tensor(self.covariates, device=pl_module.device)
        with torch.no_grad():
            found = network.appearance(1 if known is None else len(known), known).cpu().float()
        suffix = "".join(self.file.suffixes[-2:]) if self.file.name.endswith(".gz") else self.file.suffix
        name = self.file.name.removesuffix(suffix)
        for number, values in enumerate(found):
            row = [] if self.covariates is None else self.covariates[number]
            file = self.file.with_name("_".join([name, *(f"{v:g}" for v in row)]) + suffix)
            write_image(values, Grid.regular(tuple(values.shape[1:]), self.spacing), file)


class Pictures(pl.Callback):
    """Callback that saves a figure of the first validation pair, and sends it to TensorBoard or Weights & Biases.

    Args:
        folder: Folder for the files ``step_<step>.png``.
        every: Save at the first and then at every ``every``-th validation.

    Raises:
        InputError: ``every`` is below 1.

    Example:
        >>> callback = Pictures("pictures", every=5)
        >>> callback.folder.name
        'pictures'
    """

    def __init__(self, folder: str, every: int = 5) -> None:
        if every < 1:
            raise InputError(f"Pictures.every must be at least 1, got {every}; callbacks.pictures=null leaves it out.")
        self.folder, self.every, self.seen = Path(folder), every, 0

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = state_dict["seen"]

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
            raise InputError(
                f"The callback Pictures needs a RegistrationModule, got {type(pl_module).__name__}; leave it out."
            )
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
