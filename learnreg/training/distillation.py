"""Supervision by the classical engine: a network learns to answer as a solver does."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from learnreg.image import Image
from learnreg.optimization.stages import Stage, run_stages
from learnreg.transforms import Transform
from learnreg.typing import FieldTensor, MaskTensor, Scalar


class Distillation(nn.Module):
    """Mean squared distance, in mm^2, of the network's map to that of a classical method on the same pair.

    The method runs while the network trains; what it found for a pair is kept, so that pairs that come again
    unchanged (no augmentation) cost nothing.

    Args:
        stages: Of the method, as in ``conf/method``.
        weight: Factor in the objective, per mm^2.
        from_answer: The stages start from the network's answer, and correct it; else from the identity. What is
            corrected changes with the network and is not kept.
        keep: Displacements of so many pairs are kept, at half precision.

    Source:
        Hinton et al., Distilling the knowledge in a neural network, 2015. Differs in: the teacher is a solver.
    """

    def __init__(
        self, stages: Sequence[Stage], weight: float = 0.1, *, from_answer: bool = False, keep: int = 1000
    ) -> None:
        super().__init__()
        if not stages:
            raise ValueError("Distillation needs the stages of a method, as in conf/method.")
        self.stages = nn.ModuleList(stages)
        self.weight, self.from_answer, self.keep = float(weight), from_answer, int(keep)
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()

    def forward(self, fixed: Image, moving: Image, transform: Transform, mask: MaskTensor | None = None) -> Scalar:
        if self.from_answer and len(fixed.data) > 1:
            raise ValueError("Distillation from the answer takes one pair at a time; set data.batch_size=1.")
        answer = transform.detach() if self.from_answer else None
        wanted = torch.cat(
            [self.target(Image(f, fixed.grid), Image(m, moving.grid), answer) for f, m in _singles(fixed, moving)]
        )
        distance = (transform.displacement(fixed.grid) - wanted).square().sum(1, keepdim=True)
        if mask is None:
            return distance.mean()
        return (distance * mask).sum() / mask.sum().clamp(min=1)

    def target(self, fixed: Image, moving: Image, answer: Transform | None) -> FieldTensor:
        """``(1, D, *grid)`` mm, what the method finds."""
        key = b"" if answer is not None else _fingerprint(fixed.data) + _fingerprint(moving.data)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key].to(fixed.data)
        with torch.enable_grad(), torch.autocast(fixed.data.device.type, enabled=False):
            found = run_stages(self.stages, fixed, moving, initial=answer).transform  # type: ignore[arg-type]
        with torch.no_grad():
            wanted = found.detach().displacement(fixed.grid)
        if key:
            self._kept[key] = wanted.half().cpu()
            while len(self._kept) > self.keep:
                self._kept.popitem(last=False)
        return wanted


def _singles(fixed: Image, moving: Image) -> list[tuple[Tensor, Tensor]]:
    return list(zip(fixed.data.detach().split(1), moving.data.detach().split(1), strict=True))


def _fingerprint(values: Tensor) -> bytes:
    return hashlib.blake2b(values.cpu().contiguous().numpy().tobytes(), digest_size=16).digest()
