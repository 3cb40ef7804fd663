"""Commands that register one pair, and that work with its transform."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from learnreg.apps.commands.options import (
    Count,
    Device,
    File,
    Files,
    Flag,
    From,
    Name,
    Number,
    Output,
    Quiet,
    Reference,
    SomeFiles,
    Threads,
    To,
    Trusted,
)
from learnreg.errors import InputError


def register(
    fixed: File,
    moving: File,
    /,
    *,
    output: Output,
    method: Name | None = None,
    checkpoint: File | None = None,
    refine: Count = 0,
    weight: Number | None = None,
    initial: File | None = None,
    fixed_labels: File | None = None,
    moving_labels: File | None = None,
    fixed_mask: File | None = None,
    moving_mask: File | None = None,
    landmarks: SomeFiles | None = None,
    inverse: Flag = False,
    report: Flag = False,
    strict: Flag = False,
    fill: Number | None = None,
    overwrite: Flag = False,
    trust: Trusted = (),
    device: Device = "cpu",
    threads: Threads | None = None,
    quiet: Quiet = False,
) -> None:
    """Align one image to another.

    Writes warped.nii.gz, transform.h5 (for ITK, ANTs, 3D Slicer), figure.png and metrics.json.

    For example:
      learnreg register FIXED.nii.gz MOVING.nii.gz -o OUT
      learnreg register FIXED.nii.gz MOVING.nii.gz -o OUT --method affine
      learnreg register FIXED.nii.gz MOVING.nii.gz -o OUT --checkpoint best.ckpt --refine 30
      learnreg register EXPIRATION.mha INSPIRATION.mha -o OUT --method lung --landmarks PAIRS.csv
      learnreg register CT_FOLDER MR.nii.gz -o OUT --fixed-mask MASK.nii.gz --inverse

    Args:
        fixed: The reference: an image file or a DICOM folder.
        moving: The image to align.
        output: Folder for the results.
        method: A preset (see `learnreg methods`) or a YAML file (default: deformable).
        checkpoint: A trained network, or the name of a model (see `learnreg methods`).
        refine: Classical steps from the network's answer.
        weight: How much a network of network=conditioned is to regularize.
        initial: Where to begin: the centers of mass (com), also the principal axes (moments), identity, the answer of a
            model (universal, or another name), or the file of a transform, fixed to moving (./com is a file).
        fixed_labels: Segmentation of the fixed image, to measure overlap.
        moving_labels: Segmentation of the moving image, to measure overlap.
        fixed_mask: Where the fixed image counts.
        moving_mask: Where the moving image counts.
        landmarks: One CSV with the points of both images, or two files, fixed and moving: their distance is measured,
            and a method with a landmark term (lung) is guided by them.
        inverse: Also write inverse.h5, from moving to fixed.
        report: Also write report.html, a page to judge the result by.
        strict: Exit with status 1 if the verdict on the result is FAIL.
        fill: Value beyond the moving image (default: 0, or its lowest value if that is negative, as of air in a CT).
        overwrite: Replace results that are already in OUT.
        trust: A package whose classes the file of a method or network can name, such as mylab; may be repeated.
        device: cpu, cuda, cuda:1, mps, or auto for the fastest.
        threads: CPU threads (default: all cores).
        quiet: No progress bar and no summary.
    """
    from learnreg.apps.register import run

    run(
        fixed,
        moving,
        output=Path(output),
        method=method,
        checkpoint=checkpoint,
        refine=refine,
        weight=weight,
        initial=initial,
        labels=(fixed_labels, moving_labels),
        masks=(fixed_mask, moving_mask),
        landmarks=landmarks,
        inverse=inverse,
        report=report,
        strict=strict,
        fill=fill,
        overwrite=overwrite,
        trust=trust,
        device=device,
        threads=threads,
        quiet=quiet,
    )


def report(
    outs: Annotated[Sequence[str | Path], Parameter(metavar="OUT")],
    /,
    *,
    index: File | None = None,
    overwrite: Flag = False,
) -> None:
    """Write a page to look at for each result, and an index over several, worst first.

    A page is one file without network access: slices, blink, checkerboard, opacity, deformed grid, Jacobian, metrics.

    For example:
      learnreg report OUT
      learnreg report OUT_A OUT_B --index compared.html
      learnreg report BATCH --overwrite

    Args:
        outs: Folders that `learnreg register` has written, or that of a `learnreg batch`.
        index: The page over several results (default: index.html in the batch's folder, or in the working folder).
        overwrite: Replace reports that exist.
    """
    from learnreg.apps.report import report as work

    for page in work(outs, index=index, overwrite=overwrite):
        print(f"Wrote {page}")


def apply(
    inputs: Files,
    /,
    *,
    output: Output,
    moving: SomeFiles | None = None,
    reference: Reference | None = None,
    points: File | None = None,
    inverse: Flag = False,
    labels: Flag = False,
    interpolation: Literal["linear", "nearest"] | None = None,
    fill: Number | None = None,
    from_format: From | None = None,
    overwrite: Flag = False,
) -> None:
    """Resample images, or map points, through saved transforms.

    A transform maps points of the fixed image to points of the moving image, and so an image the other way. Several
    transforms interpolate once.

      points   fixed  ---- T ---->  moving         image   moving  ---- T ---->  grid of fixed

    For example:
      learnreg apply OUT/transform.h5 moving.nii.gz -r fixed.nii.gz -o warped.nii.gz
      learnreg apply OUT/transform.h5 moving_seg.nii.gz -r fixed.nii.gz -o seg.nii.gz --labels
      learnreg apply OUT/transform.h5 moving_seg.nii.gz -r fixed.nii.gz -o smooth.nii.gz --labels --interpolation linear
      learnreg apply to_template.h5 to_visit.h5 scan.nii.gz -r template.nii.gz -o out.nii.gz
      learnreg apply OUT/transform.h5 --moving t1.nii.gz t2.nii.gz -r fixed.nii.gz -o FOLDER
      learnreg apply OUT/transform.h5 --points fixed.csv -o moving.csv
      learnreg apply OUT/transform.h5 --inverse --points moving.csv -o fixed.csv

    Args:
        inputs: One or more transforms of ITK, ANTs, FSL, FreeSurfer, Convert3D, BIDS or Learn2Reg, the first applied to
            points first; then, without --moving and --points, the image.
        output: The resampled image, a folder for several, or a CSV of points.
        moving: The images to resample; all arguments before are transforms then.
        reference: The image whose grid the result has; it is the fixed image.
        points: Points to map: CSV, elastix' .txt, Slicer's .fcsv, .mrk.json.
        inverse: Map from moving to fixed.
        labels: The images are segmentations: the result has their integers.
        interpolation: How to interpolate (default: linear; nearest with --labels). With --labels, linear interpolates
            each label by itself and takes the largest: smooth borders.
        fill: Value beyond the moving image (default: 0, or its lowest value if that is negative, as of air in a CT).
        from_format: The format of the transforms, where tools share a suffix (default: found out).
        overwrite: Replace OUT.
    """
    from learnreg.apps.apply import Resampling, map_points, resample, split_inputs

    if points is not None:
        if labels or fill is not None or interpolation:
            raise InputError("--labels, --fill and --interpolation are for images; leave them out with --points.")
        if moving is not None and len(moving) != 1:
            raise InputError("With --points, --moving is the one other image, which FSL's transforms need.")
        map_points(
            inputs,
            points,
            output=output,
            reference=reference,
            moving=moving[0] if moving else None,
            inverse=inverse,
            format=from_format,
            overwrite=overwrite,
        )
    else:
        transforms, images = split_inputs(inputs, moving)
        how = Resampling(inverse, labels, interpolation, fill, from_format)
        resample(transforms, images, how, reference=reference, output=output, overwrite=overwrite)
    print(f"Wrote {output}")


def compose(
    transforms: Files, /, *, output: Output, reference: Reference | None = None, overwrite: Flag = False
) -> None:
    """Write several transforms as one.

    For example:
      learnreg compose to_template.h5 to_visit.h5 -o both.h5
      learnreg compose warp.nii.gz affine.mat -r FIXED.nii.gz -o field.nii.gz

    Args:
        transforms: Fixed to moving, the first applied to points first.
        output: The file to write: .h5, .tfm, .txt, .mat (linear), .nii.gz (a field in mm).
        reference: Where a field is sampled: the fixed image (default: the grid of the first field).
        overwrite: Replace OUT.
    """
    from learnreg.apps.output import recorded_warnings
    from learnreg.apps.transforms import convert as work

    with recorded_warnings():
        line = work(transforms, output, reference=reference, overwrite=overwrite)
    print(line)


def invert(
    transforms: Files, /, *, output: Output, reference: Reference | None = None, overwrite: Flag = False
) -> None:
    """Write the inverse of transforms, from moving to fixed, and print its error.

    For example:
      learnreg invert OUT/transform.h5 -r MOVING.nii.gz -o inverse.h5
      learnreg invert affine.mat -o back.mat

    Args:
        transforms: Fixed to moving, the first applied to points first.
        output: The file to write: .h5, .tfm, .txt, .mat (linear), .nii.gz (a field in mm).
        reference: Where a field is sampled: the moving image.
        overwrite: Replace OUT.
    """
    from learnreg.apps.output import recorded_warnings
    from learnreg.apps.transforms import invert as work

    with recorded_warnings():
        line = work(transforms, output, reference=reference, overwrite=overwrite)
    print(line)


def convert(
    transform: File,
    /,
    *,
    output: Output,
    reference: Reference | None = None,
    moving: File | None = None,
    from_format: From | None = None,
    to_format: To | None = None,
    overwrite: Flag = False,
) -> None:
    """Write a transform in the format of another tool.

    The suffix is the format: .h5, .tfm, .txt, .mat and .nii.gz of ITK and ANTs, .lta of FreeSurfer, .x5 of BIDS, .npz
    of Learn2Reg. Name the format where tools share a suffix. FSL and Learn2Reg need both images.

    For example:
      learnreg convert OUT/transform.h5 -o field.nii.gz
      learnreg convert affine.tfm -r FIXED.nii.gz -o field.nii.gz
      learnreg convert flirt.mat --from fsl -r FIXED.nii.gz --moving MOVING.nii.gz -o affine.lta

    Args:
        transform: Fixed to moving.
        output: The file to write; its suffix is the format.
        reference: The fixed image (default: the grid of the first field).
        moving: The moving image, for FSL and Learn2Reg.
        from_format: The format of TRANSFORM (default: found out).
        to_format: The format of OUT (default: that of its suffix).
        overwrite: Replace OUT.
    """
    from learnreg.apps.output import recorded_warnings
    from learnreg.apps.transforms import convert as work

    with recorded_warnings():
        line = work(
            [transform],
            output,
            reference=reference,
            moving=moving,
            from_format=from_format,
            to_format=to_format,
            overwrite=overwrite,
        )
    print(line)


def jacobian(
    transforms: Files,
    /,
    *,
    output: Output,
    reference: Reference,
    log: Flag = False,
    inverse: Flag = False,
    overwrite: Flag = False,
) -> None:
    """Write the change of volume at each voxel: the determinant of the Jacobian matrix.

    Above 1 the moving image is larger, below 1 it is smaller, and below 0 the transform folds.

    For example:
      learnreg jacobian OUT/transform.h5 -r FIXED.nii.gz -o growth.nii.gz --log

    Args:
        transforms: Fixed to moving, the first applied to points first.
        output: The image to write.
        reference: The fixed image.
        log: The logarithm of the determinant: 0 is no change.
        inverse: Of the map from moving to fixed.
        overwrite: Replace OUT.
    """
    from learnreg.apps.output import recorded_warnings
    from learnreg.apps.transforms import jacobian as work

    with recorded_warnings():
        line = work(transforms, output=output, reference=reference, log=log, inverse=inverse, overwrite=overwrite)
    print(line)
