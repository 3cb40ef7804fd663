"""Any pair of images is registered to finite files on the right grid, or refused in one sentence.

``LEARNREG_EXAMPLES=500`` tries more pairs than the few of the default suite, and other ones each time.
"""

import json
import os
import re
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

import learnreg
from learnreg.apps.main import main
from learnreg.errors import InputError
from learnreg.io import write_image

EXAMPLES = int(os.environ.get("LEARNREG_EXAMPLES", "12"))
DTYPES = {"uint8": 255, "int16": 2000, "uint16": 60000, "float32": 1.0, "float64": 1e4}  # brightest value of each
METHODS = {  # few iterations
    "rigid": "stages: {rigid: {iterations: [3, 2, 2, 2]}}",
    "affine": "stages: {rotation: null, affine: {iterations: [3, 2, 2, 2]}}",
    "fast": "stages: {affine: {iterations: [3]}, deformation: {iterations: [3, 2, 2]}}",
    "bspline": "stages: {affine: {iterations: [2]}, deformation: {iterations: [3, 2, 2, 2]}}",
    "deformable": "same: {stages: {affine: {iterations: [2]}, deformation: {iterations: [3, 2, 2, 2]}}}\n"
    "other: {stages: {rigid: {iterations: [2]}, affine: {iterations: [2, 2]}, deformation: {iterations: [2, 2]}}}",
}
REFUSALS = "is constant|single slice|samples is a line"  # the only reasons for which one of these pairs may be refused


