import base64
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import learnreg
from learnreg.configs.files import method_names
from learnreg.data.augmentation import reoriented
from learnreg.data.datasets import Case
from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.io import to_sitk, write_image
from learnreg.methods import IterativeMethod, OneShotMethod, Registration, load_method, register
from learnreg.methods.evaluation import evaluate, score_case, summarize, table
from learnreg.metrics import dice_scores
from learnreg.networks import Network, Oriented, Pyramid
from learnreg.networks.checkpoint import Checkpoint
from learnreg.objective import Objective, Penalty
from learnreg.optimization import CenterOfMass, FieldStage, LinearStage
from learnreg.orientation import Orientation
from learnreg.regularization import Diffusion
from learnreg.similarity import MSE, NCC, FeatureSimilarity
from learnreg.transforms import Affine, Composite, Displacement, chain
from tests.conftest import DIRECTIONS, blob_image, make_grid


def pair(name="LPS", other="oblique"):
    fixed = blob_image(make_grid(name, (24, 26, 30), (1.2, 1.2, 1.5), torch.float32))
    moving_grid = make_grid(other, (26, 30, 26), (1.3, 1.1, 1.5), torch.float32)
    return fixed, blob_image(moving_grid, (2.5, -1.5, 1.0), (8.0, 8.0, 6.5))


def untrained(space=None):
    torch.manual_seed(0)
    objective = Objective(MSE(), {"diffusion": Penalty(Diffusion(), 0.002)})
    network = Pyramid(3, (4, 8)).eval()
    stage = FieldStage(objective, factors=(1,), iterations=(40,), learning_rate=0.3, tolerance=0)
    return Checkpoint(network, objective, space or {"spacing": 1.5, "shape": [32, 32, 32], "multiple": 16}, {}, stage)


def improved(result):
    before = dice_scores(
        learnreg.warp(result.moving, Affine.identity(3), result.fixed.grid).labels, result.fixed.labels, [1, 2]
    )
    return float(before.mean()), float(dice_scores(result.warped.labels, result.fixed.labels, [1, 2]).mean())


@pytest.mark.parametrize("name", method_names())
@pytest.mark.slow
def test_every_preset_improves_a_pair(name):
    before, after = improved(register(*pair(), name))
    assert before < 0.75
    assert after > before + (0.05 if name in ("rigid", "affine") else 0.1)


def test_a_result_shows_itself():
    """In a line, and in a notebook as a picture; not as its numbers."""
    fixed, moving = pair()
    result = Registration(Composite((Affine.identity(3), Affine.translation([1.0, 0.0, 0.0]))), fixed, moving)
    assert repr(result) == "Registration(Affine, Affine; 30 x 26 x 24 to 26 x 30 x 26 voxels, 0.00 s)"
    assert repr(fixed).startswith("Image((1, 1, 24, 26, 30), float32, Grid(")
    shown = result._repr_html_()
    picture = base64.b64decode(shown.partition("base64,")[2].partition('"')[0])
    assert picture.startswith(b"\x89PNG")
    assert "Registration(" in shown


def test_zeros_around_a_field_of_view_change_nothing():
    """A model that continues borders sees the same of a crop and of the crop enlarged by zeros."""
    space = {"spacing": 1.0, "shape": [32, 32, 32], "multiple": 16, "padding": "border"}
    method = OneShotMethod(untrained(space))
    generator = torch.Generator().manual_seed(0)
    crops = [torch.rand(1, 1, *shape, generator=generator) + 0.2 for shape in ((20, 24, 18), (22, 20, 20))]
    answers = []
    for margin in (0, 6):
        enlarged = [torch.nn.functional.pad(crop, [margin] * 6) for crop in crops]
        images = [Image(data, Grid.regular(data.shape[2:])) for data in enlarged]
        pair = method.prepare(*images)
        answers.append((pair.fixed.data, pair.moving.data, pair.fixed.mask, pair.moving.mask))
    for near, far in zip(*answers, strict=True):
        assert torch.allclose(near, far, atol=1e-5)


@pytest.mark.parametrize("other", sorted(DIRECTIONS))
@pytest.mark.slow
def test_the_result_does_not_depend_on_the_orientation_of_the_files(other):
    before, after = improved(register(*pair("RAS", other), "fast"))
    assert after > max(before, 0.85)


