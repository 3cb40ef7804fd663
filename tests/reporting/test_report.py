import base64
import gzip
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from learnreg.apps.register import measure, save
from learnreg.apps.report import report
from learnreg.errors import InputError
from learnreg.grid import Grid
from learnreg.image import Image
from learnreg.io import write_image
from learnreg.methods import Registration
from learnreg.optimization import LevelHistory
from learnreg.reporting import write_index, write_report
from learnreg.reporting.report import LARGEST, command
from learnreg.reporting.volumes import upright, views
from learnreg.transforms import Affine
from tests.conftest import DIRECTIONS, blob_image, make_grid

HOSTILE = '<script>alert("x")</script>&amp;</title>'


def a_result(name="RAS", shape=(24, 26, 28)) -> Registration:
    """Two ellipsoids 3 mm apart, with labels and landmarks, and the transform between them."""
    grid = Grid.regular(shape, direction=DIRECTIONS[name])
    points = torch.tensor([[[0.0, 0.0, 0.0], [4.0, 1.0, -2.0], [float("nan")] * 3]])
    shift = torch.tensor([3.0, 0.0, 0.0])
    fixed = replace(blob_image(grid), landmarks=points)
    moving = replace(blob_image(grid, (3.0, 0.0, 0.0)), landmarks=points + shift)
    history = (LevelHistory("FieldStage", (8, 8, 8), (1.0, 0.5)), LevelHistory("FieldStage", (16, 16, 16), (0.4, 0.3)))
    return Registration(Affine.translation(shift), fixed, moving, history=history, seconds=1.5)


def chromium():
    """Start a real browser, or skip."""
    sync = pytest.importorskip("playwright.sync_api").sync_playwright
    browser = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if browser is None:
        pytest.skip("there is no Chromium")
    quiet = ["--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    arguments = ["--no-sandbox", "--no-first-run", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", *quiet]
    return sync(), {"executable_path": browser, "args": arguments}


def watched(page):
    """Collect what a page says and asks for."""
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    return said, asked


def pixels(page, number=0) -> np.ndarray:
    """The picture of a plane, as the browser has drawn it."""
    address = page.locator(".plane canvas").nth(number).evaluate("canvas => canvas.toDataURL()")
    return 255.0 * imread(io.BytesIO(base64.b64decode(address.split(",")[1])))[..., :3]


def move(page, selector, value):
    page.locator(selector).evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", value
    )


def test_the_report_in_a_browser(tmp_path):
    result = a_result()
    metrics = {"fixed": f"/data/{HOSTILE}.nii.gz", "moving": "b.nii.gz", "method": HOSTILE} | measure(result)
    metrics |= {"verdict": "WARN", "verdict_reasons": [HOSTILE]}
    file = tmp_path / "report.html"
    write_report(result, metrics, file)
    assert file.stat().st_size < LARGEST
    playwright, options = chromium()
    with playwright as started:
        browser = started.chromium.launch(**options)
        page = browser.new_page()
        said, asked = watched(page)
        page.on("dialog", lambda dialog: said.append(f"a dialog: {dialog.message}"))
        page.goto(file.as_uri())
        page.wait_for_selector("body[data-ready=true]")
        assert page.locator(".verdict").inner_text() == "WARN"
        assert HOSTILE in page.locator("li").inner_text()
        assert page.locator(".plane canvas").count() == 3
        for box in ("labels", "landmarks"):
            page.uncheck(f"#{box}")

        move(page, "#opacity", 0)
        fixed = pixels(page)
        move(page, "#opacity", 100)
        warped = pixels(page)
        page.select_option("#second", "moving")
        moving = pixels(page)
        assert np.abs(moving - fixed).mean() > 5 * np.abs(warped - fixed).mean()  # gray values of 255
        move(page, "#opacity", 50)
        assert np.abs(pixels(page) - (fixed + moving) / 2).mean() < 1
        # patient's left is right: the moving ellipsoid lies 3 mm to the left of the fixed one
        columns = [
            (image.sum(axis=(0, 2)) * np.arange(image.shape[1])).sum() / image.sum() for image in (fixed, moving)
        ]
        scale = fixed.shape[1] / result.fixed.grid.shape[2]
        assert (columns[1] - columns[0]) / scale == pytest.approx(3.0, abs=0.3)

        page.select_option("#mode", "checkerboard")
        board = pixels(page)
        assert 0.3 < (np.abs(board - fixed).sum(-1) <= np.abs(board - moving).sum(-1)).mean() < 1
        page.select_option("#mode", "difference")
        assert np.abs(pixels(page) - board).mean() > 20
        page.select_option("#mode", "blend")
        for box in ("grid", "jacobian", "labels", "landmarks"):
            earlier = pixels(page)
            page.check(f"#{box}")
            assert np.abs(pixels(page) - earlier).mean() > 0.02, box
            page.uncheck(f"#{box}")
        earlier = pixels(page), pixels(page, 1)
        caption = page.locator("figcaption").first.inner_text()
        assert caption.startswith("axial, z = ")
        move(page, ".slice >> nth=0", 5)
        assert np.abs(pixels(page) - earlier[0]).mean() > 1
        assert np.array_equal(pixels(page, 1), earlier[1])
        assert page.locator("figcaption").first.inner_text() != caption

        page.click("#blink")
        seen = []
        for shown in ("A", "B", "A"):
            page.wait_for_selector(f"body[data-shown={shown}]", timeout=5000)
            seen.append(pixels(page))
        assert np.array_equal(seen[0], seen[2])
        assert np.abs(seen[0] - seen[1]).mean() > 1
        page.click("#blink")
        assert page.locator("body").get_attribute("data-shown") == "both"

        page.click("#open-niivue")
        page.wait_for_selector("body[data-niivue=ready]", timeout=90000)
        page.wait_for_timeout(500)
        assert len(set(page.locator("#niivue").screenshot()[2000:])) > 100
        assert said == []
        assert asked == [file.as_uri()]
        browser.close()


