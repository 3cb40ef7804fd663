import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch.utils.data import DataLoader

from learnreg.apps.errors import input_error, one_line
from learnreg.data import ImageStore, ModelSpace, PairDataset, RegistrationData, read_subjects, reversed_pairs
from learnreg.data.datasets import collate
from learnreg.data.files import content_of
from learnreg.errors import InputError
from tests.data.test_data import write

SPACE = ModelSpace(1.0, (16, 16, 16))


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        write(tmp_path / "data/images" / f"{i}.nii.gz", i, (12 + i, 14, 10))
        write(tmp_path / "data/labels" / f"{i}.nii.gz", i, (12 + i, 14, 10), labels=True)
        write(tmp_path / "data/masks" / f"{i}.nii.gz", i, (12 + i, 14, 10), labels=True)
    return tmp_path / "data"


@pytest.fixture
def subject(folder):
    (folder / "points.csv").write_text("x,y,z\n-2,-3,4\n-5,-6,7\n")
    return replace(read_subjects(folder)[0], landmarks=folder / "points.csv", covariates=(3.0, 4.0))


def equal(one, other):
    for part in ("data", "mask", "labels", "landmarks", "covariates"):
        ours, theirs = getattr(one, part), getattr(other, part)
        if ours is None or theirs is None or ours.dtype != theirs.dtype or not torch.equal(ours, theirs):
            return False
    return torch.equal(one.grid.affine, other.grid.affine)


def stored(folder):
    return sorted(folder.iterdir())


def never(*_):
    raise AssertionError("it was prepared again")


def test_an_image_is_the_same_with_a_folder_and_without(subject, tmp_path, monkeypatch):
    plain = ImageStore(SPACE)(subject)
    first = ImageStore(SPACE, tmp_path / "cache")(subject)
    assert len(stored(tmp_path / "cache")) == 1
    monkeypatch.setattr(ImageStore, "_prepared", never)
    again = ImageStore(SPACE, tmp_path / "cache")(subject)
    assert equal(plain, first)
    assert equal(plain, again)


def test_a_change_in_place_does_not_reach_the_folder(subject, tmp_path):
    store = ImageStore(SPACE, tmp_path / "cache")
    plain = store(subject).data.clone()
    store(subject).data.zero_()
    assert torch.equal(store(subject).data, plain)


def test_a_changed_file_is_another_image_and_a_copied_one_the_same(subject, folder, tmp_path, monkeypatch):
    before = ImageStore(SPACE, tmp_path / "cache")(subject)
    times = subject.image.stat()
    write(subject.image, 9, (12, 14, 10))
    os.utime(subject.image, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = ImageStore(SPACE, tmp_path / "cache")(subject)
    assert not torch.equal(before.data, changed.data)
    assert torch.equal(changed.data, ImageStore(SPACE)(subject).data)
    write(subject.labels, 9, (12, 14, 10), labels=True)
    assert not torch.equal(ImageStore(SPACE, tmp_path / "cache")(subject).labels, changed.labels)
    shutil.copy(subject.image, folder / "copied.nii.gz")
    monkeypatch.setattr(ImageStore, "_prepared", never)
    copied = ImageStore(SPACE, tmp_path / "cache")(replace(subject, image=folder / "copied.nii.gz"))
    assert torch.equal(copied.data, changed.data)


@pytest.mark.parametrize(
    "space",
    [
        ModelSpace(1.5, (16, 16, 16)),
        ModelSpace(1.0, (16, 16, 24)),
        ModelSpace(1.0, (16, 16, 16), content=True),
        ModelSpace(1.0, (16, 16, 16), padding="border"),
    ],
)
def test_another_option_is_another_image(space, subject, tmp_path):
    ImageStore(SPACE, tmp_path)(subject)
    assert torch.equal(ImageStore(space, tmp_path)(subject).data, ImageStore(space)(subject).data)


def test_the_code_is_part_of_the_name(subject, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    ImageStore(SPACE, cache)(subject)
    monkeypatch.setattr("learnreg.data.store._code", lambda: "changed")
    ImageStore(SPACE, cache)(subject)
    assert len(stored(cache)) == 2


@pytest.mark.parametrize("damage", [0, 7, 300, -1])
def test_a_truncated_file_is_made_again(damage, subject, tmp_path):
    cache = tmp_path / "cache"
    plain = ImageStore(SPACE, cache)(subject)
    (file,) = stored(cache)
    file.write_bytes(file.read_bytes()[:damage])
    assert equal(ImageStore(SPACE, cache)(subject), plain)
    assert equal(ImageStore(SPACE, cache)(subject), plain)


def run(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True, check=False
    )


READ = """
    import resource, sys
    from pathlib import Path
    from learnreg.data import ImageStore, ModelSpace, read_subjects
    folder, cache, limit = sys.argv[1:]
    if int(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    store = ImageStore(ModelSpace(1.0, (16, 16, 16)), cache)
    print(sum(float(store(subject).data.sum()) for subject in read_subjects(folder) for _ in range(3)))
"""


def test_a_full_disk_is_one_error_that_names_the_folder_and_the_option(folder, tmp_path):
    cache = tmp_path / "cache"
    done = run(READ, folder, cache, 2000)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"learnreg.errors.InputError: The folder of data.cache cannot be written: {cache}: ")
    assert "data.cache to another folder or to null" in last
    assert not cache.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="folder of data.cache cannot be written"):
        ImageStore(SPACE, tmp_path / "file" / "cache")(read_subjects(folder)[0])


