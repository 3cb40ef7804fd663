import numpy as np
import pytest
import SimpleITK as sitk
import torch

from learnreg.data import ImageStore, ModelSpace, RegistrationData, duplicates, fold_of, read_pairs, read_subjects
from learnreg.data.checks import check_subjects
from learnreg.data.splits import check_apart
from learnreg.io import read_image
from tests.data.test_data import write

SPACE = ModelSpace(1.0, (16, 16, 16))


def table(folder, text, name="data.csv"):
    (folder / name).write_text(text)
    return folder / name


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        write(tmp_path / "images" / f"s{i}.nii.gz", i)
    return tmp_path


def names(subjects):
    return [subject.name for subject in subjects]


def blocks(path, **options):
    data = RegistrationData(path, SPACE, **options)
    return names(data.subjects("train")), names(data.subjects("validation"))


def test_splits_by_a_column_by_names_and_by_groups(folder):
    rows = "".join(f"images/s{i}.nii.gz,p{i // 2},{'train' if i < 4 else 'validation'}\n" for i in range(6))
    path = table(folder, "image,group,split\n" + rows)
    by_column = (["s0", "s1", "s2", "s3"], ["s4", "s5"])
    assert blocks(path) == by_column
    assert blocks(path, train=["p0", "p1"], validation=["p2"]) == by_column
    assert blocks(path, train=["s3", "s1"], validation=["s4", "s5"]) == (["s1", "s3"], ["s4", "s5"])
    assert blocks(path, train=[0, 4], validation=[4, 6]) == by_column
    with pytest.raises(ValueError, match="data.train names 's9', which .* does not have; it has p0, p1, p2"):
        blocks(path, train=["s9"])
    with pytest.raises(ValueError, match="does not tell which images to take for data.train"):
        blocks(folder)
    with pytest.raises(ValueError, match=r"data.validation=\['s1'\] holds one image"):
        blocks(path, validation=["s1"])
    with pytest.raises(ValueError, match="has split 'trian' for .*s0.nii.gz; it is train, validation or test"):
        read_subjects(table(folder, "image,split\nimages/s0.nii.gz,trian\n"))


def test_folds_keep_groups_together(folder):
    groups = "aaabcd"
    path = table(folder, "image,group\n" + "".join(f"images/s{i}.nii.gz,{g}\n" for i, g in enumerate(groups)))
    subjects = read_subjects(path)
    seen = []
    for fold in range(3):
        train, validation = fold_of(subjects, 3, fold)
        assert not {s.group for s in train} & {s.group for s in validation}
        assert len(train) + len(validation) == 6
        seen += names(validation)
    assert sorted(seen) == [f"s{i}" for i in range(6)]
    assert blocks(path, folds=2, fold=1) == (["s0", "s1", "s2"], ["s3", "s4", "s5"])
    with pytest.raises(ValueError, match=r"set data\.train=null"):
        blocks(path, folds=2, train=[0, 2])
    with pytest.raises(ValueError, match="needs as many groups of images, got 4"):
        fold_of(subjects, 5, 0)
    with pytest.raises(ValueError, match="got fold=2 of folds=2"):
        fold_of(subjects, 2, 2)
    pairs = table(folder, "fixed,moving\n" + "".join(f"images/s0.nii.gz,images/s{i}.nii.gz\n" for i in range(1, 5)))
    train, validation = fold_of(read_pairs(pairs), 2, 0)  # the atlas is in both
    assert [len(train), len(validation)] == [2, 2]


def test_nothing_is_in_two_blocks(folder):
    rows = "".join(f"images/s{i}.nii.gz,{g}\n" for i, g in enumerate("aabbbc"))
    path = table(folder, "image,group\n" + rows)

    def check(train, validation, path=folder):
        RegistrationData(path, SPACE, train=train, validation=validation).check()

    check([0, 3], [3, 6])
    with pytest.raises(
        ValueError, match=r"s2.nii.gz in data.train and .*s2.nii.gz in data.validation .* the same file"
    ):
        check([0, 3], [2, 6])
    with pytest.raises(ValueError, match=r"s2.nii.gz in data.train and .*s3.nii.gz in data.* the same group \(b\)"):
        check([0, 3], [3, 6], path)
    (folder / "images/s4.nii.gz").write_bytes((folder / "images/s0.nii.gz").read_bytes())
    with pytest.raises(ValueError, match=r"s0.nii.gz in data.train and .*s4.nii.gz in .* the same content"):
        check([0, 3], [3, 6])
    pairs = table(folder, "fixed,moving\n" + "".join(f"images/s5.nii.gz,images/s{i}.nii.gz\n" for i in range(4)))
    check([0, 2], [2, 4], pairs)  # an atlas is the fixed image of every pair


