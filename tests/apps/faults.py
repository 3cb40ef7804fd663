"""Files with one fault each, of every kind that a command reads."""

import gzip
import pickle
import struct
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
import torch
from safetensors.torch import save_file

from learnreg.networks.checkpoint import KEY
from tests.networks.test_checkpoint import save

SHAPE = (12, 13, 14)  # z y x
SPACING = (1.5, 1.2, 1.0)
METHOD = """
_target_: learnreg.methods.IterativeMethod
stages:
  affine:
    _target_: learnreg.optimization.LinearStage
    factors: [2]
    iterations: [2]
    objective: {_target_: learnreg.objective.Objective, similarity: {_target_: learnreg.similarity.MSE}}
"""


class Hostile:
    """A pickle that runs a command."""

    def __reduce__(self):
        import os

        return os.system, ("touch hacked",)


def blob(shape=SHAPE, shift=0.0, seed=0):
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    distance = sum((a - shift) ** 2 for a in axes)
    noise = np.random.default_rng(seed).normal(0, 2.0, shape)
    return (100 * np.exp(-3 * distance) + noise).astype(np.float32)


def segmented(shape=SHAPE, shift=0.0):
    return (blob(shape, shift) > 30).astype(np.int16) + (blob(shape, shift) > 60).astype(np.int16)


def itk(values, spacing=SPACING, *, vector=False):
    image = sitk.GetImageFromArray(values, isVector=vector)
    image.SetSpacing(spacing[: image.GetDimension()])
    return image


def write(file, values, **options):
    sitk.WriteImage(itk(values, **options), str(file))
    return file


def nifti(file, values, affine=None, **header):
    """A NIfTI file by nibabel; ``values`` in the order x y z."""
    image = nibabel.Nifti1Image(values, np.diag([*SPACING, 1.0]) if affine is None else affine)
    image.header.set_sform(affine, 1 if affine is not None else 0)
    nibabel.save(image, file)
    if header:
        content = bytearray(Path(file).read_bytes())
        struct.pack_into("<2h", content, 252, 0, 0)  # neither qform nor sform: the voxel size counts
        for place, value in header.values():
            struct.pack_into("<f", content, place, value)
        Path(file).write_bytes(content)
    return file


def edited(file, source, old, new):
    """A copy of a file whose text header has another line."""
    content = source.read_bytes()
    assert old in content, content[:600]
    file.write_bytes(content.replace(old, new, 1))
    return file


def good_files(folder):
    """A pair with all that can belong to it."""
    for name, shift in (("fixed", 0.0), ("moving", 0.1)):
        write(folder / f"{name}.nii.gz", blob(shift=shift, seed=len(name)))
        write(folder / f"{name}_labels.nii.gz", segmented(shift=shift))
        write(folder / f"{name}_mask.nii.gz", (blob(shift=shift) > 10).astype(np.uint8))
        np.savetxt(folder / f"{name}.csv", [[3, 4, 5], [6, 7, 8], [9, 5, 6]], "%g", ",", header="x,y,z", comments="")
    write(folder / "flat.png", (2 * blob((16, 18))).clip(0, 255).astype(np.uint8), spacing=(1.0, 1.0))
    affine = sitk.AffineTransform(3)
    affine.SetTranslation([1.0, 0.5, -0.5])
    for suffix in (".tfm", ".mat", ".h5"):
        sitk.WriteTransform(affine, str(folder / f"shift{suffix}"))
    waves = np.stack([0.3 * np.sin(blob(seed=k) / 40) for k in range(3)], -1)
    write(folder / "field.nii.gz", waves.astype(np.float32), vector=True)
    (folder / "tiny.yaml").write_text(METHOD)
    save(folder / "good.ckpt")