@pytest.mark.slow
def test_paths_sitk_images_and_images_are_the_same(tmp_path):
    fixed, moving = pair()
    for name, image in (("f", fixed), ("m", moving)):
        write_image(image.data[0], image.grid, tmp_path / f"{name}.nii.gz")
    method = IterativeMethod({"center": CenterOfMass(), "affine": LinearStage(Objective(NCC()))})
    by_path = register(tmp_path / "f.nii.gz", str(tmp_path / "m.nii.gz"), method)
    by_sitk = register(*(to_sitk(i.data[0], i.grid) for i in (fixed, moving)), method)
    by_image = register(Image(fixed.data, fixed.grid), Image(moving.data, moving.grid), method)
    for other in (by_sitk, by_image):
        assert torch.allclose(by_path.transform.matrix, other.transform.matrix, atol=1e-3)


@pytest.mark.parametrize("names", [("LPS", "oblique"), ("oblique", "permuted"), ("permuted", "RAS")])
@pytest.mark.slow
def test_sitk_applies_the_saved_transform_with_the_same_result(names, tmp_path):
    """99 % of voxels within 1 % of the intensity range, on oblique anisotropic grids that differ."""
    result = register(*pair(*names), "deformable")
    result.save_transform(tmp_path / "t.h5")
    fixed, moving = (to_sitk(i.data[0], i.grid) for i in (result.fixed, result.moving))
    theirs = sitk.GetArrayFromImage(
        sitk.Resample(moving, fixed, sitk.ReadTransform(str(tmp_path / "t.h5")), sitk.sitkLinear, 0.0)
    )
    difference = np.abs(theirs - result.warped.data[0, 0].numpy())
    assert (difference <= 0.01 * (theirs.max() - theirs.min())).mean() > 0.99


def test_one_shot_of_a_network_that_predicts_nothing_is_the_alignment_of_centers():
    fixed, moving = pair()
    result = OneShotMethod(untrained())(fixed, moving)
    shift = result.transform(fixed.grid.center[:, None]) - fixed.grid.center[:, None]
    assert (shift[:, 0] - (moving.grid.center - fixed.grid.center)).abs().max() < 1.0  # mm; the model's grid is 1.5 mm
    assert isinstance(result.transform, Composite)


@pytest.mark.slow
def test_refinement_goes_on_from_the_network_on_any_grid():
    fixed, moving = pair("permuted", "oblique")
    plain, refined = (OneShotMethod(untrained(), refine=n)(fixed, moving) for n in (0, 40))
    assert improved(refined)[1] > improved(plain)[1] + 0.05
    assert len(refined.history[0].losses) == 40


def test_one_shot_covers_images_larger_than_the_models_shape():
    fixed, moving = pair()
    result = OneShotMethod(untrained({"spacing": 1.0, "shape": [16, 16, 16], "multiple": 16}), refine=5)(fixed, moving)
    assert result.warped.data.shape == fixed.data.shape


@pytest.mark.parametrize("further", [{}, {"refine": 5}, {"initial": Affine.translation([2.0, -1.0, 1.0])}])
def test_flips_and_turns_of_both_images_change_no_answer_of_an_oriented_network(further):
    """Their files have lost the orientation: the samples are stored in another order, and nothing says so."""
    checkpoint = untrained({"spacing": 1.0, "shape": [32, 32, 32], "multiple": 16})
    for parameter in checkpoint.network.parameters():
        torch.nn.init.normal_(parameter, std=0.12)
    network = Oriented(checkpoint.network, channels=(4, 8), samples=8).eval()
    method = OneShotMethod(replace(checkpoint, network=network), refine=further.get("refine", 0))
    grid = Grid.regular((17, 20, 25))  # odd and even: the center is on a sample or between two
    fixed, moving = (blob_image(grid, shift) for shift in ((0.0, 0.0, 0.0), (2.0, -1.5, 1.0)))
    initial = further.get("initial")
    found = method(fixed, moving, initial=initial)
    assert found.transform.displacement(grid).abs().max() > 1
    turned_back = 0
    for orientation in Orientation.every(3)[::5]:
        images = [reoriented(image, orientation) for image in (fixed, moving)]
        turn = Affine.about(orientation.matrix[None], torch.zeros(1, 3), grid.center)
        start = None if initial is None else chain(turn.inverse(), initial, turn)
        back = chain(turn, method(*images, initial=start).transform, turn.inverse())
        apart = (back.displacement(grid) - found.transform.displacement(grid)).abs()
        assert apart.mean() < 1e-4
        assert apart.max() < (0.1 if "refine" in further else 1e-3)  # Adam amplifies rounding in single voxels
        turned_back += method.prepare(*images).turn is not None
    assert turned_back > 7