def test_names_are_escaped(tmp_path):
    metrics = {"fixed": HOSTILE, "moving": HOSTILE, "method": HOSTILE, "warnings": [HOSTILE], HOSTILE: HOSTILE}
    write_report(a_result(), metrics | {"after": {"dice_by_label": {HOSTILE: 1.0}}}, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert 'alert("x")' not in page
    assert page.count("<script") == 3
    folder = tmp_path / "a<b>"
    folder.mkdir()
    (folder / "metrics.json").write_text(
        json.dumps({"pair": HOSTILE, "verdict": HOSTILE, "verdict_reasons": [HOSTILE]})
    )
    write_index([folder], tmp_path / "index.html")
    assert 'alert("x")' not in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize("name", sorted(DIRECTIONS))
def test_the_volumes_are_upright(name):
    """They are the same whatever the axes of the file, and lie where the image lies."""
    grid = make_grid(name, (20, 20, 20), (1.0, 1.0, 1.0))
    image = blob_image(grid, (4.0, -3.0, 2.0), (4.0, 4.0, 4.0))
    found = views(Registration(Affine.identity(3, dtype=grid.dtype), image, image), largest=10**6)
    diagonal = found.grid.direction[0].diagonal()
    assert float(diagonal.min()) > 0.8
    weight = torch.from_numpy(found.volumes["fixed"].astype(np.float64))[None, ..., None]
    weight = (weight - 40).clamp(min=0)
    middle = (found.grid.points * weight).sum(dim=(0, 1, 2, 3)) / weight.sum()
    assert middle.tolist() == pytest.approx([4.3, -2.7, 2.3], abs=0.5)
    assert (found.volumes["Jacobian"] == 127).all()
    assert np.array_equal(found.volumes["fixed labels"] > 0, found.volumes["warped labels"] > 0)
    corners = [upright(grid).extent.sort().values, grid.extent.sort().values]
    assert torch.allclose(*corners)


def test_folds_are_marked():
    grid = Grid.regular((12, 12, 12))
    image = blob_image(grid)
    mirror = Affine(torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0])))
    assert (views(Registration(mirror, image, image), largest=10**6).volumes["Jacobian"] == 0).all()


def test_large_images_of_noise_fit(tmp_path):
    grid = Grid.regular((150, 150, 150))
    image = Image(torch.rand(1, 1, *grid.shape), grid)
    write_report(Registration(Affine.identity(3), image, image), {}, tmp_path / "report.html")
    assert 3_000_000 < (tmp_path / "report.html").stat().st_size < LARGEST


def test_two_dimensional_images_and_slices(tmp_path):
    for shape in ((20, 30), (1, 20, 30)):
        image = Image(torch.rand(1, 1, *shape), Grid.regular(shape))
        write_report(Registration(Affine.identity(len(shape)), image, image), {}, tmp_path / "report.html")
        page = (tmp_path / "report.html").read_text()
        assert 'id="open-niivue"' not in page
        assert "Not recorded" in page
        data = json.loads(page.split('id="data">')[1].split("</script>")[0])
        values = np.frombuffer(gzip.decompress(base64.b64decode(data["volumes"]["fixed"])), dtype=np.uint8)
        assert values.size == np.prod(shape)
        assert values.std() > 50