def images(folder):
    """Faulty images by the name of the fault."""
    good, text = blob(), b"these are not the voxels that you are looking for\n" * 40
    made = {}
    for suffix in (".nii", ".nii.gz", ".mha", ".nrrd"):
        whole = write(folder / f"whole{suffix}", good)
        cut = folder / f"truncated{suffix}"
        cut.write_bytes(whole.read_bytes()[: int(0.6 * whole.stat().st_size)])
        empty = folder / f"empty{suffix}"
        empty.write_bytes(b"")
        made |= {f"truncated{suffix}": cut, f"empty{suffix}": empty}
    header = folder / "header.nii.gz"
    header.write_bytes(gzip.compress(gzip.decompress((folder / "whole.nii.gz").read_bytes())[:200]))
    made["truncated-header.nii.gz"] = header
    lies = {"nii-as.mha": "whole.nii", "mha-as.nii.gz": "whole.mha", "nrrd-as.nii": "whole.nrrd"}
    for name, source in lies.items():
        made[f"mislabelled-{name}"] = folder / name
        (folder / name).write_bytes((folder / source).read_bytes())
    for suffix in (".nii", ".nii.gz", ".png", ".txt", ".mha", ".mgz"):
        made[f"text{suffix}"] = folder / f"text{suffix}"
        (folder / f"text{suffix}").write_bytes(text)
    (folder / "folder.nii.gz").mkdir()
    made |= {"folder": folder / "folder.nii.gz", "missing": folder / "missing.nii.gz"}
    made["complex.nii"] = nifti(folder / "complex.nii", good.T.astype(np.complex64))
    made["color.png"] = folder / "color.png"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((8, 9, 3), np.uint8), isVector=True), str(made["color.png"]))
    made["color.nii"] = folder / "color.nii"
    color = np.zeros((*SHAPE[::-1], 3), np.uint8).view(np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))[..., 0]
    nibabel.save(nibabel.Nifti1Image(color, np.eye(4)), made["color.nii"])
    made["5-D.nii"] = nifti(folder / "five.nii", np.zeros((5, 6, 7, 2, 2), np.float32))
    made["4-D.nii.gz"] = nifti(folder / "four.nii.gz", np.stack([good.T] * 2, -1))
    made["nan.nii.gz"] = write(folder / "nan.nii.gz", np.full(SHAPE, np.nan, np.float32))
    made["nan.mha"] = write(folder / "nan.mha", np.full(SHAPE, np.nan, np.float32))
    infinite = good.copy()
    infinite[3, 4, 5] = np.inf
    made["infinite.nii.gz"] = write(folder / "infinite.nii.gz", infinite)
    made |= geometries(folder, good)
    return made


def geometries(folder, good):
    """Images whose voxels have no size, or no directions."""
    made = {}
    for name, value in (("zero", 0.0), ("nan", np.nan), ("infinite", np.inf)):
        made[f"{name}-spacing.nii"] = nifti(folder / f"{name}_pixdim.nii", good.T, spacing=(80, value))
        affine = np.diag([*SPACING, 1.0])
        affine[0, 0] = value
        made[f"{name}-sform.nii"] = file = folder / f"{name}_sform.nii"
        image = nibabel.Nifti1Image(good.T, np.diag([*SPACING, 1.0]))
        image.header["sform_code"], image.header["qform_code"] = 1, 0
        image.to_filename(file)
        content = bytearray(file.read_bytes())
        struct.pack_into("<4f", content, 280, *affine[0])
        file.write_bytes(content)
        spelled = {"zero": b"0", "nan": b"nan", "infinite": b"inf"}[name]
        line = b"ElementSpacing = 1.5 1.2 1"
        made[f"{name}-spacing.mha"] = edited(
            folder / f"{name}.mha", folder / "whole.mha", line, b"ElementSpacing = " + spelled + b" 1.2 1"
        )
        made[f"{name}-spacing.nrrd"] = edited(
            folder / f"{name}.nrrd", folder / "whole.nrrd", b"(1.5,0,0)", b"(" + spelled + b",0,0)"
        )
    made["nan-origin.mha"] = edited(folder / "origin.mha", folder / "whole.mha", b"Offset = 0 0 0", b"Offset = nan 0 0")
    made["singular.mha"] = edited(
        folder / "singular.mha", folder / "whole.mha", b"Matrix = 1 0 0 0 1 0", b"Matrix = 1 0 0 1 0 0"
    )
    made["singular.nrrd"] = edited(folder / "singular.nrrd", folder / "whole.nrrd", b"(0,1.2,0)", b"(1.2,0,0)")
    sheared = np.diag([*SPACING, 1.0])
    sheared[0, 1] = 0.6
    made["sheared.nii"] = nifti(folder / "sheared.nii", good.T, affine=sheared)
    sheared[:, 1] = sheared[:, 0]
    made["singular.nii"] = folder / "singular.nii"
    content = bytearray(made["sheared.nii"].read_bytes())
    for row in range(3):
        struct.pack_into("<4f", content, 280 + 16 * row, *sheared[row])
    made["singular.nii"].write_bytes(content)
    return made


