import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from learnreg.data.augmentation import RandomTransform
from learnreg.data.datamodule import RegistrationData
from learnreg.data.datasets import OrderedPairs, PairDataset, collate, reversed_pairs
from learnreg.data.formats import read_pairs, read_subjects
from learnreg.data.preprocessing import ModelSpace, normalized, onto_grid
from learnreg.data.store import ImageStore
from learnreg.data.synthesis import changed_intensities, random_velocity
from learnreg.grid import Grid
from learnreg.image import Image, stack
from learnreg.metrics import folding_fraction
from tests.conftest import blob_image, make_grid, smooth_image


def write(path, seed=0, shape=(12, 14, 10), labels=False):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 3, shape).astype(np.uint8) if labels else rng.random(shape).astype(np.float32)
    image = sitk.GetImageFromArray(values)
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def folder(tmp_path):
    for i in range(5):
        write(tmp_path / "images" / f"{i}.nii.gz", i, (12 + i, 14, 10))
        write(tmp_path / "labels" / f"{i}.nii.gz", i, (12 + i, 14, 10), labels=True)
    return tmp_path


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e4, 0.0), (1e-4, 0.0), (1.0, -1024.0)])
def test_normalized_does_not_depend_on_the_scale(scale, offset):
    image = smooth_image(make_grid(dtype=torch.float64))
    plain = normalized(image)
    changed = normalized(image.with_data(image.data * scale + offset))
    assert torch.allclose(plain.data, changed.data, atol=1e-6)
    assert float(plain.data.min()) == 0
    assert float(plain.data.max()) == 1


def test_normalized_sparse_and_constant_images():
    grid = Grid.regular((20, 20))
    data = torch.zeros(1, 1, 20, 20)
    data[..., 3, 4] = 7.0
    assert float(normalized(Image(data, grid)).data.max()) == 1
    with pytest.raises(ValueError, match="photo is constant"):
        normalized(Image(torch.zeros(1, 1, 20, 20), grid), name="photo")


@pytest.mark.parametrize("shape", [(13, 16, 11), (14, 17, 20)])
def test_model_space_copies_voxels_where_the_spacing_agrees(shape):
    """Axis-aligned images of the model's spacing are padded, not interpolated."""
    for name in ("LPS", "RAS", "permuted"):
        image = blob_image(make_grid(name, shape, (1.0, 1.0, 1.0)))
        placed = ModelSpace(1.0, (32, 32, 32)).place(image)
        inside = placed.data[placed.data > 1e-6]
        assert torch.allclose(inside.sort().values, image.data[image.data > 1e-6].sort().values, atol=1e-6)
        assert int((placed.labels == 2).sum()) == int((image.labels == 2).sum())
        assert (placed.grid.center - image.grid.center).abs().max() <= 0.51


def test_model_space_covers_an_image_that_is_larger():
    grid = make_grid("oblique", (30, 31, 32), (1.0, 1.0, 1.0))
    space = ModelSpace(1.0, (32, 32, 32), multiple=16)
    assert space.grid_for(grid).shape == (32, 32, 32)
    covering = space.grid_for(grid, cover=True)
    normalized_corners = covering.to_normalized(grid.points[:, ::29, ::30, ::31]).abs()
    assert normalized_corners.max() <= 1
    assert all(n % 16 == 0 for n in covering.shape)
    with pytest.raises(ValueError, match="works in 3-D"):
        space.grid_for(Grid.regular((9, 9)))
    with pytest.raises(ValueError, match="works in 2-D"):
        ModelSpace((1.0, 1.0)).grid_for(grid)


def test_content_is_put_in_the_middle():
    """Two bodies far apart in their fields of view lie on each other when placed."""
    grid = make_grid(shape=(40, 44, 48), spacing=(1.0, 1.0, 1.0), dtype=torch.float32)
    far = [torch.zeros(1, 1, *grid.shape) for _ in range(2)]
    far[0][..., 4:16, 5:17, 6:20] = 1
    far[1][..., 25:37, 28:40, 30:44] = 1
    placed = [ModelSpace(1.0, (24, 24, 24), content=True).place(Image(d, grid)).data for d in far]
    assert float(placed[0].sum()) == pytest.approx(float(far[0].sum()))
    assert torch.allclose(placed[0], placed[1], atol=1e-5)