def test_initial_transform_is_used():
    fixed, moving = pair()
    initial = Affine.translation([2.5, -1.5, 1.0])
    stage = LinearStage(Objective(NCC()), "translation", factors=(2,), iterations=(0,))
    result = IterativeMethod({"stage": stage})(fixed, moving, initial=initial)
    assert torch.allclose(result.transform.matrix, initial.matrix)


def test_evaluation_against_a_known_transform():
    fixed, moving = pair()
    truth = Affine.translation([3.0, 0.0, 4.0])
    row = score_case(Case("a", fixed, moving, truth), Affine.identity(3))
    assert row["error_mm"] == pytest.approx(5.0, abs=1e-4)
    assert score_case(Case("a", fixed, fixed, truth), truth)["error_mm"] == pytest.approx(0, abs=1e-5)
    assert score_case(Case("a", fixed, fixed), Affine.identity(3))["dice"] == 1


def test_evaluation_without_a_truth_is_by_similarity():
    fixed, _ = pair()
    bare = Image(fixed.data, fixed.grid)
    same = score_case(Case("a", bare, bare), Affine.identity(3))
    apart = score_case(Case("a", bare, bare), Affine.translation([6.0, 0.0, 0.0]))
    assert same["ncc"] == pytest.approx(1, abs=1e-4)
    assert same["information"] > apart["information"] > 0
    assert same["folding_percent"] == apart["ndv_percent"] == 0
    nowhere = score_case(Case("a", bare, bare), Affine.translation([1e4, 0.0, 0.0]))
    assert "ncc" not in nowhere and "information" not in nowhere
    assert "| correlation " in table([{"case": "a", "method": "start", **same}])
    assert "ncc" not in score_case(Case("a", fixed, fixed), Affine.identity(3))


def test_a_summary_has_the_robustness_of_learn2reg():
    rows = [{"method": "m", "dice": k / 10, "tre_mm": float(k)} for k in range(11)]
    (summary,) = summarize(rows)
    assert summary["dice_30"] == pytest.approx(0.3)
    assert summary["tre_mm_30"] == pytest.approx(7.0)


@pytest.mark.slow
def test_evaluation_table():
    cases = [Case(str(i), *pair()) for i in range(2)]
    rows = evaluate(cases, {"affine": load_method("affine")})
    assert [row["method"] for row in rows] == ["start", "affine"] * 2
    summary = summarize(rows)
    assert summary[1]["dice"] > summary[0]["dice"]
    assert summary[1]["cases"] == 2
    lines = table(rows).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert "SDlogJ L2R" in lines[0]


def test_single_slices_are_evaluated_in_their_plane():
    grid = Grid.regular((20, 24), 1.5)
    flat = [blob_image(grid, shift, (9.0, 7.0)) for shift in ((0.0, 0.0), (3.0, -1.5))]
    slices = [Image(image.data.unsqueeze(2), Grid.regular((1, 20, 24), 1.5)) for image in flat]
    found = {}
    rows = evaluate([Case("a", *slices)], {"rigid": load_method("rigid")}, on_case=lambda _, done: found.update(done))
    expected = register(*slices, "rigid", progress=False).transform
    assert torch.equal(found["rigid"].transform.matrix, expected.matrix)
    assert torch.equal(expected.matrix[0, 2], torch.tensor([0.0, 0.0, 1.0, 0.0]))
    assert rows[1]["ncc"] > max(rows[0]["ncc"], 0.95)


def test_a_method_does_not_see_the_labels():
    class Looks(IterativeMethod):
        def forward(self, fixed, moving, **kwargs):
            assert fixed.labels is None
            assert moving.labels is None
            return super().forward(fixed, moving, **kwargs)

    evaluate([Case("a", *pair())], {"looks": Looks(dict(load_method("affine").stages.items()))})