def odd_images(folder):
    """Images that are unusual, and right."""
    flat = np.full(SHAPE, 7.0, np.float32)
    whole = write(folder / "whole.mha", blob())
    hole = blob()
    hole[2:5] = np.nan
    return {
        "constant": write(folder / "constant.nii.gz", flat),
        "zeros": write(folder / "zeros.nii.gz", 0 * flat),
        "one-voxel": write(folder / "one.nii.gz", np.ones((1, 1, 1), np.float32)),
        "one-column": write(folder / "column.nii.gz", blob((9, 1, 1))),
        "two-voxels": write(folder / "two.nii.gz", blob((2, 2, 2))),
        "partly-nan": write(folder / "hole.nii.gz", hole),
        "partly-nan.mha": write(folder / "hole.mha", hole),
        "half": nifti(folder / "double.nii", hole.T.astype(np.float64)),
        "boolean": write(folder / "boolean.nrrd", (blob() > 20).astype(np.uint8)),
        "huge-values": write(folder / "values.nii.gz", 1e30 * blob()),
        "tiny-spacing": write(folder / "spacing.mha", blob(), spacing=(1e-6, 1e-6, 1e-6)),
        "far-away": far(folder / "far.mha"),
        "flipped": flipped(folder / "flipped.mha"),
        "negative-pixdim": nifti(folder / "negative.nii", blob().T, spacing=(80, -1.5)),
        "negative-spacing.mha": edited(folder / "negative.mha", whole, b"Spacing = 1.5", b"Spacing = -1.5"),
    }


def far(file):
    image = itk(blob())
    image.SetOrigin([1e5, -2e5, 3e5])
    sitk.WriteImage(image, str(file))
    return file


def flipped(file):
    image = itk(blob())
    image.SetDirection([-1, 0, 0, 0, 0, 1, 0, -1, 0])
    sitk.WriteImage(image, str(file))
    return file


def segmentations(folder):
    """Faulty labels and masks of the fixed image."""
    labels = segmented()
    shifted = itk(labels)
    shifted.SetOrigin([50.0, 0.0, 0.0])
    made = {
        "fractions": write(folder / "fractions.nii.gz", (0.37 * labels).astype(np.float32)),
        "nan-labels": write(folder / "nan_labels.nii.gz", np.where(labels > 0, np.nan, 0).astype(np.float32)),
        "no-common": write(folder / "other_labels.nii.gz", (labels > 0).astype(np.int16) * 7),
        "no-label": write(folder / "background.nii.gz", 0 * labels),
        "other-shape": write(folder / "cropped.nii.gz", np.ascontiguousarray(labels[1:])),
        "other-place": folder / "shifted.nii.gz",
        "other-spacing": write(folder / "spacing.nii.gz", labels, spacing=(3.0, 3.0, 3.0)),
        "flat-labels": write(folder / "flat_labels.nii.gz", labels[3], spacing=(1.5, 1.2)),
        "truncated-labels": folder / "truncated_labels.nii.gz",
        "missing-labels": folder / "missing_labels.nii.gz",
        "vectors": write(folder / "vectors.nii.gz", np.stack([labels] * 3, -1), vector=True),
        "text-labels": folder / "text_labels.nii.gz",
        "empty-mask": write(folder / "empty_mask.nii.gz", np.zeros(SHAPE, np.uint8)),
        "nan-mask": write(folder / "nan_mask.nii.gz", np.full(SHAPE, np.nan, np.float32)),
        "negative-labels": write(folder / "negative_labels.nii.gz", (-labels).astype(np.int16)),
        "one-voxel-mask": write(
            folder / "voxel_mask.nii.gz", (np.arange(labels.size) == 900).reshape(SHAPE) * np.uint8(1)
        ),
    }
    sitk.WriteImage(shifted, str(made["other-place"]))
    whole = write(folder / "whole_labels.nii.gz", labels)
    made["truncated-labels"].write_bytes(whole.read_bytes()[:150])
    made["text-labels"].write_text("label")
    return made


