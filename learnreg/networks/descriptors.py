"""Descriptors of a released model, for a similarity."""

from __future__ import annotations

from torch import Tensor, nn

from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.networks.checkpoint import load_checkpoint, of_dimension
from learnreg.networks.matching import MatchingNetwork
from learnreg.sampling import resize
from learnreg.typing import ImageTensor

SMALL = 32  # samples along the longest side of an image


class DescriptorMaps(nn.Module):
    """Feature maps of a trained :class:`MatchingNetwork`, for :class:`learnreg.similarity.FeatureSimilarity`.

    Args:
        checkpoint: See :func:`load_checkpoint`; ``"universal"`` does not depend on the contrast of the images.
        ndim: 2 or 3.

    Raises:
        InputError: The checkpoint holds another network, or one for images of another dimension.

    Example:
        >>> extractor = DescriptorMaps("universal", ndim=3)
        >>> [tuple(maps.shape) for maps in extractor(torch.rand(1, 1, 32, 32, 32))]
        [(1, 32, 8, 8, 8)]
    """

    def __init__(self, checkpoint: str = "universal", *, ndim: int = 3) -> None:
        super().__init__()
        network = load_checkpoint(of_dimension(checkpoint, ndim)).network
        if not isinstance(network, MatchingNetwork) or network.ndim != ndim:
            raise InputError(
                f"{checkpoint} holds a {network.ndim}-D {type(network).__name__}; descriptors are those of a {ndim}-D "
                "MatchingNetwork."
            )
        self.network = network

    def forward(self, values: ImageTensor) -> tuple[Tensor, ...]:
        """Return descriptors ``(B, K, *grid / 4)`` of images ``(B, 1, *grid)`` in [0, 1].

        Small images are doubled first: a quarter of their samples is too few for a similarity to fall on a short step.
        """
        if max(values.shape[2:]) < SMALL:
            values = resize(values, tuple(2 * n for n in values.shape[2:]))
        grid = Grid.regular(tuple(values.shape[2:]))
        return (self.network.described(Image(values, grid)).data,)
