import pickle

import pytest
import torch

from learnreg.configs import files
from learnreg.methods import OneShotMethod
from learnreg.methods.api import choose_method
from learnreg.networks import Conditioned
from learnreg.networks.checkpoint import FORMAT, KEY, build, load_checkpoint, recipe, release
from learnreg.networks.unet import UNet

NETWORK = {"_target_": "learnreg.networks.UNet", "ndim": 2, "channels": [4, 4]}
OBJECTIVE = {
    "_target_": "learnreg.objective.Objective",
    "similarity": {"_target_": "learnreg.similarity.MSE"},
    "supervision": {
        "dice": {
            "_target_": "learnreg.terms.Weighted",
            "term": {"_target_": "learnreg.supervision.LabelOverlap", "labels": [1]},
        }
    },
}


def save(path, network=NETWORK, objective=OBJECTIVE, **changes):
    weights = {f"network.{k}": v for k, v in UNet(2, (4, 4)).state_dict().items()}
    stored = {**recipe(network, objective, {"spacing": 1.0, "shape": [16, 16], "multiple": 4}), **changes}
    torch.save({"state_dict": weights, KEY: stored}, path)
    return path


def test_round_trip(tmp_path):
    loaded = load_checkpoint(save(tmp_path / "a.ckpt"))
    assert isinstance(loaded.network, UNet)
    assert not loaded.network.training
    assert not loaded.objective.supervision
    assert loaded.space["shape"] == [16, 16]


class Evil:
    def __reduce__(self):
        return (open, ("evil.txt", "w"))


def test_no_code_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "evil.ckpt").open("wb") as file:
        pickle.dump({"state_dict": Evil(), KEY: {}}, file, protocol=2)
    with pytest.raises(ValueError, match="read safely"):
        load_checkpoint(tmp_path / "evil.ckpt")
    torch.save({"state_dict": Evil(), KEY: {}}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="read safely"):
        load_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "evil.txt").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("os.system", "outside the trusted"),
        ("learnreg.io.write_image", "no torch.nn.Module|does not have"),
        ("learnreg.networks.None", "does not have"),
    ],
)
def test_only_modules_of_trusted_packages_are_built(target, message):
    with pytest.raises(ValueError, match=message):
        build({"_target_": "torch.nn.Sequential", "_args_": [{"_target_": target, "command": "true"}]})


def test_failures(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such checkpoint"):
        load_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(ValueError, match="read safely"):
        load_checkpoint(tmp_path / "text.ckpt")
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="no checkpoint of learnreg"):
        load_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=f"checkpoint format 99, .* reads {FORMAT}"):
        load_checkpoint(save(tmp_path / "new.ckpt", format=99))
    with pytest.raises(ValueError, match="does not fit its network"):
        load_checkpoint(save(tmp_path / "wide.ckpt", network={**NETWORK, "channels": [8, 8]}))


def test_a_weight_is_for_conditioned_networks(tmp_path):
    network = {"_target_": "learnreg.networks.Conditioned", "network": NETWORK, "between": [0.1, 1.0]}
    file = save(tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match="takes no weight"):
        choose_method(checkpoint=file, weight=0.3)
    with pytest.raises(ValueError, match="give a checkpoint"):
        choose_method("fast", weight=0.3)
    stored = recipe(network, OBJECTIVE, {"spacing": 1.0, "shape": [16, 16], "multiple": 4})
    weights = {f"network.{k}": v for k, v in Conditioned(UNet(2, (4, 4))).state_dict().items()}
    torch.save({"state_dict": weights, KEY: stored}, tmp_path / "conditioned.ckpt")
    method = choose_method(checkpoint=tmp_path / "conditioned.ckpt", weight=0.3)
    other = OneShotMethod(load_checkpoint(tmp_path / "conditioned.ckpt"))
    assert (method.weight, other.weight) == (0.3, None)
    assert method.network.weight == other.network.weight == pytest.approx(0.1**0.5)
    with pytest.raises(ValueError, match="weights from 0.1 to 1, got 3"):
        choose_method(checkpoint=tmp_path / "conditioned.ckpt", weight=3.0)


def test_release(tmp_path):
    """Half the size, the same network, and what it belongs to."""
    file = save(tmp_path / "best.ckpt")
    release(file, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size < file.stat().st_size
    before, after = load_checkpoint(file), load_checkpoint(tmp_path / "model.safetensors")
    assert after.recipe == before.recipe
    for a, b in zip(before.network.parameters(), after.network.parameters(), strict=True):
        assert b.dtype == torch.float32
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="a .safetensors file"):
        release(file, tmp_path / "model.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a model of learnreg"):
        load_checkpoint(tmp_path / "bad.safetensors")


def test_models_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PACKAGE", tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(FileNotFoundError, match="No such checkpoint: hippo"):
        load_checkpoint("hippo")
    release(save(tmp_path / "best.ckpt"), tmp_path / "models" / "hippo.safetensors")
    assert isinstance(load_checkpoint("hippo").network, UNet)
    with pytest.raises(FileNotFoundError, match="or one of hippo"):
        load_checkpoint("hipo")