def landmarks(folder):
    """Faulty landmarks."""
    texts = {
        "empty": "",
        "header-only": "x,y,z\n",
        "text": "x,y,z\n1,2,three\n",
        "blank": "x,y,z\n1,,3\n4,5,6\n7,8,9\n",
        "column-missing": "x,y\n1,2\n3,4\n5,6\n",
        "value-missing": "x,y,z\n1,2,3\n4,5\n7,8,9\n",
        "no-header": "1,2,3\n4,5,6\n7,8,9\n",
        "all-nan": "x,y,z\nnan,nan,nan\nnan,nan,nan\nnan,nan,nan\n",
        "infinite": "x,y,z\n1,2,inf\n4,5,6\n7,8,9\n",
        "fewer": "x,y,z\n1,2,3\n",
        "outside": "x,y,z\n1000,2,3\n4,5,6\n7,8,9\n",
        "other-names": "x,y,z,name\n1,2,3,a\n4,5,6,b\n7,8,9,c\n8,8,8,d\n",
    }
    made = {}
    for name, content in texts.items():
        made[name] = folder / f"{name}.csv"
        made[name].write_text(content)
    for suffix, content in (
        (".txt", "point\n3\n1 2\n"),
        (".fcsv", "# CoordinateSystem = LPS\n1,2\n"),
        (".mrk.json", '{"markups": []}'),
    ):
        made[f"broken{suffix}"] = folder / f"broken{suffix}"
        made[f"broken{suffix}"].write_text(content)
    made["binary"] = folder / "binary.csv"
    made["binary"].write_bytes(bytes(range(256)))
    made["missing"] = folder / "missing.csv"
    made["folder"] = folder / "folder.csv"
    made["folder"].mkdir()
    return made