def test_several_processes_at_once(folder, tmp_path):
    cache = tmp_path / "cache"
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: run(READ, folder, cache, 0), range(3)))
    assert [one.returncode for one in done] == [0, 0, 0], done[0].stderr
    assert len({one.stdout for one in done}) == 1
    assert [file.suffix for file in stored(cache)] == [".safetensors"] * 4


def test_memory_is_bounded(folder):
    subjects = read_subjects(folder)
    store = ImageStore(SPACE)
    for subject in subjects:
        store(subject)
    one = sum(tensor.nbytes for tensor in store._kept[subjects[0]].values())
    assert one < 16**3 * (4 + 1 + 1) + 100  # labels and mask take a byte
    store = ImageStore(SPACE, memory=2.5 * one / 1e9)
    for subject in (0, 1, 0, 2):
        store(subjects[subject])
    assert list(store._kept) == [subjects[0], subjects[2]]  # 1 was not used for longest
    nothing = ImageStore(SPACE, memory=0)
    nothing(subjects[0])
    assert not nothing._kept
    with pytest.raises(ValueError, match=r"data\.memory is a number of GB"):
        ImageStore(SPACE, memory=-1)


def test_the_folder_is_bounded(folder, tmp_path):
    cache = tmp_path / "cache"
    subjects = read_subjects(folder)
    ImageStore(SPACE, cache)(subjects[0])
    (first,) = stored(cache)
    (cache / "other.txt").write_text("not ours")
    (cache / ".part-abandoned.safetensors").write_text("of a process that was killed")
    os.utime(cache / ".part-abandoned.safetensors", (0, 0))
    os.utime(first, (1, 1))
    size = 2.5 * first.stat().st_size / 1e9
    for subject in subjects[1:]:
        ImageStore(SPACE, cache, size=size)(subject)
    names = {file.name for file in stored(cache)}
    assert len(names) == 3
    assert "other.txt" in names
    assert first.name not in names
    store = ImageStore(SPACE, cache, size=size)
    with pytest.warns(UserWarning, match="too small for the images of this training"):
        for subject in subjects:
            store(subject)


def test_a_store_pickles_small(folder, tmp_path):
    store = ImageStore(SPACE)
    plain = store(read_subjects(folder)[0])
    content = pickle.dumps(store)
    assert len(content) < 3000
    assert torch.equal(pickle.loads(content)(read_subjects(folder)[0]).data, plain.data)


@pytest.mark.parametrize("cached", [False, True])
def test_workers_read_what_the_main_process_reads(cached, folder, tmp_path):
    store = ImageStore(SPACE, tmp_path / "cache" if cached else None)
    pairs = PairDataset(reversed_pairs(read_subjects(folder)), store)
    with_workers, without = (list(DataLoader(pairs, collate_fn=collate, num_workers=n)) for n in (2, 0))
    for (fixed, moving), (ours, theirs) in zip(with_workers, without, strict=True):
        assert torch.equal(fixed.data, ours.data)
        assert torch.equal(moving.labels, theirs.labels)


def test_options_of_the_data(folder, tmp_path):
    data = RegistrationData(
        folder, SPACE, train=[0, 2], validation=[2, 4], cache=tmp_path / "cache", cache_size=1, memory=1
    )
    next(iter(data.val_dataloader()))
    assert len(stored(tmp_path / "cache")) == 2
    with pytest.raises(ValueError, match=r"data\.cache_size is a number of GB"):
        RegistrationData(folder, SPACE, train=[0, 2], validation=[2, 4], cache_size=-1)


def test_the_content_of_a_header_is_that_of_its_values(tmp_path):
    image = sitk.GetImageFromArray(np.arange(60, dtype=np.float32).reshape(3, 4, 5))
    for name in ("a.mhd", "b.nhdr"):
        sitk.WriteImage(image, str(tmp_path / name))
        before = content_of([tmp_path / name])
        raw = next(file for file in tmp_path.iterdir() if file.stem == name[0] and file.suffix == ".raw")
        raw.write_bytes(raw.read_bytes()[:-1] + b"!")
        assert content_of([tmp_path / name]) != before
    series = tmp_path / "series"
    series.mkdir()
    (series / "1.dcm").write_bytes(b"1")
    before = content_of([series])
    (series / "2.dcm").write_bytes(b"2")
    assert len({content_of([series]), before, content_of([series, None]), content_of([None, series])}) == 4
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        content_of([Path("nowhere.nii")])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["truncated", "text", "gone"])
def test_a_corrupt_file_is_named_on_one_line(workers, damage, folder):
    data = RegistrationData(folder, SPACE, train=[0, 2], validation=[2, 4], num_workers=workers)
    data.setup()
    file = folder / "images" / "1.nii.gz"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:500])
    elif damage == "text":
        file.write_text("no image")
    else:
        file.unlink()
    with pytest.raises(InputError) as found:
        list(data.train_dataloader())
    line = one_line(input_error(found.value))
    assert str(file) in line
    assert "Traceback" not in line
    assert len(line) < 400
