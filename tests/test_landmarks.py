"""Landmarks of each format, in the place where the image's own header puts them."""

import json

import pytest
import torch

from learnreg.landmarks import pair_landmarks, read_landmark_pairs, read_landmarks, read_named_landmarks
from tests.conftest import make_grid

POINTS = [[1.5, -2.0, 30.25], [4.0, 5.5, -6.0]]


def written(tmp_path, name, text):
    file = tmp_path / name
    file.write_text(text)
    return file


def rows(points, first=""):
    return "\n".join(first + ",".join(map(str, p)) for p in points)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "x,y,z\n" + rows(POINTS)),
        ("b.csv", ",X,Y,Z\n" + rows(POINTS, "7,")),
        ("c.txt", "point\n2\n" + rows(POINTS).replace(",", " ")),
        ("d.fcsv", "# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n" + rows(POINTS, "id,")),
        (
            "e.fcsv",
            "# CoordinateSystem = 0\n" + rows([[-x, -y, z] for x, y, z in POINTS], "id,"),
        ),
        (
            "f.mrk.json",
            json.dumps(
                {
                    "markups": [
                        {
                            "coordinateSystem": "RAS",
                            "controlPoints": [{"position": [-x, -y, z]} for x, y, z in POINTS],
                        }
                    ]
                }
            ),
        ),
    ],
)
def test_formats_give_millimetres(tmp_path, name, text):
    found = read_landmarks(written(tmp_path, name, text), make_grid())
    assert torch.allclose(found, torch.tensor([POINTS], dtype=found.dtype))


def test_indices_are_placed_by_the_header(tmp_path, grid):
    index = (3, 4, 5)  # i, j, k
    file = written(tmp_path, "i.csv", "i,j,k\n3,4,5\n")
    assert torch.allclose(read_landmarks(file, grid)[0, 0], grid.points[0][index[::-1]].to(grid.dtype))
    file = written(tmp_path, "i.txt", "index\n1\n3 4 5\n")
    assert torch.allclose(read_landmarks(file, grid)[0, 0], grid.points[0][index[::-1]].to(grid.dtype))


def test_pairs_come_from_one_file(tmp_path, grid):
    file = written(tmp_path, "p.csv", "exp_i,exp_j,exp_k,insp_i,insp_j,insp_k\n3,4,5,1,2,3\n")
    moving = make_grid(spacing=(2.0, 1.0, 3.0), shape=(8, 9, 10))
    first, second = read_landmark_pairs(file, grid, moving)
    assert torch.allclose(first[0, 0], grid.points[0][5, 4, 3])
    assert torch.allclose(second[0, 0], moving.points[0][3, 2, 1])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "x,y\n1,2\n", "needs 3 columns named"),
        ("a.csv", "", "an empty file"),
        ("a.csv", "x,y,z\n1,2,three\n", "something else than numbers"),
        ("a.csv", "x,y,z\n", "holds no landmarks"),
        ("a.txt", "hello\n", "not a point list of elastix"),
        ("a.mrk.json", "{}", "not a markups file of 3D Slicer"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read_landmarks(written(tmp_path, name, text), make_grid())


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such landmarks"):
        read_landmarks(tmp_path / "none.csv", make_grid())


class TestPairing:
    def files(self, tmp_path, first, second):
        names = [[f"{p},{x},{x},{x}" for p, x in side] for side in (first, second)]
        files = (written(tmp_path, f"{k}.csv", "name,x,y,z\n" + "\n".join(n) + "\n") for k, n in enumerate(names))
        return [read_named_landmarks(file, make_grid()) for file in files]

    def test_by_name_in_any_order(self, tmp_path):
        first, second = pair_landmarks(*self.files(tmp_path, [("a", 1), ("b", 2)], [("b", 20), ("a", 10)]))
        assert first[0, :, 0].tolist() == [1, 2]
        assert second[0, :, 0].tolist() == [10, 20]

    def test_markups_and_fcsv_name_theirs(self, tmp_path):
        points = [{"label": name, "position": position} for name, position in zip("pq", POINTS, strict=True)]
        markup = {"markups": [{"coordinateSystem": "LPS", "controlPoints": points}]}
        first = read_named_landmarks(written(tmp_path, "a.mrk.json", json.dumps(markup)), make_grid())
        named = zip("pq", POINTS, strict=True)
        lines = [f"{k},{-x},{-y},{z},0,0,0,1,1,1,0,{name},," for k, (name, (x, y, z)) in enumerate(named)]
        text = "# CoordinateSystem = RAS\n" + "\n".join(reversed(lines)) + "\n"
        second = read_named_landmarks(written(tmp_path, "b.fcsv", text), make_grid())
        assert (first.names, second.names) == (("p", "q"), ("q", "p"))
        assert torch.allclose(*pair_landmarks(first, second))

    def test_by_row_where_no_name_is_shared(self, tmp_path):
        _, second = pair_landmarks(*self.files(tmp_path, [("F-1", 1), ("F-2", 2)], [("M-1", 20), ("M-2", 10)]))
        assert second[0, :, 0].tolist() == [20, 10]

    @pytest.mark.parametrize(
        ("first", "second", "message"),
        [
            ([("a", 1), ("b", 2)], [("a", 1), ("c", 2)], "b, c occurs in only one of .*0.csv and .*1.csv"),
            ([("a", 1), ("a", 2)], [("a", 1), ("b", 2)], "0.csv names a more than once"),
            ([("a", 1), ("b", 2)], [("c", 1)], "has 2 landmarks and .*1.csv has 1"),
        ],
    )
    def test_what_does_not_pair_is_refused(self, tmp_path, first, second, message):
        with pytest.raises(ValueError, match=message):
            pair_landmarks(*self.files(tmp_path, first, second))
