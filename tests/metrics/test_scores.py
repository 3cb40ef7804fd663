"""One scorer: a training, an evaluation and a registration say the same of a pair."""

import json
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch

from learnreg.apps.main import main
from learnreg.apps.register import measure
from learnreg.apps.train_report import report
from learnreg.data.datasets import Case, collate
from learnreg.grid import Grid
from learnreg.image import Image, stack
from learnreg.io import write_image
from learnreg.memory import free_memory, peak_memory
from learnreg.methods import IterativeMethod, Method, Registration
from learnreg.methods.evaluation import evaluate
from learnreg.metrics import score, sd_log_jacobian, sd_log_jacobian_learn2reg
from learnreg.networks import Network
from learnreg.networks.checkpoint import Checkpoint
from learnreg.objective import Objective
from learnreg.optimization import CenterOfView, FieldStage
from learnreg.similarity import MSE
from learnreg.training import RegistrationModule
from learnreg.transforms import Affine, Displacement, Sampled
from tests.conftest import blob_image, make_grid
from tests.test_fields import smooth_field

GRID = Grid.regular((12, 14, 16))


class Still(Network):
    ndim, in_channels = 3, 1

    def forward(self, fixed, moving):
        return Affine.identity(3)


def pair():
    """Label 3 is in the fixed image only, label 4 in the moving image only."""
    fixed, moving = blob_image(GRID), blob_image(GRID, (1.0, 0.0, 0.0))
    first, second = fixed.labels.clone(), moving.labels.clone()
    first[..., 0, 0, :4], second[..., 0, 0, 8:] = 3, 4
    return replace(fixed, labels=first), replace(moving, labels=second)


def test_all_who_score_a_pair_agree():
    fixed, moving = pair()
    wanted = float(score(fixed, moving, Affine.identity(3)).dice)
    both = score(blob_image(GRID), blob_image(GRID, (1.0, 0.0, 0.0)), Affine.identity(3))
    assert wanted == pytest.approx(float(both.dice), abs=0.01)  # the labels of one image alone do not count

    module = RegistrationModule(Still(), Objective(MSE()), torch.optim.Adam)
    module.eval().validation_step((fixed, moving), 0)
    logged = module.scores.means()
    rows = evaluate([Case("a", fixed, moving)], {"still": IterativeMethod({"center": CenterOfView()})})
    found = measure(Registration(Affine.identity(3), fixed, moving))
    assert [logged["val/dice"], rows[1]["dice"], found["after"]["dice"]] == pytest.approx([wanted] * 3)
    assert logged["val/sd_log_jacobian"] == pytest.approx(found["sd_log_jacobian"])
    assert 100 * logged["val/folding"] == pytest.approx(found["folding_percent"])


def test_each_pair_of_a_batch_has_its_own_labels():
    fixed, moving = pair()
    other = replace(fixed, labels=torch.where(fixed.labels == 2, 1, fixed.labels)), moving
    batch = score(stack([fixed, other[0]]), stack([moving, other[1]]), Affine.identity(3))
    alone = [float(score(*one, Affine.identity(3)).dice) for one in ((fixed, moving), other)]
    assert batch.dice.tolist() == pytest.approx(alone)
    assert batch.row(1)["dice_by_label"].keys() == {"1"}


def test_a_validation_logs_the_means_over_its_batch():
    """Of pairs that differ in overlap, in the objective and in the transform."""
    grids = [Grid.regular((12, 14, 16)), Grid.regular((12, 14, 16), (1.0, 1.5, 2.0))]
    pairs = [
        (blob_image(grid), blob_image(grid, (shift, 0.0, 0.0))) for grid, shift in zip(grids, (1.0, 4.0), strict=True)
    ]
    fields = [size * smooth_field(grid, 1.0) for grid, size in zip(grids, (2.0, 9.0), strict=True)]

    class Known(Network):
        ndim, in_channels = 3, 1

        def forward(self, fixed, moving):
            return Displacement(self.field, fixed.grid)

    def logged(batch, field):
        network = Known()
        network.field = field
        module = RegistrationModule(network, Objective(MSE()), torch.optim.Adam)
        module.on_validation_epoch_start()
        module.eval().validation_step(batch, 0)
        return module.scores.means()

    one, other = (logged(pair, field) for pair, field in zip(pairs, fields, strict=True))
    both = logged(tuple(stack(images) for images in zip(*pairs, strict=True)), torch.cat(fields))
    assert both.keys() == one.keys() >= {"val/loss", "val/dice", "val/sd_log_jacobian", "val/folding"}
    for name, value in both.items():
        assert value == pytest.approx((one[name] + other[name]) / 2, rel=1e-5, abs=1e-9), name
    for name in ("val/loss", "val/dice", "val/sd_log_jacobian", "val/folding"):
        assert one[name] != pytest.approx(other[name], rel=0.05), name