def test_failures(tmp_path):
    fixed, moving = pair()
    flat = Image(torch.rand(1, 1, 8, 8), Grid.regular((8, 8)))
    with pytest.raises(ValueError, match="fixed image is 3-D and the moving image is 2-D"):
        register(fixed, flat)
    with pytest.raises(ValueError, match="the moving image is constant"):
        register(fixed, Image(torch.zeros_like(moving.data), moving.grid))
    with pytest.raises(ValueError, match="did you mean 'deformable'"):
        register(fixed, moving, "deformabel")
    with pytest.raises(ValueError, match="choose from accurate, affine"):
        register(fixed, moving, "xyz")
    with pytest.raises(FileNotFoundError, match="No such method file"):
        register(fixed, moving, str(tmp_path / "mine.yaml"))
    with pytest.raises(ValueError, match="give a checkpoint too"):
        register(fixed, moving, refine=3)
    with pytest.raises(TypeError, match="must be a path"):
        register(np.zeros((3, 3)), moving)
    with pytest.raises(ValueError, match="batches of 2"):
        register(Image(fixed.data.repeat(2, 1, 1, 1, 1), fixed.grid), moving)
    (tmp_path / "odd.yaml").write_text("_target_: learnreg.similarity.MSE\n")
    with pytest.raises(ValueError, match="not a Method"):
        load_method(str(tmp_path / "odd.yaml"))
    (tmp_path / "typo.yaml").write_text("_target_: learnreg.methods.iterative.IterativeMethod\nstage: []\n")
    with pytest.raises(ValueError, match="did you mean 'stages'"):
        load_method(str(tmp_path / "typo.yaml"))


def test_a_users_own_method_file(tmp_path):
    from learnreg.configs.files import config_dir

    own = tmp_path / "own.yaml"
    own.write_text((config_dir() / "method" / "affine.yaml").read_text(encoding="utf-8"))
    assert register(*pair(), str(own)).history


