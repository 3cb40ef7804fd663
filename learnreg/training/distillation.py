"""Distillation: a network learns to reproduce the transforms of a classical method."""

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
from learnreg.optimization.stage import Stage, StageDict, run_stages
from learnreg.similarity.masking import masked_mean
from learnreg.supervision import Supervision
from learnreg.transforms import Transform
from learnreg.typing import FieldTensor, MaskTensor, PathLike, Scalar
from learnreg.writing import write_atomically


class Distillation(Supervision):
    """Supervision by a classical method: mean squared distance between its transform and the network's, mm^2.

    The method runs during the training. Its results are cached, so a pair that repeats without augmentation is
    registered once.

    Args:
        stages: Stages of the method by name, as in ``conf/method``; ``None`` leaves a stage of a preset out.
        from_answer: If ``True``, the stages start from the network's transform and refine it; the results change with
            the network and are not cached. If ``False``, they start from the identity.
        keep: Maximum number of displacements that are cached in memory, in half precision.
        folder: Folder that caches the results of all pairs, one file per pair, for later trainings and other processes;
            ``None`` caches in memory only.

    Raises:
        InputError: There are no stages.

    Source:
        Hinton et al., Distilling the knowledge in a neural network, 2015. Differs in: the teacher is a solver.

    Example:
        >>> from learnreg.optimization import CenterOfMass
        >>> grid = learnreg.Grid.regular((16, 16))
        >>> disk = (grid.points.norm(dim=-1, keepdim=True) < 5).float().movedim(-1, 1)
        >>> fixed, moving = learnreg.Image(disk, grid), learnreg.Image(disk.roll(2, -1), grid)
        >>> term = Distillation({"center": CenterOfMass()})  # finds a translation by 2 mm
        >>> round(float(term(fixed, moving, learnreg.Affine.identity(2))), 2)
        4.0
    """

    def __init__(
        self,
        stages: Mapping[str, Stage | None],
        *,
        from_answer: bool = False,
        keep: int = 1000,
        folder: PathLike | None = None,
    ) -> None:
        super().__init__()
        given = {name: stage for name, stage in stages.items() if stage is not None}
        if not given:
            raise InputError("Distillation needs the stages of a method, as in conf/method, got none.")
        self.stages = StageDict(given)
        self.from_answer, self.keep = from_answer, int(keep)
        self.folder = None if folder is None else Path(folder).expanduser()
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._method = b"" if folder is None else pickle.dumps(given)  # tells methods that share a folder apart

    def forward(self, fixed: Image, moving: Image, transform: Transform, mask: MaskTensor | None = None) -> Scalar:
        if self.from_answer and len(fixed.data) > 1:
            raise InputError(
                f"Distillation with from_answer=True takes one pair at a time, got a batch of {len(fixed.data)}; set "
                "data.batch_size=1."
            )
        answer = transform.detach() if self.from_answer else None
        pairs = zip(_singles(fixed), _singles(moving), strict=True)
        wanted = torch.cat([self.target(*pair, answer) for pair in pairs])
        distance = (transform.displacement(fixed.grid) - wanted).square().sum(1, keepdim=True)
        return masked_mean(distance, mask)

    def target(self, fixed: Image, moving: Image, answer: Transform | None) -> FieldTensor:
        """Return the displacement of the method, from the cache if it is there.

        Args:
            fixed: A batch of one image.
            moving: A batch of one image.
            answer: Transform to start from; ``None`` is the identity, and only then the cache is used.

        Returns:
            ``(1, D, *grid)``, mm.
        """
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
        """Run the method and return its displacement, ``(1, D, *grid)``, mm."""
        with torch.enable_grad(), torch.autocast(fixed.data.device.type, enabled=False):
            found = run_stages(list(self.stages.values()), fixed, moving, initial=answer).transform
        with torch.no_grad():
            return found.detach().displacement(fixed.grid)

    def fingerprint(self, fixed: Image, moving: Image) -> str:
        """Compute the key of a pair in the cache: a hash of intensities, masks and grids.

        With a folder, the hash also depends on the stages, since several methods can share a folder.
        """
        known = hashlib.blake2b(self._method, digest_size=16)
        for image in (fixed, moving):
            for values in (image.data, image.grid.affine, image.mask):
                known.update(b"" if values is None else values.detach().cpu().contiguous().numpy().tobytes())
        return known.hexdigest()


def _singles(images: Image) -> list[Image]:
    """Split a batch into batches of one image, with their masks."""
    masks = [None] * images.batch_size if images.mask is None else images.mask.split(1)
    return [Image(data, images.grid, mask) for data, mask in zip(images.data.detach().split(1), masks, strict=True)]