def test_tables_with_tabs(folder):
    path = table(folder, "image\tsubject\nimages/s0.nii.gz\tp0\n", "data.tsv")
    assert [(s.name, s.group) for s in read_subjects(path)] == [("s0", "p0")]
    pairs = table(folder, "fixed\tmoving\nimages/s0.nii.gz\timages/s1.nii.gz\n", "pairs.tsv")
    assert read_pairs(pairs)[0][1].name == "s1"


def test_bids(tmp_path):
    for person in ("01", "02"):
        for visit in ("a", "b"):
            place = f"sub-{person}/ses-{visit}/anat/sub-{person}_ses-{visit}"
            write(tmp_path / f"{place}_T1w.nii.gz", int(person))
            write(tmp_path / f"{place}_T2w.nii.gz", 7)
            tool = tmp_path / "derivatives/tool"
            write(tool / f"{place}_dseg.nii.gz", 0, labels=True)
            write(tool / f"{place}_space-MNI_dseg.nii.gz", 0, labels=True)
            write(tool / f"{place}_desc-brain_mask.nii.gz", 0, labels=True)
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tage\tsplit\nsub-01\t30\ttrain\nsub-02\t40\tvalidation\n"
    )
    subjects = read_subjects(tmp_path, ["age"])
    assert names(subjects) == [f"sub-0{p}_ses-{v}_T1w" for p in (1, 2) for v in "ab"]
    assert [s.group for s in subjects] == ["sub-01", "sub-01", "sub-02", "sub-02"]
    assert [s.covariates for s in subjects] == [(30.0,), (30.0,), (40.0,), (40.0,)]
    assert {s.labels.name.split("_", 2)[2] for s in subjects} == {"dseg.nii.gz"}
    assert all("derivatives" in str(s.mask) for s in subjects)
    assert subjects[0].read().labels is not None
    assert [len(block) for block in blocks(tmp_path)] == [2, 2]
    (tmp_path / "derivatives/tool/sub-01/ses-a/anat/sub-01_ses-a_dseg.nii.gz").unlink()
    for kind in ("aseg", "other"):
        write(tmp_path / f"derivatives/tool/sub-01/ses-a/anat/sub-01_ses-a_desc-{kind}_dseg.nii.gz", labels=True)
    with pytest.raises(ValueError, match="sub-01_ses-a has several files of dseg"):
        read_subjects(tmp_path)


def test_channels_from_files_and_from_vectors(folder):
    several = read_subjects(table(folder, "image\nimages/s0.nii.gz; images/s1.nii.gz\n"))[0]
    image = several.read()
    ones = [read_subjects(folder)[k].read().data for k in range(2)]
    assert torch.equal(image.data, torch.cat(ones, 1))
    assert ImageStore(SPACE)(several).data.shape == (1, 2, 16, 16, 16)
    vectors = sitk.Compose(*(sitk.ReadImage(str(folder / f"images/s{k}.nii.gz")) for k in range(2)))
    sitk.WriteImage(vectors, str(folder / "vectors.mha"))
    write(folder / "labels.nii.gz", labels=True)
    stored = read_subjects(table(folder, "image,labels\nvectors.mha,labels.nii.gz\n"))[0].read()
    assert torch.equal(stored.data, image.data)
    assert stored.labels is not None
    for file, count in (("vectors.mha", 2), ("images/s0.nii.gz;images/s1.nii.gz", 2), ("images/s0.nii.gz", 1)):
        path = table(folder, f"image\n{file}\nimages/s2.nii.gz\nimages/s3.nii.gz\n")
        assert RegistrationData(path, SPACE, train=[0, 2], validation=[1, 3]).channels == count
    write(folder / "small.nii.gz", 0, (5, 6, 7))
    with pytest.raises(
        ValueError, match="small.nii.gz and .*s0.nii.gz are channels of one image, but lie on different"
    ):
        read_subjects(table(folder, "image\nimages/s0.nii.gz;small.nii.gz\n"))[0].read()


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nii"])
def test_labels_can_have_another_format(suffix, tmp_path):
    write(tmp_path / "images" / f"a.b{suffix}")
    write(tmp_path / "labels" / "a.b.nii.gz", labels=True)
    assert read_subjects(tmp_path)[0].read().labels is not None