def test_displacement_output_can_be_refined_too():
    class Still(Network):
        def forward(self, fixed, moving):
            grid = fixed.grid.resized(tuple(n // 2 for n in fixed.grid.shape))
            return Displacement(torch.zeros(1, 3, *grid.shape), grid)

    checkpoint = untrained()
    still = Checkpoint(Still(), checkpoint.objective, checkpoint.space, {}, checkpoint.refinement)
    fixed, moving = pair()
    assert isinstance(OneShotMethod(still, refine=3)(fixed, moving).transform.transforms[1], Displacement)
    with pytest.raises(ValueError, match="no refinement stage"):
        OneShotMethod(Checkpoint(Still(), checkpoint.objective, checkpoint.space, {}), refine=3)
    with pytest.raises(ValueError, match="at least 0"):
        OneShotMethod(checkpoint, refine=-1)


def test_more_refinement_steps_are_smaller_ones():
    stage = untrained().refinement
    assert stage.limited(80).learning_rate == pytest.approx(stage.learning_rate / 2)
    assert stage.limited(10).learning_rate == stage.learning_rate
    levels = load_method("monomodal").stages["deformation"]
    assert levels.limits == (40, 60, 60, 20)
    assert levels.limited(9).limits == (2, 3, 3, 1)
    assert levels.limited(360).limits == (80, 120, 120, 40)
    assert levels.limited(360).learning_rate == pytest.approx(levels.learning_rate / 2)
    assert [sum(levels.limited(n).limits) for n in range(1, 50)] == list(range(1, 50))


class TestRefinementByMethods:
    """A method refines the answer of a network on the images themselves."""

    def test_only_the_last_stage_iterates(self):
        refined = load_method("brain").limited(30)
        assert [name for name, stage in refined.stages.items() if stage.iterations] == ["deformation"]
        assert refined.iterations == 30
        both = load_method("deformable").limited(30)
        assert both.start is None
        assert (both.iterations, both.same.iterations, both.other.iterations) == (30, 30, 30)

    def test_what_does_not_iterate_cannot_refine(self):
        for method in (IterativeMethod({"center": CenterOfMass()}), OneShotMethod(untrained())):
            with pytest.raises(InputError, match="refine"):
                method.limited(3)

    def test_it_improves_the_answer_on_the_grid_of_the_images(self):
        checkpoint = replace(untrained(), refinement=load_method("deformable"))
        fixed, moving = pair()
        before, after = (OneShotMethod(checkpoint, refine=n)(fixed, moving) for n in (0, 40))
        assert before.history == ()
        assert after.history[-1].shape == fixed.grid.shape
        assert sum(len(level.losses) for level in after.history) <= 40
        assert improved(after)[1] > improved(before)[1] + 0.1


class TestDeformedStart:
    """A start that is not linear is applied once, instead of in each iteration."""

    def test_several_linear_maps_are_one(self):
        fixed, moving = pair()
        first, second = Affine.translation([1.0, 0.5, -0.5]), Affine.translation([0.5, -1.0, 0.3])
        objective = Objective(MSE(), {"diffusion": Penalty(Diffusion(), 0.002)})
        method = IterativeMethod({"deformation": FieldStage(objective, factors=(2, 1), iterations=(5, 5))})
        one, two = (method(fixed, moving, initial=start) for start in (first.then(second), Composite((first, second))))
        points = fixed.grid.points
        assert torch.allclose(one.transform(points), two.transform(points), atol=1e-3)

    def test_the_result_includes_it(self):
        fixed, moving = pair()
        grid = fixed.grid.resized((4, 4, 4))
        start = Displacement(torch.full((1, 3, 4, 4, 4), 0.5), grid)
        method = IterativeMethod({"deformation": FieldStage(Objective(MSE()), factors=(2, 1), iterations=(0, 0))})
        found = method(fixed, moving, initial=start)
        points = fixed.grid.points
        assert torch.allclose(found.transform(points), start(points), atol=1e-5)

    @pytest.mark.parametrize("crop", [None, 2])
    def test_it_ends_where_composition_in_each_iteration_ends(self, crop):
        fixed, moving = pair()
        grid = fixed.grid.resized((6, 6, 6))
        torch.manual_seed(0)
        start = Displacement(0.7 * torch.randn(1, 3, 6, 6, 6), grid)
        objective = Objective(MSE(), {"diffusion": Penalty(Diffusion(), 0.002)})
        stage = FieldStage(objective, factors=(2, 1), iterations=(60, 60), crop=crop)
        method = IterativeMethod({"deformation": stage})
        pulled = method(fixed, moving, initial=start)
        composed = method(fixed, replace(moving, landmarks=torch.zeros(1, 1, 3)), initial=start)
        assert improved(pulled)[1] == pytest.approx(improved(composed)[1], abs=0.02)
        assert improved(pulled)[1] > improved(Registration(start, fixed, moving))[1] + 0.1


def test_a_method_moves_with_everything_in_it():
    """To another device; the meta device has no values, so nothing is left behind unnoticed."""
    stage = FieldStage(Objective(FeatureSimilarity(torch.nn.Conv3d(1, 2, 3))), features=torch.nn.Conv3d(1, 1, 1))
    for method in (IterativeMethod({"field": stage}), OneShotMethod(untrained(), refine=2)):
        parameters = list(method.to("meta").parameters())
        assert parameters
        assert all(p.is_meta for p in parameters)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_target_: torch.load\nf: evil.pt", "needs torch.load"),
        ("_target_: builtins.open\nfile: evil.txt\nmode: w", "needs builtins.open"),
        ('_target_: learnreg.methods.IterativeMethod\nstages: "${oc.create:{_target_: io.open}}"', "an interpolation"),
        ("defaults:\n  - /method/rigid@_here_\n  - _self_\nstages: {rigid: {kind: '${oc.env:HOME}'}}", "interpolation"),
        ("_target_: learnreg.methods.IterativeMethod\nstages: {a: {_target_: mine.Stage}}", r"trust=\[.mine.\]"),
    ],
)
def test_a_method_file_is_data(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.yaml").write_text(text + "\n")
    with pytest.raises(ValueError, match=message) as caught:
        load_method(str(tmp_path / "evil.yaml"))
    assert "evil.yaml" in str(caught.value)
    assert not (tmp_path / "evil.txt").exists()


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_an_empty_mask_is_refused_before_the_first_iteration(side):
    images = dict(zip(("fixed", "moving"), pair(), strict=True))
    image = images[side]
    images[side] = Image(image.data, image.grid, mask=torch.zeros_like(image.data))
    with pytest.raises(learnreg.errors.InputError, match=f"mask of the {side} image is empty"):
        register(images["fixed"], images["moving"], "rigid")
