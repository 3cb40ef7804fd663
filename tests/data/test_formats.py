import numpy as np
import pytest
import SimpleITK as sitk
import torch

from learnreg.data import ImageStore, ModelSpace, RegistrationData, duplicates, fold_of, read_pairs, read_subjects
from learnreg.data.checks import check_subjects
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


def test_a_file_of_time_points_is_refused_with_the_remedy(tmp_path):
    frames = sitk.GetImageFromArray(np.random.rand(2, 12, 14, 10).astype(np.float32), isVector=False)
    sitk.WriteImage(frames, str(tmp_path / "a.nii.gz"))
    with pytest.raises(ValueError, match="a.nii.gz is 4-D; give one 2-D or 3-D image, for example one time point"):
        read_subjects(tmp_path)[0].read()
    with pytest.raises(ValueError, match="a.nii.gz is 4-D, which is read as several time points; write one 3-D file"):
        check_subjects(read_subjects(tmp_path), (), (16, 16, 16))


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
