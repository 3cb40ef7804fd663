"""Lightning module that trains a network on the objective of the classical solver."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as distributed
from pytorch_lightning.callbacks import Timer, WeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader

from learnreg.consistency import Consistency
from learnreg.data.streams import Stream, StreamSampler
from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.metrics import score
from learnreg.networks import as_network
from learnreg.networks.base import Network, Prediction, Task
from learnreg.networks.checkpoint import KEY
from learnreg.numerics import SmallConvolutions
from learnreg.objective import Objective
from learnreg.randomness import seed_generators
from learnreg.supervision import Supervision
from learnreg.terms import Weighted
from learnreg.training.schedules import Cosine, Schedule
from learnreg.training.scores import CaseScores
from learnreg.transforms import Transform, chain

Batch = tuple[Image, Image]


class RegistrationModule(pl.LightningModule):
    """Lightning module that minimizes ``objective(fixed, moving, network(fixed, moving))`` over a network's weights.

    Args:
        network: A :class:`learnreg.networks.Network`, or any module that :func:`learnreg.networks.as_network` accepts.
        objective: Objective to minimize.
        optimizer: ``(parameters) -> torch.optim.Optimizer``.
        consistency: Term that also predicts the transform from the moving to the fixed image, and penalizes where the
            two are not each other's inverse.
        features: ``Image -> Image`` whose channels the objective compares instead of the intensities. The network gets
            the images themselves.
        symmetric: If ``True``, also evaluate the objective of the inverse transform for the exchanged pair, and use the
            mean of both.
        warmup: Share of the training in which the learning rate rises.
        schedule: Factor of the learning rate over the rest of the training, which ends by ``max_steps``,
            ``max_epochs`` or ``max_time``, whichever comes first. ``None`` is :class:`learnreg.training.Cosine`.
        recipe: Configuration to store in checkpoints, see :func:`learnreg.networks.checkpoint.recipe`.
        seed: Of what a training step draws, such as the weight of a conditioned network or dropout. The draws depend on
            the seed and the step, so a resumed training repeats them.

    Example:
        >>> from functools import partial
        >>> from learnreg.networks import UNet
        >>> objective = learnreg.Objective(learnreg.similarity.MSE())
        >>> module = RegistrationModule(UNet(2, (4,)), objective, partial(torch.optim.Adam, lr=1e-3))
        >>> image = learnreg.Image(torch.rand(1, 1, 16, 16), learnreg.Grid.regular((16, 16)))
        >>> type(module(image, image)).__name__  # train it by pytorch_lightning.Trainer().fit(module, pairs)
        'Velocity'
    """

    def __init__(  # noqa: PLR0913 - they are the lines of a config
        self,
        network: nn.Module,
        objective: Objective,
        optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
        *,
        consistency: Weighted[Consistency] | None = None,
        features: nn.Module | None = None,
        symmetric: bool = False,
        warmup: float = 0.02,
        schedule: Schedule | None = None,
        recipe: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.network, self.objective = as_network(network), objective
        self.make_optimizer = optimizer
        self.consistency, self.features = consistency, features
        if not 0 <= warmup < 1:
            raise InputError(f"warmup is a share of the training, at least 0 and below 1, got {warmup}.")
        self.symmetric, self.warmup, self.schedule = symmetric, warmup, schedule or Cosine()
        self.recipe, self.seed = dict(recipe or {}), int(seed)
        self.scores = CaseScores()
        self._time_share = 0.0

    @property
    def needs(self) -> tuple[str, ...]:
        """What every image must have: ``"labels"``, ``"landmarks"``."""
        parts: list[Supervision | Network] = [term.term for _, term in self.objective.supervision.items()]
        parts += [part for part in self.network.modules() if isinstance(part, Network)]
        return tuple(sorted({need for part in parts for need in part.needs}))

    def forward(self, fixed: Image, moving: Image) -> Transform:
        return self.predict(fixed, moving).transform

    def predict(self, fixed: Image, moving: Image, *, weight: float | None = None) -> Prediction:
        """Predict the transform of a pair, see :meth:`learnreg.networks.Network.predict`."""
        with SmallConvolutions():
            return self.network.predict(fixed, moving, weight=weight)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._time_share = self._share_of_time()

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        # All processes draw the same task; what the network draws for its own pairs, such as dropout, differs.
        step = self._trainer.fit_loop.total_batch_idx if self._trainer else batch_index
        seed_generators("task", self.seed, step)
        task = self.task(batch)
        seed_generators("network", self.seed, step, self._trainer.global_rank if self._trainer else 0)
        prediction = self.predict(task.fixed, task.moving, weight=task.weight)
        transform = prediction.transform
        compared = self.compared(task.fixed), self.compared(task.moving)
        loss = task.objective(*compared, transform)
        total, terms = loss.total, loss.terms
        if self.symmetric:
            backward = task.objective(*reversed(compared), transform.inverse())
            total = (total + backward.total) / 2
            terms = {name: (terms[name] + backward.terms[name]) / 2 for name in terms}
        for name, term in self.network.auxiliary_terms(prediction, *compared, task.objective).items():
            terms[name] = term.value
            total = total + term.weighted
        if self.consistency is not None:
            back = self.way_back(task, through=self.consistency.term.through)
            terms["consistency"] = self.consistency.term(transform, back, task.fixed.grid)
            total = total + self.consistency.weight * terms["consistency"]
        self._check_finite(total, terms, step)
        size = task.fixed.batch_size
        self.log("train/loss", total, prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": value for name, value in terms.items()}, batch_size=size)
        return total

    def _check_finite(self, total: Tensor, terms: Mapping[str, Tensor], step: int) -> None:
        """Stop a training that has diverged; on a GPU, which would have to wait, at every tenth step."""
        if (total.device.type != "cpu" and step % 10) or total.isfinite():
            return
        wrong = [name for name, value in terms.items() if not value.isfinite()]
        sampler = getattr(self.trainer.train_dataloader, "sampler", None) if self._trainer else None
        names = ""
        if isinstance(sampler, StreamSampler) and isinstance(sampler.dataset, Stream):
            names = f" for {', '.join(map(sampler.dataset.name, sampler.indices(step)))}"
        raise InputError(
            f"The training diverged at step {step}: no finite {', '.join(wrong) or 'objective'}{names}. Use a smaller "
            "learning rate (optimizer.lr) or full precision (trainer.precision=32-true), or check these images."
        )

    def task(self, batch: Batch) -> Task:
        """Return the pair and the objective to train on, see :meth:`learnreg.networks.Network.task`."""
        with SmallConvolutions():  # a conditional template runs a decoder here
            return self.network.task(*batch, self.objective)

    def compared(self, image: Image) -> Image:
        """Return the image that the objective compares: its ``features``, or the image itself."""
        return image if self.features is None else self.features(image)  # type: ignore[no-any-return]

    def way_back(self, task: Task, *, through: int = 0) -> Transform:
        """Predict the transform from the moving to the fixed images.

        Args:
            task: Pair whose transform was predicted.
            through: Number of other fixed images of the batch of all processes on the way; the transforms between them
                are composed. 0 is the direct way.

        Raises:
            InputError: The batch has too few images for ``through``.
        """
        fixed, moving = task.fixed, task.moving
        world = self.trainer.world_size if self._trainer else 1
        if through >= fixed.batch_size * world and through > 0:
            raise InputError(
                f"A consistency term with through={through} needs batches of at least {through + 1} pairs, got "
                f"{fixed.batch_size * world}; set data.batch_size={through + 1}."
            )
        stops = [moving, *(rolled(fixed, k + 1) for k in range(through)), fixed]
        return chain(*(self.predict(*leg, weight=task.weight).transform for leg in pairwise(stops)))

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        task = self.task(batch)
        fixed, moving = task.fixed, task.moving
        transform = self.predict(fixed, moving, weight=task.weight).transform
        loss = task.objective(self.compared(fixed), self.compared(moving), transform)
        if not loss.total.isfinite():
            raise InputError(
                f"The training diverged: the objective is not finite after {self.global_step} steps. Use a smaller "
                "learning rate (optimizer.lr) or full precision (trainer.precision=32-true)."
            )
        values = {"val/loss": loss.total, **{f"val/{name}_loss": value for name, value in loss.terms.items()}}
        scores = score(fixed, moving, transform)
        values |= {"val/sd_log_jacobian": scores.sd_log_jacobian.mean(), "val/folding": scores.folding.mean()}
        if scores.dice is not None:
            values["val/dice"] = scores.dice.nanmean()
        self.record(values, batch_index, fixed.batch_size)

    def record(self, values: Mapping[str, Tensor | float], batch_index: int, batch_size: int) -> None:
        """Record values of a validation batch; their means over the batches of all processes are logged.

        Args:
            values: By name; a value that is not a number does not count.
            batch_index: Index of the batch in this process.
            batch_size: Number of pairs, the weight in the mean.
        """
        world, rank = (1, 0) if self._trainer is None else (self.trainer.world_size, self.trainer.global_rank)
        self.scores.add(batch_index * world + rank, {name: float(v) for name, v in values.items()}, batch_size)

    def on_validation_epoch_start(self) -> None:
        self.scores = CaseScores()

    def on_validation_epoch_end(self) -> None:
        loader: Any = self.trainer.val_dataloaders
        # Lightning gives the last processes the first pairs again, so that all have as many.
        single = isinstance(loader, DataLoader) and loader.batch_size == 1
        means = self.scores.means(limit=len(loader.dataset) if single else None)
        for name, value in means.items():
            self.log(name, value, prog_bar=name in ("val/loss", "val/dice"), batch_size=1, sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.network.parameters())
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: self._rate())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self) -> float:
        """Return the factor of the learning rate: a linear warm-up, then the schedule.

        A training that only a callback ends has no shares: it stays at the beginning of the schedule.
        """
        progress = self.progress()
        if progress < self.warmup and self._has_budget():
            return max(progress / self.warmup, 1e-3)
        return self.schedule(min(1.0, max(0.0, progress - self.warmup) / (1 - self.warmup)))

    def _has_budget(self) -> bool:
        """Return whether steps, epochs or ``max_time`` end the training."""
        if self._trainer is None:
            return False
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        timed = any(isinstance(one, Timer) and one.time_remaining() is not None for one in callbacks)
        return timed or 0 < self.trainer.estimated_stepping_batches < math.inf

    def progress(self) -> float:
        """Return the share of the training that is done, from 0 to 1.

        It is measured in steps and, with ``max_time``, in time; the larger share counts, because that budget ends the
        training.
        """
        if self._trainer is None:
            return 0.0
        total = self.trainer.estimated_stepping_batches
        done = self.trainer.global_step / total if 0 < total < math.inf else 0.0
        return max(done, self._time_share)

    def _share_of_time(self) -> float:
        """Return the share of ``max_time`` that is over by the clock of the first process, 0 without ``max_time``."""
        share = 0.0
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Timer) and callback.time_remaining() is not None:
                elapsed, left = callback.time_elapsed(), callback.time_remaining() or 0.0
                share = max(share, elapsed / max(elapsed + left, 1e-9))
                share = self.trainer.strategy.broadcast(share)
        return share

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = self.recipe
        # Averaged weights are saved with the state of now, such as the number of levels that take part.
        now = checkpoint.get("current_model_state", {})
        checkpoint["state_dict"] |= {key: value for key, value in now.items() if key.endswith("_extra_state")}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that averaged weights go on being averaged.

        Raises:
            InputError: The checkpoint holds weights and their average, and this training does not average.
        """
        averages = self._trainer and any(isinstance(c, WeightAveraging) for c in self.trainer.callbacks)  # type: ignore[attr-defined]
        if "current_model_state" in checkpoint and not averages:
            raise InputError(
                "This checkpoint holds averaged weights; resume it with +callbacks/average=ema, or begin a new "
                "training with the average: start=..."
            )


def rolled(images: Image, by: int) -> Image:
    """Replace each image of the batch by the image ``by`` places later, without masks, labels and landmarks.

    The batch is that of all processes together, in the order that one process would have.

    Args:
        images: Images of this process, as many as in each other process.
        by: Number of places.
    """
    affine = images.grid.affine.expand(images.batch_size, -1, -1)
    return Image(_rolled(images.data, by), Grid(images.grid.shape, _rolled(affine, by)))


def _rolled(values: Tensor, by: int) -> Tensor:
    if not (distributed.is_available() and distributed.is_initialized()):
        return values.roll(-by, 0)
    world, rank = distributed.get_world_size(), distributed.get_rank()
    parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(world)]
    distributed.all_gather(parts, values.detach().contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1).roll(-by, 0)[rank::world]  # sample k of process r is k * world + r