def test_borders_continue_where_a_field_of_view_ends():
    """As numpy pads, whether or not zeros already lie around the crop; the field of view is the mask."""
    rng = np.random.default_rng(0)
    crop = rng.uniform(0.1, 1.0, (14, 16, 12))
    space = ModelSpace(1.0, (24, 24, 24), padding="border")
    for before in ((0, 0, 0), (5, 4, 6)):
        enlarged = np.pad(crop, [(n, n) for n in before])
        image = Image(torch.from_numpy(enlarged)[None, None], Grid.regular(enlarged.shape, dtype=torch.float64))
        placed = space.place(space.seen(image))
        expected = np.pad(crop, [(5, 5), (4, 4), (6, 6)], mode="edge")
        assert np.allclose(placed.data[0, 0].numpy(), expected, atol=1e-5)
        counted = np.pad(np.ones_like(crop), [(5, 5), (4, 4), (6, 6)])
        assert np.array_equal(placed.mask[0, 0].numpy(), counted)
    for make in (ModelSpace, RandomTransform):
        with pytest.raises(ValueError, match="zeros or border, got 'edge'"):
            make(padding="edge")


def test_onto_a_coarser_grid_averages_first():
    grid = Grid.regular((32, 32, 32), dtype=torch.float64)
    noise = Image(torch.randn(1, 1, 32, 32, 32, dtype=torch.float64), grid)
    assert float(onto_grid(noise, grid.resized((8, 8, 8))).data.std()) < 0.25  # 1/8 for a mean of 64


def test_folder_formats(folder):
    subjects = read_subjects(folder)
    assert [s.name for s in subjects] == ["0", "1", "2", "3", "4"]
    assert all(s.labels is not None and s.mask is None for s in subjects)
    assert read_pairs(folder) is None
    assert subjects[0].read().labels is not None
    assert len(read_subjects(folder / "images")) == 5


def test_csv_formats(folder):
    (folder / "images.csv").write_text("image,labels\nimages/0.nii.gz,labels/0.nii.gz\nimages/1.nii.gz,\n")
    subjects = read_subjects(folder / "images.csv")
    assert subjects[0].labels is not None
    assert subjects[1].labels is None
    (folder / "pairs.csv").write_text("fixed,moving,fixed_labels\nimages/0.nii.gz,images/1.nii.gz,labels/0.nii.gz\n")
    pairs = read_pairs(folder / "pairs.csv")
    assert pairs[0][0].labels.name == "0.nii.gz"
    (folder / "bad.csv").write_text("picture\nimages/0.nii.gz\n")
    with pytest.raises(ValueError, match="needs a column `image`"):
        read_subjects(folder / "bad.csv")
    (folder / "gone.csv").write_text("image\nimages/9.nii.gz\n")
    with pytest.raises(FileNotFoundError, match="named by the data set"):
        read_subjects(folder / "gone.csv")