def transforms(folder):
    """Faulty transforms of 3-D images."""
    flat, nothing = sitk.AffineTransform(2), sitk.AffineTransform(3)
    made = {}
    for suffix in (".tfm", ".h5", ".mat"):
        made[f"2-D{suffix}"] = folder / f"flat{suffix}"
        sitk.WriteTransform(flat, str(made[f"2-D{suffix}"]))
        whole = (folder / f"shift{suffix}").read_bytes()
        made[f"truncated{suffix}"] = folder / f"truncated{suffix}"
        made[f"truncated{suffix}"].write_bytes(whole[: len(whole) // 2])
        made[f"empty{suffix}"] = folder / f"empty{suffix}"
        made[f"empty{suffix}"].write_bytes(b"")
        made[f"text{suffix}"] = folder / f"text{suffix}"
        made[f"text{suffix}"].write_text("hello")
    nothing.SetMatrix([1, 0, 0, 1, 0, 0, 0, 0, 1])
    for name, transform in (("singular", nothing), ("nan", sitk.AffineTransform(3))):
        if name == "nan":
            transform.SetTranslation([np.nan, 0, 0])
        made[f"{name}.tfm"] = folder / f"{name}.tfm"
        sitk.WriteTransform(transform, str(made[f"{name}.tfm"]))
    values = np.zeros((*SHAPE, 3), np.float32)
    made["2-D field"] = write(folder / "flat_field.nii.gz", values[0, ..., :2], vector=True, spacing=(1.0, 1.0))
    values[3, 4, 5] = np.nan
    made["nan field"] = write(folder / "nan_field.nii.gz", values, vector=True)
    made["an image"] = folder / "fixed.nii.gz"
    made["a table"] = folder / "fixed.csv"
    made["a checkpoint"] = folder / "good.ckpt"
    made["missing"] = folder / "missing.h5"
    made["folder"] = folder / "folder.h5"
    made["folder"].mkdir()
    return made


def methods(folder):
    """Faulty files of methods."""
    texts = {
        "not-yaml": "a: [1, 2\nb: }",
        "empty": "",
        "list": "- 1\n- 2\n",
        "text": "hello",
        "binary": None,
        "unknown-key": METHOD.replace("iterations", "iteratoins"),
        "unknown-class": METHOD.replace("LinearStage", "LinaerStage"),
        "wrong-type": METHOD.replace("[2]", "many", 1),
        "text-number": METHOD.replace("iterations: [2]", "iterations: [two]"),
        "negative-iterations": METHOD.replace("iterations: [2]", "iterations: [-2]"),
        "huge-iterations": METHOD.replace("iterations: [2]", "iterations: [1000000000000]"),
        "zero-factor": METHOD.replace("factors: [2]", "factors: [0]"),
        "nan-factor": METHOD.replace("factors: [2]", "factors: [.nan]"),
        "unequal": METHOD.replace("factors: [2]", "factors: [4, 2]"),
        "no-stages": "_target_: learnreg.methods.IterativeMethod\nstages: {}\n",
        "another-class": "_target_: learnreg.similarity.MSE\n",
        "os-system": "_target_: os.system\ncommand: touch hacked\n",
        "nested-os-system": METHOD.replace("learnreg.similarity.MSE", "os.system"),
        "builtins": METHOD.replace("learnreg.similarity.MSE", "builtins.eval"),
        "args": METHOD + "    _args_: [1]\n",
        "environment": METHOD.replace("iterations: [2]", "iterations: ${oc.env:HOME}"),
        "resolver": METHOD + "name: ${oc.decode:1}\n",
        "hydra": "hydra: {run: {dir: hacked}}\ndefaults: [/method/affine@_here_, _self_]\n",
        "unknown-preset": "defaults:\n  - /method/afine@_here_\n  - _self_\n",
        "object": "!!python/object/apply:os.system ['touch hacked']\n",
        "duplicate": "_target_: a\n_target_: b\n",
        "bomb": "a: &a [1,1,1,1,1,1,1,1,1]\n"
        + "".join(f"{c}: &{c} [{','.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)),
    }
    made = {}
    for name, content in texts.items():
        made[name] = folder / f"{name}.yaml"
        made[name].write_bytes(b"\xff\xfe\x00\x01" * 9 if content is None else content.encode())
    made["missing"] = folder / "missing.yaml"
    made["typo"] = Path("defromable")
    made["folder"] = folder / "folder.yaml"
    made["folder"].mkdir()
    return made


def models(folder):
    """Faulty checkpoints and released models."""
    whole = (folder / "good.ckpt").read_bytes()
    content = torch.load(folder / "good.ckpt", weights_only=True)
    made = {name: folder / f"model-{name}.ckpt" for name in ("truncated", "empty", "text", "hostile", "other", "nan")}
    made["truncated"].write_bytes(whole[: len(whole) // 2])
    made["empty"].write_bytes(b"")
    made["text"].write_text("weights")
    made["hostile"].write_bytes(pickle.dumps({"state_dict": Hostile(), KEY: {}}))
    torch.save({"epoch": 3}, made["other"])
    torch.save(
        {**content, "state_dict": {key: value * np.nan for key, value in content["state_dict"].items()}}, made["nan"]
    )
    stored = content[KEY]
    changes = {
        "format": {**stored, "format": 99},
        "target": {**stored, "network": {"_target_": "os.system", "command": "touch hacked"}},
        "resolver": {**stored, "network": {**stored["network"], "channels": "${oc.env:HOME}"}},
        "huge": {**stored, "network": {**stored["network"], "channels": [10**9, 10**9]}},
        "wide": {**stored, "network": {**stored["network"], "channels": [2**19, 2**19]}},
        "no-network": {key: value for key, value in stored.items() if key != "network"},
        "space": {**stored, "space": {"spacing": -1.0, "shape": [0, 0, 0]}},
        "large-space": {**stored, "space": {**stored["space"], "shape": [10**6, 10**6, 10**6]}},
    }
    for name, changed in changes.items():
        made[name] = folder / f"model-{name}.ckpt"
        torch.save({**content, KEY: changed}, made[name])
    release = folder / "whole.safetensors"
    save_file({"a": torch.ones(3)}, release, {KEY: "{}"})
    made["cut.safetensors"] = folder / "cut.safetensors"
    made["cut.safetensors"].write_bytes(release.read_bytes()[:-5])
    made["size.safetensors"] = folder / "size.safetensors"
    made["size.safetensors"].write_bytes(struct.pack("<Q", 2**62) + b"{}")
    made["foreign.safetensors"] = folder / "foreign.safetensors"
    save_file({"a": torch.ones(3)}, made["foreign.safetensors"])
    made["text.safetensors"] = folder / "text.safetensors"
    made["text.safetensors"].write_text("weights")
    made["missing"] = folder / "missing.ckpt"
    made["folder"] = folder / "folder.ckpt"
    made["folder"].mkdir()
    made["an image"] = folder / "fixed.nii.gz"
    return made