def test_what_is_not_known_is_left_out():
    fixed, moving = pair()
    bare = Image(fixed.data, fixed.grid)
    assert score(bare, moving, Affine.identity(3)).dice is None
    row = score(bare, bare, Affine.identity(3), truth=Affine.translation([1.0, 0.0, 0.0])).row()
    assert row["error_mm"] == pytest.approx(1)
    assert json.loads(json.dumps(row)).keys() == {
        "error_mm",
        "sd_log_jacobian",
        "sd_log_jacobian_learn2reg",
        "folding_percent",
    }


SHIFT = Affine.translation([1.0, -2.0, 0.5])


class Shifting(Network):
    ndim, in_channels = 3, 1

    def forward(self, fixed, moving):
        return SHIFT


class ShiftingMethod(Method):
    def forward(self, fixed, moving, *, initial=None, on_step=None):
        return Registration(SHIFT, fixed, moving)


def written(fixed, moving, folder):
    """A data set of one pair, and the file of a method."""
    for name, image in (("fixed", fixed), ("moving", moving)):
        write_image(image.data[0], image.grid, folder / "images" / f"{name}.nii.gz")
        write_image(image.labels[0].to(torch.int16), image.grid, folder / "labels" / f"{name}.nii.gz")
    (folder / "shift.yaml").write_text("_target_: tests.metrics.test_scores.ShiftingMethod\n")
    files = [f"{kind}/{name}.nii.gz" for name in ("fixed", "moving") for kind in ("images", "labels")]
    (folder / "pairs.csv").write_text("fixed,fixed_labels,moving,moving_labels\n" + ",".join(files))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_training_evaluate_report_and_register_write_the_same(tmp_path, monkeypatch):
    """By the ways a user goes: what Lightning logs, and the files of the two commands and of the report."""
    fixed, moving = pair()
    wanted = score(fixed, moving, SHIFT, distances=True).row()
    assert set(wanted["dice_by_label"]) == {"1", "2"}

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", inference_mode=False, **quiet)
    module = RegistrationModule(Shifting(), Objective(MSE()), torch.optim.Adam)
    logged = trainer.validate(module, torch.utils.data.DataLoader([(fixed, moving)], collate_fn=collate), verbose=False)

    space = {"spacing": 1.0, "shape": [12, 14, 16], "multiple": 1}
    refinement = FieldStage(Objective(MSE()), factors=(1,), iterations=(0,))
    checkpoint = Checkpoint(Shifting(), Objective(MSE()), space, {}, refinement)
    monkeypatch.setattr("learnreg.apps.train_report.load_checkpoint", lambda path, trust: checkpoint)
    data = type("Data", (), {"cases": lambda self, count: [Case("a", fixed, moving)]})()
    method = {"_target_": "tests.metrics.test_scores.ShiftingMethod"}
    report({"method": method, "refine": 0, "report_pairs": 1, "start": None, "compare": []}, data, str(tmp_path))
    reported = {row["method"]: row for row in json.loads((tmp_path / "report.json").read_text())["cases"]}

    written(fixed, moving, tmp_path)
    method = ["--method", str(tmp_path / "shift.yaml"), "--trust", "tests"]
    main(["evaluate", str(tmp_path / "pairs.csv"), *method, "-o", str(tmp_path / "e"), "--quiet"])
    evaluated = json.loads((tmp_path / "e" / "metrics.json").read_text())["cases"][1]
    images, labels = ([str(tmp_path / k / f"{n}.nii.gz") for n in ("fixed", "moving")] for k in ("images", "labels"))
    flags = ["--fixed-labels", labels[0], "--moving-labels", labels[1], "--quiet"]
    main(["register", *images, *method, *flags, "-o", str(tmp_path / "r")])
    registered = json.loads((tmp_path / "r" / "metrics.json").read_text())

    rows = [evaluated, reported["classical"], reported["one-shot"], {**registered, **registered["after"]}]
    for name in ("dice", "dice_by_label", "hd95_mm", "sd_log_jacobian", "folding_percent"):
        for row in rows:
            assert row[name] == pytest.approx(wanted[name], abs=1e-6), name
    for name, value in (("dice", 1), ("sd_log_jacobian", 1), ("folding", 100)):
        assert value * logged[0][f"val/{name}"] == pytest.approx(wanted.get(name, wanted["folding_percent"]), abs=1e-6)