def test_the_command_repeats_the_run():
    metrics = {"fixed": "a b.nii", "moving": "$(rm).nii", "checkpoint": "m.ckpt", "refine": 5, "device": "cpu"}
    assert (
        command(metrics) == "learnreg register 'a b.nii' '$(rm).nii' -o OUT --checkpoint m.ckpt --refine 5 --device cpu"
    )


class TestFolders:
    @pytest.fixture
    def folders(self, tmp_path):
        """Two finished results and a batch's note on a failure."""
        made = []
        for name, verdict in (("good", "PASS"), ("bad", "FAIL")):
            result = a_result()
            write_image(result.fixed.data[0], result.fixed.grid, tmp_path / "fixed.nii.gz")
            write_image(result.moving.data[0], result.moving.grid, tmp_path / "moving.nii.gz")
            metrics = {
                "fixed": str(tmp_path / "fixed.nii.gz"),
                "moving": str(tmp_path / "moving.nii.gz"),
                "method": "x",
            }
            metrics = save(result, metrics, tmp_path / "batch" / name, report=name == "good")
            metrics |= {"verdict": verdict, "verdict_reasons": ["too far"] if verdict == "FAIL" else []}
            (tmp_path / "batch" / name / "metrics.json").write_text(json.dumps(metrics))
            made.append(tmp_path / "batch" / name)
        (tmp_path / "batch" / "failed").mkdir()
        broken = {"pair": "broken", "status": "failed", "reason": "no such file"}
        (tmp_path / "batch" / "failed" / "broken.json").write_text(json.dumps(broken))
        return made

    def test_reports_of_finished_results(self, folders, tmp_path):
        good, bad = folders
        assert (good / "report.html").exists()
        with pytest.raises(InputError, match="exists already"):
            report([good.parent])
        (good / "report.html").unlink()
        pages = report([good.parent])
        assert sorted(pages) == sorted([good / "report.html", bad / "report.html", good.parent / "index.html"])
        assert all(page.exists() for page in pages)
        assert report([bad], overwrite=True) == [bad / "report.html"]
        index = (good.parent / "index.html").read_text()
        assert index.index(">broken<") < index.index(">bad<") < index.index(">good<")
        assert "too far" in index
        assert "1 ERROR, 1 FAIL, 1 PASS" in index

    def test_what_has_gone_is_named(self, folders, tmp_path):
        (tmp_path / "moving.nii.gz").unlink()
        with pytest.raises(InputError, match=r"moving.nii.gz, the moving image .* go to the folder"):
            report([folders[1]])
        (folders[1] / "transform.h5").unlink()
        with pytest.raises(InputError, match=r"transform.h5 is missing; register the pair again"):
            report([folders[1]])
        (folders[1] / "metrics.json").write_text("{")
        with pytest.raises(InputError, match="is damaged; register the pair again"):
            report([folders[1]])
        with pytest.raises(InputError, match="holds no metrics.json"):
            report([tmp_path / "nothing"])
        assert not (folders[1] / "report.html").exists()

    def test_the_index_in_a_browser(self, folders):
        report([folders[0].parent], overwrite=True)
        playwright, options = chromium()
        with playwright as started:
            browser = started.chromium.launch(**options)
            page = browser.new_page()
            said, asked = watched(page)
            page.goto((folders[0].parent / "index.html").as_uri())
            names = page.locator("tbody td:nth-child(2)")
            assert names.all_inner_texts() == ["broken", "bad", "good"]
            page.click("text=pair")
            assert names.all_inner_texts() == ["bad", "broken", "good"]
            page.click("text=pair")
            assert names.all_inner_texts() == ["good", "broken", "bad"]
            page.click("text=similarity")
            assert names.all_inner_texts()[-1] == "broken"  # without a value
            picture = page.locator("img").first
            picture.scroll_into_view_if_needed()
            page.wait_for_timeout(500)
            assert picture.evaluate("image => image.naturalWidth") > 500
            assert said == []
            assert all(url.startswith("file://") for url in asked)
            page.click("text=good")
            page.wait_for_selector("body[data-ready=true]")
            browser.close()