def test_learn2reg_json(folder):
    for i in range(2):
        write(folder / "imagesTr" / f"c_{i}.nii.gz", i)
        write(folder / "labelsTr" / f"c_{i}.nii.gz", i, labels=True)
    names = [f"./imagesTr/c_{i}.nii.gz" for i in range(2)]
    content = {"training": [{"image": n, "label": n.replace("images", "labels")} for n in names]}
    (folder / "dataset.json").write_text(json.dumps(content))
    assert [s.labels.name for s in read_subjects(folder / "dataset.json")] == ["c_0.nii.gz", "c_1.nii.gz"]
    assert read_pairs(folder) is None
    content["registration_val"] = [{"fixed": names[0], "moving": names[1]}]
    (folder / "dataset.json").write_text(json.dumps(content))
    pairs = read_pairs(folder)
    assert pairs[0][1].image.name == "c_1.nii.gz"
    assert pairs[0][1].labels is not None
    (folder / "broken.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_subjects(folder / "broken.json")


def test_datasets(folder):
    cache = ImageStore(ModelSpace(1.0, (16, 16, 16)))
    subjects = read_subjects(folder)
    pairs = OrderedPairs(subjects, cache)
    assert len(pairs) == 20
    seen = {tuple(subjects.index(s) for s in pairs.pair(i)) for i in range(20)}
    assert len(seen) == 20
    assert all(a != b for a, b in seen)
    fixed, moving = collate([pairs[0], pairs[5]])
    assert fixed.data.shape == moving.labels.shape == (2, 1, 16, 16, 16)
    assert cache(subjects[0]).data is cache(subjects[0]).data  # read once
    assert cache(subjects[0]).grid.center.abs().max() < 1e-5
    assert [(f.name, m.name) for f, m in reversed_pairs(subjects)] == [("0", "4"), ("1", "3"), ("3", "1"), ("4", "0")]
    assert len(PairDataset(reversed_pairs(subjects), cache)) == 4
    with pytest.raises(ValueError, match="one shape for all"):
        ImageStore(ModelSpace(1.0))
    with pytest.raises(ValueError, match="at least 2 subjects"):
        OrderedPairs(subjects[:1], cache)


def test_datamodule(folder):
    data = RegistrationData(folder, ModelSpace(1.0, (16, 16, 16)), train=[0, 3], validation=[3, 5], batch_size=2)
    data.setup()
    fixed, _ = next(iter(data.train_dataloader()))
    assert fixed.data.shape == (2, 1, 16, 16, 16)
    assert len(list(data.val_dataloader())) == 2
    assert [case.name for case in data.cases(1)] == ["3 < 4"]
    with pytest.raises(ValueError, match=r"validation=\[3, 9\] does not lie within the 5 images"):
        RegistrationData(folder, ModelSpace(1.0, (16,) * 3), train=[0, 3], validation=[3, 9]).setup()
    with pytest.raises(ValueError, match="takes"):
        RegistrationData(folder, ModelSpace(1.0, (16,) * 3), train=[0], validation=[3, 5])


def test_stack_needs_one_shape():
    with pytest.raises(ValueError, match="one shape"):
        stack([smooth_image(make_grid()), smooth_image(make_grid(shape=(5, 5, 5)))])


def test_a_mask_of_one_image_is_kept_in_a_batch():
    """An image without a mask counts as a whole; it must not make what is unknown of another one known."""
    image = smooth_image(make_grid())
    masked = Image(image.data, image.grid, (image.data > image.data.median()).double())
    both = stack([image, masked])
    assert torch.equal(both.mask, torch.cat([torch.ones_like(masked.mask), masked.mask]))
    assert stack([image, image]).mask is None


def test_augmentation_moves_image_and_labels_together():
    torch.manual_seed(0)
    image = blob_image(make_grid(shape=(24, 24, 24), spacing=(1.0, 1.0, 1.0), dtype=torch.float32))
    for bend in (0.0, 1.2):
        changed = RandomTransform(degrees=10, shift=3, bend=bend, spacing=8.0, gamma=0.0)(image)
        bright, labels = changed.data > 0.3, changed.labels > 0
        overlap = 2 * (bright & labels).sum() / (bright.sum() + labels.sum())
        assert overlap > 0.9
        assert (changed.data - image.data).abs().max() > 0.1
    assert RandomTransform(probability=0.0)(image) is image


def test_augmentation_beyond_an_image():
    """The mask tells what was moved in, whatever lies there."""
    image = Image(torch.ones(1, 1, 16, 16, 16), Grid.regular((16,) * 3), torch.ones(1, 1, 16, 16, 16))
    moved = {}
    for padding in ("border", "zeros"):
        torch.manual_seed(0)
        moved[padding] = RandomTransform(shift=5.0, gamma=0.0, padding=padding)(image)
    assert torch.equal(moved["border"].mask, moved["zeros"].mask)
    assert float(moved["zeros"].mask.mean()) < 0.95
    assert torch.allclose(moved["zeros"].data, moved["zeros"].mask)
    assert torch.allclose(moved["border"].data, image.data)


def test_augmentation_of_intensities():
    torch.manual_seed(0)
    image = Image(torch.full((1, 1, 24, 24, 24), 0.5), Grid.regular((24, 24, 24)))
    still = {"degrees": 0.0, "scale": 0.0, "shift": 0.0, "gamma": 0.0}
    assert torch.allclose(RandomTransform(**still)(image).data, image.data)
    factors = RandomTransform(**still, bias=0.3)(image).data / 0.5
    assert 0.2 < float(factors.log().abs().max()) < 0.31
    assert float(factors.diff(dim=2).abs().max()) < 0.03  # smooth
    spread = torch.stack([RandomTransform(**still, noise=0.1)(image).data.std() for _ in range(100)])
    assert float(spread.min()) < 0.02 < 0.08 < float(spread.max()) < 0.105


def test_synthetic_deformations_are_diffeomorphic_and_repeatable():
    grid = Grid.regular((24, 24, 24), 4.0)
    first, again = (
        random_velocity(grid, magnitude=8.0, smoothness=16.0, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert torch.equal(first.field, again.field)
    assert first.field.norm(dim=1).flatten().quantile(0.95) == pytest.approx(8.0, rel=0.01)
    assert float(folding_fraction(first.displacement(grid), grid)) == 0
    image = blob_image(grid)
    changed = changed_intensities(image, generator=torch.Generator().manual_seed(3))
    assert 0 <= float(changed.data.min()) <= float(changed.data.max()) <= 1
    assert torch.equal(changed.labels, image.labels)


def test_template_pairs_have_their_truth():
    """Warping the moving labels by the truth gives the fixed ones, up to the nearest neighbor."""
    pytest.importorskip("nilearn")
    from learnreg.data.mni152 import MNI152Data
    from learnreg.metrics import dice_scores
    from learnreg.warping import warp

    data = MNI152Data(spacing=4.0, subjects=2, validation_subjects=2)
    case = next(data.cases(1))
    before = dice_scores(case.moving.labels, case.fixed.labels, [1, 2]).mean()
    after = dice_scores(warp(case.moving, case.truth, case.fixed.grid).labels, case.fixed.labels, [1, 2]).mean()
    assert before < 0.75
    assert after > max(before + 0.08, 0.8)
    assert data.space.shape == case.fixed.grid.shape


def test_covariates_come_with_the_images(folder):
    files = sorted((folder / "images").iterdir())[:3]
    table = folder / "ages.csv"
    table.write_text("image,age,sex\n" + "\n".join(f"{f},{30 + 10 * k},{k % 2}" for k, f in enumerate(files)))
    space = ModelSpace(2.0, (16, 16, 16))
    data = RegistrationData(
        table,
        space,
        train=(0, 2),
        validation=(1, 3),
        batch_size=2,
        augmentation=RandomTransform(),
        covariates=["age", "sex"],
    )
    data.setup()
    fixed, moving = next(iter(data.train_dataloader()))
    rows = {tuple(row) for image in (fixed, moving) for row in image.covariates.tolist()}
    assert rows == {(30.0, 0.0), (40.0, 1.0)}
    with pytest.raises(ValueError, match="no column 'weight'"):
        read_subjects(table, ["weight"])
    table.write_text(f"image,age\n{files[0]},old\n")
    with pytest.raises(ValueError, match="needs a number in age"):
        read_subjects(table, ["age"])
    with pytest.raises(ValueError, match="need a CSV"):
        read_subjects(folder, ["age"])


def test_pairs_within_groups_and_with_an_atlas(folder):
    lines = [f"images/{i}.nii.gz,labels/{i}.nii.gz,{'ab'[i % 2]}" for i in range(5)]
    (folder / "visits.csv").write_text("image,labels,group\n" + "\n".join(lines))
    space = ModelSpace(1.0, (16, 16, 16))
    settings = {"train": [0, 4], "validation": [0, 4], "batch_size": 1}
    visits = RegistrationData(folder / "visits.csv", space, pairing="within", **settings)
    assert [(f.name, m.name) for f, m in visits.pairs("train")] == [("0", "2"), ("1", "3"), ("2", "0"), ("3", "1")]
    assert len(visits.train_dataloader()) == 4
    with pytest.raises(ValueError, match="the same `group`"):
        RegistrationData(folder, space, pairing="within", **settings).pairs("train")
    with pytest.raises(ValueError, match="all or within"):
        RegistrationData(folder, space, pairing="some", **settings)

    atlas = RegistrationData(folder, space, atlas=folder / "images" / "4.nii.gz", **settings)
    assert [(f.name, m.name) for f, m in atlas.pairs("train")] == [("4", str(i)) for i in range(4)]
    fixed = [batch[0].data for batch in atlas.train_dataloader()]
    assert all(torch.equal(data, fixed[0]) for data in fixed)
