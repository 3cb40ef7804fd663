import json
import pickle

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from learnreg.configs import files
from learnreg.configs.compose import compose_config
from learnreg.configs.schema import register_schema
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


def save(path, **changes):
    weights = {f"network.{k}": v for k, v in UNet(2, (4, 4)).state_dict().items()}
    stored = {**recipe(NETWORK, OBJECTIVE, {"spacing": 1.0, "shape": [16, 16], "multiple": 4}), **changes}
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
        ("os.system", "may not build os.system. If you trust the package, say so: --trust os"),
        ("torch.load", "may not build torch.load"),
        ("torch.nn.Sequential", "may not build torch.nn.Sequential"),
        ("monai.networks.nets.HoverNet", "may not build"),  # it takes an address to download from
        ("learnreg.io.write_image", "not a module or optimizer"),
        ("learnreg.networks.checkpoint.torch", "not a module or optimizer"),
        ("learnreg.networks.None", "has no learnreg.networks.None"),
        (["os.system"], "must be the name of a class"),
    ],
)
def test_a_file_builds_only_what_is_allowed(tmp_path, target, message):
    for network in ({"_target_": target, "command": "true"}, {**NETWORK, "ndim": {"_target_": target}}):
        with pytest.raises(ValueError, match=f"bad.ckpt: .*{message}"):
            load_checkpoint(save(tmp_path / "bad.ckpt", network=network))


ATTACKS = (
    {"steps": "${oc.create:{_target_: io.open, file: evil.txt, mode: w}}"},
    {"channels": [4, "${oc.env:HOME}"]},
    {"${oc.env:HOME}": 1},
    {"_args_": [1]},
    {"_convert_": "all"},
    {"_recursive_": False},
)


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
@pytest.mark.parametrize("part", ["network", "objective", "refinement", "space"])
def test_a_recipe_is_data(tmp_path, monkeypatch, attack, part):
    """No interpolation is resolved, at any depth, and none of Hydra's other keys is read."""
    monkeypatch.chdir(tmp_path)
    parts = {
        "network": NETWORK,
        "objective": OBJECTIVE,
        "refinement": {"_target_": "learnreg.optimization.CenterOfMass"},
        "space": {"spacing": 1.0, "shape": [16, 16], "multiple": 4},
    }
    parts[part] = {**parts[part], **attack}
    file = save(tmp_path / "evil.ckpt", **parts)
    with pytest.raises(ValueError, match=r"evil\.ckpt: .*(interpolation|not allowed in a file)"):
        load_checkpoint(file)
    stored = torch.load(file, weights_only=True)
    weights = {key.removeprefix("network."): value for key, value in stored["state_dict"].items()}
    save_file(weights, tmp_path / "evil.safetensors", {KEY: json.dumps(stored[KEY])})
    with pytest.raises(ValueError, match=r"evil\.safetensors: .*(interpolation|not allowed in a file)"):
        load_checkpoint(tmp_path / "evil.safetensors")
    assert not (tmp_path / "evil.txt").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {**NETWORK, "channels": [10**9, 4]}}, "a number in a file is at most"),
        ({"network": {**NETWORK, "channels": [900_000, 900_000]}}, "does not fit its network"),  # 80 terabytes
        ({"network": {**NETWORK, "channels": "many"}}, "network.*channels must be|channels must be"),
        ({"network": {**NETWORK, "chanels": [4, 4]}}, "did you mean 'channels'"),
        ({"network": [NETWORK]}, "no configuration of the network"),
        ({"network": {"_target_": "learnreg.networks.KeypointNetwork"}}, "bad.ckpt"),
        ({"objective": {"_target_": "learnreg.objective.Objective"}}, "similarity is missing"),
        ({"objective": {**OBJECTIVE, "penalties": [1, 2]}}, "penalties must be"),
        ({"objective": {"_target_": "learnreg.similarity.MSE"}}, "needs a learnreg.objective.Objective"),
        ({"space": {"spacings": 1.0}}, "did you mean 'spacing'"),
        ({"space": {"spacing": 1.0, "shape": "large"}}, "shape must be"),
    ],
)
def test_a_recipe_that_does_not_fit_is_one_line(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(save(tmp_path / "bad.ckpt", **changes))
    assert "\n" not in str(caught.value)
    assert "bad.ckpt" in str(caught.value)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    file = save(tmp_path / "bad.ckpt")
    content = torch.load(file, weights_only=True)
    next(iter(content["state_dict"].values())).view(-1)[0] = torch.nan
    torch.save(content, file)
    with pytest.raises(ValueError, match="are not finite; the training diverged"):
        load_checkpoint(file)


def test_every_own_network_is_checked_before_it_is_built():
    """Without memory for its weights, so that their sizes are compared first; MONAI's classes compute with values."""
    register_schema()
    for name in sorted({file.stem for file in (files.config_dir() / "network").glob("*.yaml")} - {"monai", "swin"}):
        config = compose_config(files.config_dir(), "train", [f"network={name}", "data=shapes"])
        network = OmegaConf.to_container(config.network, resolve=True)
        with torch.device("meta"):
            built = build(network, name)
        assert all(parameter.is_meta for parameter in built.parameters()), name


LABORATORY = """
import torch
from torch import nn
from learnreg.networks import UNet
class Net(UNet):
    pass
"""


def test_a_package_of_ones_own_is_trusted_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mylab_networks.py").write_text(LABORATORY)
    network = {**NETWORK, "_target_": "mylab_networks.Net"}
    file = save(tmp_path / "own.ckpt", network=network)
    with pytest.raises(ValueError, match=r"--trust mylab_networks .*trust=\['mylab_networks'\] in Python"):
        load_checkpoint(file)
    assert type(load_checkpoint(file, trust=["mylab_networks"]).network).__name__ == "Net"
    release(file, tmp_path / "own.safetensors", trust=["mylab_networks"])
    assert choose_method(checkpoint=tmp_path / "own.safetensors", trust=["mylab_networks"]).iterations == 0
    with pytest.raises(ValueError, match="trusted package nowhere cannot be imported"):
        load_checkpoint(file, trust=["nowhere"])


def test_failures(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such checkpoint"):
        load_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(ValueError, match="read safely"):
        load_checkpoint(tmp_path / "text.ckpt")
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint of learnreg"):
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
