"""One scorer, and the four ways to it: training, ``evaluate``, the report of a training, ``register``."""

import json
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from learnreg.apps.main import main
from learnreg.apps.train_report import report
from learnreg.data.datasets import Case, collate
from learnreg.grid import Grid
from learnreg.image import Image, stack
from learnreg.io import write_image
from learnreg.methods import Method, Registration
from learnreg.metrics import dice_scores, regularity, score, sd_log_jacobian, sd_log_jacobian_learn2reg
from learnreg.networks.checkpoint import Checkpoint
from learnreg.objective import Objective
from learnreg.optimization import FieldStage
from learnreg.sampling import sample_image
from learnreg.similarity import MSE
from learnreg.training.module import RegistrationModule
from learnreg.transforms import Affine, Displacement
from tests.conftest import blob_image, make_grid
from tests.test_fields import smooth_field

GRID = Grid.regular((24, 26, 30), 1.5)
SHIFT = (1.0, -2.0, 0.5)


def with_labels_of_one_image_only():
    """Label 3 is in the fixed image only, label 4 in the moving image only."""
    fixed, moving = blob_image(GRID), blob_image(GRID, (2.5, -1.5, 1.0), (8.0, 8.0, 6.5))
    fixed.labels[..., :3, :3, :3], moving.labels[..., -3:, -3:, -3:] = 3, 4
    return fixed, moving


def shift(fixed):
    return Affine.translation(SHIFT).to(fixed.data.device)


class Shifting(Method):
    """Registers nothing: the answer is a known transform."""

    def forward(self, fixed, moving, *, initial=None, on_step=None):
        return Registration(shift(fixed), fixed, moving)


class ShiftingNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, fixed, moving):
        return shift(fixed)


def validated(pairs, tmp_path):
    """What a training logs for batches of pairs."""
    module = RegistrationModule(ShiftingNetwork(), Objective(MSE()), torch.optim.Adam)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "inference_mode": False}
    trainer = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", **quiet)
    loader = torch.utils.data.DataLoader(pairs, batch_size=len(pairs), collate_fn=collate)
    return trainer.validate(module, loader, verbose=False)[0]


def reported(case, folder, monkeypatch):
    """The rows of a training's report, by method."""

    class Data:
        def cases(self, count):
            return [case]

    space = {"spacing": 1.5, "shape": [24, 26, 30], "multiple": 1}
    refinement = FieldStage(Objective(MSE()), factors=(1,), iterations=(0,))
    checkpoint = Checkpoint(ShiftingNetwork(), Objective(MSE()), space, {}, refinement)
    monkeypatch.setattr("learnreg.apps.train_report.load_checkpoint", lambda path: checkpoint)
    method = {"_target_": "tests.metrics.test_scores.Shifting"}
    report({"method": method, "refine": 0, "report_pairs": 1}, Data(), str(folder))
    rows = json.loads((folder / "report.json").read_text())["cases"]
    return {row["method"]: row for row in rows}


