import monai.transforms as monai
import pytest
import torch

from learnreg.configs.checks import check_targets
from learnreg.configs.compose import compose_config
from learnreg.configs.files import config_dir
from learnreg.configs.schema import register_schema
from learnreg.data import Compose, Intensity, RandomTransform
from learnreg.image import stack
from tests.conftest import blob_image, make_grid

TRANSFORMS = {
    "bias": monai.RandBiasField(prob=1.0),
    "noise": monai.RandGaussianNoise(prob=1.0, std=0.1),
    "Rician noise": monai.RandRicianNoise(prob=1.0, std=0.1),
    "gamma": monai.RandAdjustContrast(prob=1.0, gamma=(0.5, 2.0)),
    "Gibbs": monai.RandGibbsNoise(prob=1.0, alpha=(0.5, 0.8)),
    "spikes": monai.RandKSpaceSpikeNoise(prob=1.0, intensity_range=(8.0, 9.0)),
    "blur": monai.RandGaussianSmooth(prob=1.0, sigma_x=(1.0, 2.0)),
    "sharpening": monai.RandGaussianSharpen(prob=1.0),
    "low resolution": monai.RandSimulateLowResolution(prob=1.0, zoom_range=(0.4, 0.6)),
    "histogram": monai.RandHistogramShift(prob=1.0),
    "several": monai.Compose([monai.RandBiasField(prob=1.0), monai.RandGaussianNoise(prob=1.0)]),
    "no draw": monai.GaussianSmooth(2.0),
}


def images():
    return blob_image(make_grid(shape=(16, 18, 20), spacing=(1.0, 1.0, 1.0), dtype=torch.float32))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_intensities_change_and_nothing_else(name):
    image, transform = images(), Intensity(TRANSFORMS[name])
    torch.manual_seed(3)
    changed = transform(image)
    torch.manual_seed(3)
    again = transform(image)
    other = transform(image)
    assert torch.equal(changed.data, again.data)
    assert float((changed.data - image.data).abs().max()) > 1e-3
    assert name == "no draw" or not torch.equal(changed.data, other.data)
    assert type(changed.data) is torch.Tensor
    assert changed.data.dtype == torch.float32
    assert 0 <= float(changed.data.min()) <= float(changed.data.max()) <= 1
    assert changed.labels is image.labels
    assert changed.grid is image.grid
    assert torch.equal(image.data, images().data)


def test_images_of_a_batch_and_compositions():
    image = images()
    torch.manual_seed(0)
    both = Intensity(monai.RandGaussianNoise(prob=1.0))(stack([image, image])).data
    assert not torch.equal(both[0], both[1])
    torch.manual_seed(0)
    chain = Compose([RandomTransform(), Intensity(monai.RandGaussianNoise(prob=1.0))])
    first = chain(image)
    torch.manual_seed(0)
    assert torch.equal(chain(image).data, first.data)
    assert not torch.equal(first.labels, image.labels)
    with pytest.raises(ValueError, match=r"Resize made \(1, 1, 4, 4, 4\) of \(1, 1, 16, 18, 20\)"):
        Intensity(monai.Resize((4, 4, 4)))(image)


def test_lines_of_a_config():
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    register_schema()
    given = ["data=folder", "+data/augmentation=scanner", "data.path=/data"]
    config = compose_config(config_dir(), "train", ["experiment=quickstart", *given])
    plain = OmegaConf.to_container(config["data"]["augmentation"], resolve=True)
    check_targets(plain)
    augmentation = instantiate(plain, _convert_="all")
    changed = torch.stack([augmentation(images()).data for _ in range(5)])
    assert float(changed.std(0).max()) > 0.05
