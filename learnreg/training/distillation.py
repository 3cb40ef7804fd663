"""Supervision by the classical engine: a network learns to answer as a solver does."""

from __future__ import annotations

import hashlib
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from learnreg.errors import InputError
from learnreg.image import Image
from learnreg.io import write_atomically
from learnreg.optimization.stage import Stage, StageDict, run_stages
from learnreg.supervision import Supervision
from learnreg.transforms import Transform
from learnreg.typing import FieldTensor, MaskTensor, PathLike, Scalar


class Distillation(Supervision):
    """Mean squared distance, in mm^2, of the network's map to that of a classical method on the same pair.

    The method runs while the network trains; what it found for a pair is kept, so that pairs that come again
    unchanged (no augmentation) cost nothing.

    Args:
        stages: Of the method, as in ``conf/method``.
        from_answer: The stages start from the network's answer, and correct it; else from the identity. What is
            corrected changes with the network and is not kept.
        keep: Displacements of so many pairs are kept in memory, at half precision.
        folder: Where those of all pairs are kept, for later trainings and other processes; a file a pair. ``None``
            keeps none.

    Source:
        Hinton et al., Distilling the knowledge in a neural network, 2015. Differs in: the teacher is a solver.
    """

    def __init__(
        self,
        stages: Mapping[str, Stage],
        *,
        from_answer: bool = False,
        keep: int = 1000,
        folder: PathLike | None = None,
    ) -> None:
        super().__init__()
        if not stages:
            raise InputError("Distillation needs the stages of a method, as in conf/method.")
        self.stages = StageDict(stages)
        self.from_answer, self.keep = from_answer, int(keep)
        self.folder = None if folder is None else Path(folder).expanduser()
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._method = b"" if folder is None else pickle.dumps(dict(stages))  # a folder can hold several methods'

    def forward(self, fixed: Image, moving: Image, transform: Transform, mask: MaskTensor | None = None) -> Scalar:
        if self.from_answer and len(fixed.data) > 1:
            raise InputError("Distillation from the answer takes one pair at a time; set data.batch_size=1.")
        answer = transform.detach() if self.from_answer else None
        pairs = zip(_singles(fixed), _singles(moving), strict=True)
        wanted = torch.cat([self.target(*pair, answer) for pair in pairs])
        distance = (transform.displacement(fixed.grid) - wanted).square().sum(1, keepdim=True)
        if mask is None:
            return distance.mean()
        return (distance * mask).sum() / mask.sum().clamp(min=1)

    def target(self, fixed: Image, moving: Image, answer: Transform | None) -> FieldTensor:
        """``(1, D, *grid)`` mm, what the method finds."""
        if answer is not None:
            return self.solved(fixed, moving, answer)
        key = self.fingerprint(fixed, moving)
        file = None if self.folder is None else self.folder / f"{key}.safetensors"
        if key in self._kept:
            self._kept.move_to_end(key)
        elif file is not None and file.exists():
            self._kept[key] = load_file(file)["displacement"]
        else:
            found = self._kept[key] = self.solved(fixed, moving, None).half().cpu().contiguous()
            if file is not None:
                write_atomically(file, lambda part: save_file({"displacement": found}, part))
        wanted = self._kept[key].to(fixed.data)
        while len(self._kept) > self.keep:
            self._kept.popitem(last=False)
        return wanted

    def solved(self, fixed: Image, moving: Image, answer: Transform | None) -> FieldTensor:
        """``(1, D, *grid)`` mm, what the method finds now."""
        with torch.enable_grad(), torch.autocast(fixed.data.device.type, enabled=False):
            found = run_stages(list(self.stages.values()), fixed, moving, initial=answer).transform
        with torch.no_grad():
            return found.detach().displacement(fixed.grid)

    def fingerprint(self, fixed: Image, moving: Image) -> str:
        """The same for the same intensities, masks and grids, and in a folder the same stages."""
        known = hashlib.blake2b(self._method, digest_size=16)
        for image in (fixed, moving):
            for values in (image.data, image.grid.affine, image.mask):
                known.update(b"" if values is None else values.detach().cpu().contiguous().numpy().tobytes())
        return known.hexdigest()


def _singles(images: Image) -> list[Image]:
    """Each image of a batch with its mask, as a method takes them."""
    masks = [None] * images.batch_size if images.mask is None else images.mask.split(1)
    return [Image(data, images.grid, mask) for data, mask in zip(images.data.detach().split(1), masks, strict=True)]
