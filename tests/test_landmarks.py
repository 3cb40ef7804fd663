"""Landmarks of each format, in the place where the image's own header puts them."""

import json

import pytest
import torch

from learnreg.landmarks import read_landmark_pairs, read_landmarks
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