@dataclass(frozen=True)
class Sketch:
    """What an image is made from."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    direction: tuple[float, ...]
    origin: tuple[float, ...]
    dtype: str
    content: str
    seed: int

    def image(self) -> sitk.Image:
        """Make the image."""
        values = pattern(self.content, self.shape, np.random.default_rng(self.seed))
        low = -1000 if self.dtype == "int16" else 0
        image = sitk.GetImageFromArray((values * (DTYPES[self.dtype] - low) + low).astype(self.dtype))
        image.SetSpacing(self.spacing)
        image.SetDirection(self.direction)
        image.SetOrigin(self.origin)
        return image


def pattern(content: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Values in [0, 1]."""
    places = np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n for n in shape), indexing="ij"))
    if content == "ramp":
        values = np.tensordot(random.normal(size=len(shape)), places, 1)
        return (values - values.min()) / (np.ptp(values) or 1.0)
    if content == "border":  # constant, with content that the field of view cuts
        values = np.zeros(shape)
        values[tuple(slice(0, max(1, n // 3)) for n in shape)] = 0.5 + 0.5 * random.random()
        return values
    centers = random.uniform(0.3, 0.7, (3, *[len(shape)], *[1] * len(shape)))
    widths = random.uniform(0.08, 0.25, 3)
    blobs = sum(np.exp(-((places - c) ** 2).sum(0) / (2 * w * w)) for c, w in zip(centers, widths, strict=True))
    return np.clip(blobs / max(blobs.max(), 1e-6), 0, 1)


def sketch(random: Random, ndim: int) -> Sketch:
    """Draw sizes of which small ones are common, any spacing, and axes in any order and sense, often oblique."""
    matrix = np.eye(ndim)[random.sample(range(ndim), ndim)] * [random.choice((-1, 1)) for _ in range(ndim)]
    if random.random() < 0.5:
        turn = np.linalg.qr(np.eye(ndim) + [[random.gauss(0, 0.4) for _ in range(ndim)] for _ in range(ndim)])[0]
        matrix = turn @ matrix
    return Sketch(
        tuple(random.randint(*random.choice(((1, 6), (4, 16), (4, 16), (8, 64)))) for _ in range(ndim)),
        tuple(10 ** random.uniform(-1, 1) for _ in range(ndim)),
        tuple(matrix.ravel().tolist()),
        tuple(random.uniform(-200, 200) for _ in range(ndim)),
        random.choice(sorted(DTYPES)),
        random.choice(("blobs", "ramp", "border")),
        random.getrandbits(16),
    )


def files_of(folder: Path, fixed: sitk.Image, moving: sitk.Image, method: str, by_command: bool) -> None:
    """Register the pair from its files, by the command or in Python."""
    options = {"checkpoint": method} if method == "hippocampus" else {"method": str(folder / "method.yaml")}
    if by_command:
        names = [str(folder / f"{name}.mha") for name in ("fixed", "moving")]
        for image, name in zip((fixed, moving), names, strict=True):
            sitk.WriteImage(image, name)
        ((option, value),) = options.items()
        main(["register", *names, "-o", str(folder), f"--{option}", value, "--quiet", "--debug"])
        metrics = json.loads((folder / "metrics.json").read_text())
        assert not [line for line in metrics.get("warnings", ()) if "could be measured" in line], metrics["warnings"]
        assert metrics["verdict"] in ("PASS", "WARN", "FAIL")
        return
    result = learnreg.register(fixed, moving, progress=False, **options)
    result.save_transform(folder / "transform.h5")
    write_image(result.warped.data[0], result.fixed.grid, folder / "warped.nii.gz")


def check_files(folder: Path, fixed: sitk.Image, moving: sitk.Image) -> None:
    """Compare the files to what SimpleITK makes of the transform."""
    warped, transform = sitk.ReadImage(str(folder / "warped.nii.gz")), sitk.ReadTransform(str(folder / "transform.h5"))
    assert warped.GetSize() == fixed.GetSize()
    reach = np.linalg.norm(np.multiply(fixed.GetSize(), fixed.GetSpacing())) + np.linalg.norm(fixed.GetOrigin())
    for corner in np.ndindex(*[2] * fixed.GetDimension()):
        index = [c * (n - 1) for c, n in zip(corner, fixed.GetSize(), strict=True)]
        places = [np.array(one.TransformIndexToPhysicalPoint(index)) for one in (fixed, warped)]
        assert np.abs(places[0] - places[1]).max() < 1e-5 * reach  # NIfTI headers are float32
    ours = sitk.GetArrayFromImage(warped).astype(float)
    assert np.isfinite(ours).all()
    field = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(), fixed.GetDirection()
    )
    moves = sitk.GetArrayFromImage(field)
    assert np.isfinite(moves).all()

    own = sitk.Cast(moving, sitk.sitkFloat64)
    lowest = min(0.0, float(sitk.GetArrayViewFromImage(own).min()))
    theirs = sitk.GetArrayFromImage(sitk.Resample(own, fixed, transform, sitk.sitkLinear, lowest))
    points = sitk.PhysicalPointSource(
        sitk.sitkVectorFloat64, fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(), fixed.GetDirection()
    )
    places = moves + sitk.GetArrayFromImage(points)
    # Coordinates are float32: right to about 1e-6 of the distance from the origin, here in voxels of the moving image.
    voxels = 1e-6 * (np.abs(places).max() + np.linalg.norm(moving.GetOrigin()) + reach) / min(moving.GetSpacing())
    linear = np.reshape(moving.GetDirection(), [moving.GetDimension()] * 2) * moving.GetSpacing()
    index = (places - moving.GetOrigin()) @ np.linalg.inv(linear).T
    beyond = np.maximum(-0.5 - index, index - np.array(moving.GetSize()) + 0.5)  # negative inside
    sure = np.abs(beyond).min(-1) > 4 * voxels + 1e-3  # not at the border, where a rounding decides
    bound = (1e-4 + 4 * voxels) * np.ptp(sitk.GetArrayViewFromImage(own)) + 1e-6 * np.abs(theirs).max()
    assert np.abs(ours - theirs)[sure].max(initial=0.0) <= bound


@settings(
    max_examples=EXAMPLES,
    derandomize="LEARNREG_EXAMPLES" not in os.environ,
    deadline=None,
    phases=(Phase.generate,),  # what fails is told as it was drawn: to shrink it takes minutes
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
@given(st.randoms(use_true_random=True))
def test_any_pair(random):
    ndim = random.choice((2, 3))
    methods = (*METHODS, "hippocampus") if ndim == 3 else tuple(METHODS)
    check_pair(
        sketch(random, ndim), sketch(random, ndim), method=random.choice(methods), by_command=random.random() < 0.5
    )


def check_pair(*pair: Sketch, method: str, by_command: bool) -> None:
    """Register a pair, and check what comes of it."""
    fixed, moving = (one.image() for one in pair)
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings(record=True):
        folder = Path(name)
        if method in METHODS:
            (folder / "method.yaml").write_text(f"defaults: [/method/{method}@_here_, _self_]\n{METHODS[method]}\n")
        warnings.simplefilter("always")  # such as that an image looks like a segmentation
        try:
            files_of(folder, fixed, moving, method, by_command)
        except InputError as error:
            assert re.search(REFUSALS, str(error)), error
            assert not (folder / "warped.nii.gz").exists()
            return
        check_files(folder, fixed, moving)


TURNED = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
LARGE = Sketch((55, 8, 60), (5.27, 0.52, 3.67), TURNED, (179.0, 163.0, 172.0), "uint8", "blobs", 64648)
PERMUTED = (0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0)
FOUND = {  # by the test above
    "smaller than what was checked": (
        LARGE,
        Sketch((6, 2, 14), (2.09, 0.67, 0.56), PERMUTED, (0.0, 0.0, 0.0), "uint8", "blobs", 5),
        "deformable",
    ),
    "lost by the start": (
        Sketch(
            (10, 45),
            (9.516619445905638, 0.47309001143545426),
            (0.99791439772082, 0.0645511798613566, -0.0645511798613566, 0.9979143977208199),
            (-159.8921459873575, -137.56198169155414),
            "int16",
            "blobs",
            35201,
        ),
        Sketch(
            (1, 10),
            (0.24488574387783357, 1.6585473141973615),
            (-1.0, 0.0, 0.0, -1.0),
            (154.67430078986638, 173.519749756438),
            "float64",
            "ramp",
            24077,
        ),
        "deformable",
    ),
    "constant beside its padding": (
        Sketch((7, 7, 8), (7.07, 0.22, 5.91), TURNED, (-102.0, 192.0, -10.0), "uint8", "ramp", 766),
        Sketch((7, 41, 49), (0.25, 5.48, 8.07), PERMUTED, (-82.0, -72.0, 60.0), "int16", "border", 40944),
        "hippocampus",
    ),
}


@pytest.mark.parametrize("found", FOUND)
def test_what_was_found(found):
    fixed, moving, method = FOUND[found]
    check_pair(fixed, moving, method=method, by_command=method == "hippocampus")