def test_series_of_dicom(tmp_path):
    for person in ("anna", "bob"):
        place = tmp_path / "images" / person
        place.mkdir(parents=True)
        for k in range(3):
            image = sitk.GetImageFromArray(np.full((1, 4, 5), k, np.int16) + np.arange(5, dtype=np.int16))
            image.SetOrigin((0, 0, 2.0 * k))
            values = {
                "0020|0032": f"0\\0\\{2 * k}",
                "0020|0037": "1\\0\\0\\0\\1\\0",
                "0020|000e": "1.2.3",
                "0008|0060": "CT",
            }
            for key, value in values.items():
                image.SetMetaData(key, value)
            writer = sitk.ImageFileWriter()
            writer.KeepOriginalImageUIDOn()
            writer.SetFileName(str(place / f"{k}.dcm"))
            writer.Execute(image)
    write(tmp_path / "labels" / "anna.nii.gz", 0, (3, 4, 5), labels=True)
    anna, bob = read_subjects(tmp_path)
    assert [anna.name, bob.name] == ["anna", "bob"]
    assert anna.labels.name == "anna.nii.gz"
    assert bob.read().data.shape == (1, 1, 3, 4, 5)
    assert read_subjects(table(tmp_path, "image\nimages/bob\n"))[0].image == bob.image