def written(fixed, moving, folder):
    """Files of a data set of one pair, and a method file."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for name, image in (("fixed", fixed), ("moving", moving)):
        write_image(image.data[0], image.grid, folder / "images" / f"{name}.nii.gz")
        write_image(image.labels[0].to(torch.int16), image.grid, folder / "labels" / f"{name}.nii.gz")
    (folder / "shift.yaml").write_text("_target_: tests.metrics.test_scores.Shifting\n")
    lines = ["fixed,fixed_labels,moving,moving_labels"]
    lines.append(",".join(f"{kind}/{name}.nii.gz" for name in ("fixed", "moving") for kind in ("images", "labels")))
    (folder / "pairs.csv").write_text("\n".join(lines))
    return folder


def evaluated(folder):
    main(["evaluate", str(folder / "pairs.csv"), "--method", str(folder / "shift.yaml"), "-o", str(folder / "e")])
    return json.loads((folder / "e" / "metrics.json").read_text())["cases"][1]


def registered(folder):
    pair = [str(folder / "images" / f"{name}.nii.gz") for name in ("fixed", "moving")]
    flags = [str(a) for n in ("fixed", "moving") for a in (f"--{n}-labels", folder / "labels" / f"{n}.nii.gz")]
    main(["register", *pair, *flags, "--method", str(folder / "shift.yaml"), "-o", str(folder / "r"), "--quiet"])
    return json.loads((folder / "r" / "metrics.json").read_text())


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_training_evaluation_report_and_register_agree(tmp_path, monkeypatch):
    """Labels 1 and 2 count; those that one image lacks say nothing about the registration."""
    fixed, moving = with_labels_of_one_image_only()
    warped = sample_image(moving, fixed.grid.points + torch.tensor(SHIFT), fixed.grid)
    expected = float(dice_scores(warped.labels, fixed.labels, [1, 2]).mean())
    assert 0.3 < expected < 0.95
    folder = written(fixed, moving, tmp_path / "data")
    rows = reported(Case("a", fixed, moving), tmp_path, monkeypatch)
    single, measured = evaluated(folder), registered(folder)
    trained = validated([(fixed, moving)], tmp_path)
    found = [trained["val/dice"], single["dice"], rows["classical"]["dice"], measured["after"]["dice"]]
    assert found == pytest.approx([expected] * 4, abs=1e-6)
    assert rows["one-shot"]["dice"] == pytest.approx(expected, abs=1e-6)
    assert measured["before"]["dice"] == pytest.approx(score(fixed, moving, Affine.identity(3)).row()["dice"])
    by_label = [single["dice_by_label"], rows["classical"]["dice_by_label"], measured["after"]["dice_by_label"]]
    assert all(set(one) == {"1", "2"} for one in by_label)
    for name in ("hd95_mm", "dice_by_label"):
        assert single[name] == rows["classical"][name] == measured["after"][name]
    for name in ("sd_log_jacobian", "folding_percent"):
        assert single[name] == rows["classical"][name] == measured[name]
    assert trained["val/folding"] == single["folding_percent"] / 100
    assert trained["val/sd_log_jacobian"] == pytest.approx(single["sd_log_jacobian"], abs=1e-7)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_batch_is_scored_pair_by_pair(tmp_path):
    """A label that one pair has does not count in another."""
    first = with_labels_of_one_image_only()
    plain = blob_image(GRID), blob_image(GRID, (1.0, 0.0, 0.0))
    bare = tuple(replace(image, labels=torch.zeros_like(image.labels)) for image in plain)
    fields = [Displacement(0.2 * smooth_field(GRID, s), GRID) for s in (0.4, 0.9, 0.6)]
    pairs = [first, plain, bare]
    both = Displacement(torch.cat([field.field for field in fields]), GRID)
    together = score(*(stack(images) for images in zip(*pairs, strict=True)), both, distances=True, correlation=True)
    for k, (pair, field) in enumerate(zip(pairs, fields, strict=True)):
        alone = score(*pair, field, distances=True, correlation=True).row()
        row = together.row(k)
        assert row.pop("dice_by_label", None) == pytest.approx(alone.pop("dice_by_label", None))
        assert row == pytest.approx(alone, rel=1e-5)
    assert "dice" not in together.row(2)
    assert together.labels == ([1, 2], [1, 2], [])
    mean = together.mean()
    assert float(mean["dice"]) == pytest.approx((together.row(0)["dice"] + together.row(1)["dice"]) / 2)
    shifted = [score(*pair, shift(pair[0])).row()["dice"] for pair in pairs[:2]]
    assert validated(pairs[:2], tmp_path)["val/dice"] == pytest.approx(sum(shifted) / 2, abs=1e-6)


def test_grids_and_truths_of_a_batch():
    """Each pair on a grid of its own, with a true transform, landmarks and a mask."""
    grids = [make_grid(name, (12, 13, 14), (1.0, 1.5, 2.0), torch.float32) for name in ("LPS", "RAS")]
    images = [
        replace(blob_image(grid), landmarks=torch.tensor([[[0.0, 1.0, 2.0], [3.0, 0.0, float("nan")]]]))
        for grid in grids
    ]
    batch, truth = stack(images), Affine.translation([3.0, 0.0, 4.0])
    found = score(batch, batch, Affine.identity(3), truth=truth, distances=True)
    for name, expected in (("error_mm", 5.0), ("tre_mm", 0.0), ("dice", 1.0), ("hd95_mm", 0.0), ("folding_percent", 0)):
        assert found.values[name].tolist() == pytest.approx([expected] * 2, abs=1e-4), name
    masked = Image(batch.data, batch.grid, torch.zeros_like(batch.data))
    assert score(masked, batch, truth, truth=truth).values["error_mm"].isnan().all()
    assert "error_mm" not in score(masked, batch, truth, truth=truth).row()


def test_regularity_is_that_of_the_single_metrics():
    field = smooth_field(GRID, 1.2)
    found = regularity(field, GRID)
    assert torch.equal(found["sd_log_jacobian"], sd_log_jacobian(field, GRID))
    assert torch.equal(found["sd_log_jacobian_learn2reg"], sd_log_jacobian_learn2reg(field, GRID))
    flat = Grid.regular((4, 9))
    assert "sd_log_jacobian_learn2reg" not in regularity(torch.zeros(1, 2, 4, 9), flat)