def test_pairs_of_a_batch_may_lie_on_grids_of_other_spacings():
    grids = [Grid.regular((12, 14, 16), spacing) for spacing in (1.0, (2.0, 1.0, 3.0))]
    pairs = [(blob_image(grid), blob_image(grid, (2.0, 0.0, -3.0))) for grid in grids]
    fields = [Displacement(0.2 * smooth_field(grid, 0.5), grid) for grid in grids]
    batch = [stack(images) for images in zip(*pairs, strict=True)]
    both = Displacement(torch.cat([field.field for field in fields]), batch[0].grid)
    found = score(*batch, both, distances=True, truth=SHIFT)
    for k, (images, field) in enumerate(zip(pairs, fields, strict=True)):
        alone = score(*images, field, distances=True, truth=SHIFT).row()
        assert found.row(k) == {name: pytest.approx(value, rel=1e-4) for name, value in alone.items()}


def test_mixed_precision_does_not_reach_the_scores():
    """A training validates under autocast, an evaluation does not."""
    grid = make_grid("oblique", dtype=torch.float32)
    images, field = (blob_image(grid), blob_image(grid, (2.0, 1.0, 0.0))), Displacement(smooth_field(grid, 1.0), grid)
    plain = score(*images, field, truth=SHIFT).row()
    with torch.autocast("cpu", torch.bfloat16):
        assert score(*images, field, truth=SHIFT).row() == plain


def test_a_label_that_is_warped_away_leaves_a_file_that_json_reads():
    fixed, moving = pair()
    away = score(fixed, moving, Affine.translation([1000.0, 0.0, 0.0]), distances=True).row()
    assert away["dice"] == 0
    assert "hd95_mm" not in away
    json.dumps(away, allow_nan=False)


@pytest.mark.skipif(free_memory() is None, reason="the system does not tell")
def test_scores_keep_no_volume_but_the_displacement():
    grid = Grid.regular((160, 160, 160))
    image = Image(torch.rand(1, 1, *grid.shape), grid)
    transform = Displacement(0.1 * torch.rand(1, 3, *grid.shape), grid)
    score(*[Image(torch.rand(1, 1, 8, 8, 8), Grid.regular((8, 8, 8)))] * 2, Affine.identity(3))  # imports do not count
    with peak_memory() as peak:
        found = score(image, image, Sampled(transform, grid))
    assert peak.bytes < 16 * image.data.numel() * image.data.element_size()  # 9; 21 with points and determinant whole
    assert float(found.sd_log_jacobian) == pytest.approx(float(sd_log_jacobian(transform.field, grid)), rel=1e-5)
    expected = sd_log_jacobian_learn2reg(transform.field, grid)
    assert float(found.sd_log_jacobian_learn2reg) == pytest.approx(float(expected), rel=1e-5)


def test_non_diffeomorphic_volume_of_an_affine_map_needs_no_grid():
    fixed, moving = pair()
    matrix = torch.diag(torch.tensor([-1.5, 1.0, 1.0, 1.0]))
    affine, field = (Affine(matrix), Displacement(Affine(matrix).displacement(fixed.grid), fixed.grid))
    for transform in (affine, field):
        row = score(fixed, moving, transform, folds=True).row()
        assert row["ndv_percent"] == pytest.approx(150, rel=1e-4)