@pytest.fixture(params=["nii.gz", "nrrd", "mha"])
def frames(request, tmp_path):
    """A file with three time points on a turned grid, and what it holds."""
    values = np.random.default_rng(0).random((3, 6, 5, 4)).astype(np.float32)
    volumes = [sitk.GetImageFromArray(frame) for frame in values]
    for volume in volumes:
        volume.SetSpacing((1.0, 2.0, 3.0))
        volume.SetOrigin((10.0, -20.0, 5.0))
        volume.SetDirection((0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    file = tmp_path / "images" / f"cine.{request.param}"
    file.parent.mkdir()
    sitk.WriteImage(sitk.JoinSeries(volumes), str(file))
    sitk.WriteImage(volumes[0], str(tmp_path / "single.nii.gz"))
    return file, values


def test_each_time_point_of_a_file_is_an_image(frames, tmp_path):
    file, values = frames
    labels = (values > 0.5).astype(np.uint8)
    (tmp_path / "labels").mkdir()
    together = sitk.JoinSeries([sitk.GetImageFromArray(frame) for frame in labels])
    together.CopyInformation(sitk.ReadImage(str(file)))
    sitk.WriteImage(together, str(tmp_path / "labels" / file.name))
    subjects = read_subjects(tmp_path)
    assert names(subjects) == ["cine_t0", "cine_t1", "cine_t2"]
    assert {subject.group for subject in subjects} == {"cine"}
    single = read_image(tmp_path / "single.nii.gz")
    for k, subject in enumerate(subjects):
        image = subject.read()
        assert np.array_equal(image.data[0, 0].numpy(), values[k])
        assert np.array_equal(image.labels[0, 0].numpy(), labels[k])
        assert image.grid.matches(single.grid)
    check_subjects(subjects, ("labels",), (16, 16, 16))
    for store in (ImageStore(SPACE), ImageStore(SPACE, tmp_path / "cache")):
        first, second = store(subjects[0]), store(subjects[1])
        assert not torch.equal(first.data, second.data)
    with pytest.raises(ValueError, match="the same file"):
        check_apart({"train": subjects[:1], "validation": subjects[1:]})


def test_a_time_point_is_chosen_by_a_column(frames, tmp_path):
    file, values = frames
    chosen = table(tmp_path, f"image,time\n{file},2\n{file},0\n")
    assert names(read_subjects(chosen)) == ["cine_t2", "cine_t0"]
    ((fixed, moving),) = read_pairs(table(tmp_path, f"fixed,fixed_time,moving,moving_time\n{file},1,{file},2\n"))
    assert np.array_equal(fixed.read().data[0, 0].numpy(), values[1])
    assert np.array_equal(moving.read().data[0, 0].numpy(), values[2])
    with pytest.raises(ValueError, match=r"has 3 time point\(s\), counted from 0; there is no 3"):
        read_subjects(table(tmp_path, f"image,time\n{file},3\n"))[0].read()
    with pytest.raises(ValueError, match="has time 'late'; it is the number of a time point"):
        read_subjects(table(tmp_path, f"image,time\n{file},late\n"))
    with pytest.raises(ValueError, match="is 4-D; choose one of its 3 time points by a column `time`"):
        check_subjects(read_pairs(table(tmp_path, f"fixed,moving\n{file},{file}\n"))[0], (), (16, 16, 16))
    with pytest.raises(ValueError, match=r"is 4-D; give one 2-D or 3-D image, .* time=0"):
        read_image(file)
    points = tmp_path / "points.csv"
    points.write_text("x,y,z\n1,2,3\n")
    with pytest.raises(ValueError, match="cannot belong to all of them"):
        read_subjects(table(tmp_path, f"image,landmarks\n{file},{points}\n"))


def test_duplicates_are_equal_in_every_byte(tmp_path):
    """Files that differ in one byte, at a place that no sample covers."""
    content = bytearray(10**6)
    for name, place in (("a", None), ("b", 123_456), ("c", None), ("d", 999_999)):
        changed = content.copy()
        if place is not None:
            changed[place] = 1
        (tmp_path / name).write_bytes(changed)
    files = [tmp_path / name for name in "abcd"]
    assert duplicates(files) == [[tmp_path / "a", tmp_path / "c"]]


def test_names_of_nnunet(tmp_path):
    """The channels of a case have four digits, its labels have none; its dataset.json lists no files."""
    for case in ("liver_001", "liver_002"):
        for channel in range(2):
            write(tmp_path / "imagesTr" / f"{case}_{channel:04}.nii.gz", channel)
        write(tmp_path / "labelsTr" / f"{case}.nii.gz", labels=True)
    for step in ("a folder", "with its dataset.json"):
        if step != "a folder":
            (tmp_path / "dataset.json").write_text('{"numTraining": 2, "channel_names": {"0": "CT", "1": "PET"}}')
        subjects = read_subjects(tmp_path)
        assert [subject.labels.name for subject in subjects] == ["liver_001.nii.gz", "liver_002.nii.gz"], step
        assert [[file.name for file in subject.channels] for subject in subjects] == [
            ["liver_001_0001.nii.gz"],
            ["liver_002_0001.nii.gz"],
        ]
        image = subjects[0].read()
        assert image.data.shape[1] == 2
        assert image.labels is not None
    assert read_subjects(tmp_path / "dataset.json") == subjects
    assert read_pairs(tmp_path) is None


def test_images_whose_names_end_in_digits_stay_apart(tmp_path):
    """Learn2Reg's names: each image has labels of its own name, so the digits are no channel."""
    for number in range(2):
        write(tmp_path / "images" / f"case_000{number}.nii.gz", number)
        write(tmp_path / "labels" / f"case_000{number}.nii.gz", labels=True)
    assert [(s.name, s.labels.name, s.channels) for s in read_subjects(tmp_path)] == [
        (f"case_000{number}", f"case_000{number}.nii.gz", ()) for number in range(2)
    ]
    (tmp_path / "labels" / "case_0000.nii.gz").rename(tmp_path / "labels" / "case.nii.gz")
    (tmp_path / "labels" / "case_0001.nii.gz").unlink()
    (one,) = read_subjects(tmp_path)
    assert (one.name, one.labels.name, len(one.channels)) == ("case_0000", "case.nii.gz", 1)
