import json
import pickle
import random

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from learnreg.configs import files
from learnreg.configs.build import build
from learnreg.configs.compose import compose_config
from learnreg.configs.schema import register_schema
from learnreg.errors import InputError
from learnreg.methods import OneShotMethod
from learnreg.methods.api import choose_method
from learnreg.networks import Conditioned, LaplacianPyramid, as_network
from learnreg.networks.checkpoint import FORMAT, KEY, load_checkpoint, recipe, release
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
SPACE = {"spacing": 1.0, "shape": [16, 16], "multiple": 4}


def save(path, network=NETWORK, objective=OBJECTIVE, **changes):
    weights = {f"network.{k}": v for k, v in UNet(2, (4, 4)).state_dict().items()}
    stored = {**recipe(network, objective, SPACE), **changes}
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


def save_model(path, stored=None, weights=None, **changes):
    """A ``.safetensors`` file with any recipe, as anyone can write it."""
    stored = stored or {**recipe(NETWORK, OBJECTIVE, SPACE), **changes}
    save_file(UNet(2, (4, 4)).state_dict() if weights is None else weights, path, {KEY: json.dumps(stored)})
    return path


OPENED = "${oc.create:{_target_: io.open, file: evil.txt, mode: w}}"
BAD = [
    ({"network": {**NETWORK, "steps": OPENED}}, "steps has an interpolation"),
    ({"network": {**NETWORK, "channels": [4, OPENED]}}, r"channels\[1\] has an interpolation"),
    ({"network": {**NETWORK, OPENED: 4}}, "has an interpolation"),
    ({"network": {"_target_": "os.system", "command": "touch evil.txt"}}, "needs os.system"),
    ({"objective": {**OBJECTIVE, "similarity": {"_target_": "io.open", "file": "evil.txt", "mode": "w"}}}, "io.open"),
    ({"refinement": {"_target_": "torch.load", "f": "evil.pkl"}}, "needs torch.load"),
    ({"space": {**SPACE, "spacing": OPENED}}, "space.spacing has an interpolation"),
    ({"network": {**NETWORK, "channels": [10**9, 4]}}, r"channels\[0\] must be at most"),
    ({"network": {**NETWORK, "channels": [10**6, 10**6]}}, "does not fit its network"),
    ({"network": {**NETWORK, "channels": [4] * 10**5}}, "more weights than it holds"),
    ({"network": {"_target_": "learnreg.networks.LaplacianPyramid", "ndim": 2, "blocks": 10**6}}, "more weights"),
    ({"network": {"_target_": "learnreg.networks.UNet", "chanels": [4]}}, "did you mean 'channels'"),
    ({"network": {**NETWORK, "channels": "4"}}, "channels must be"),
    ({"network": [NETWORK]}, "has no configuration of the network"),
    ({"network": {"ndim": 2}}, "describes no module"),
    ({"objective": {"_target_": "learnreg.objective.Objective"}}, "similarity is missing"),
    ({"objective": NETWORK}, "needs a learnreg.objective.Objective"),
    ({"refinement": [1]}, "refinement is not a configuration"),
    ({"space": {**SPACE, "shap": [16, 16]}}, "did you mean 'shape'"),
    ({"space": {**SPACE, "shape": {"z": 16}}}, "shape must be"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_a_file_is_data(changes, message, tmp_path, monkeypatch):
    """One line that names the file; nothing is run, written or allocated."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    files = [save_model(tmp_path / "a.safetensors", **changes), tmp_path / "a.ckpt"]
    content = torch.load(save(files[1]), weights_only=True)
    torch.save({**content, KEY: {**content[KEY], **changes}}, files[1])
    for file in files:
        with pytest.raises(InputError, match=message) as caught:
            load_checkpoint(file)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil.txt").exists()


def test_weights_are_finite_dense_and_as_many_as_their_shapes_say(tmp_path):
    good = UNet(2, (4, 4)).state_dict()
    key = next(key for key, value in good.items() if value.ndim > 1)
    for value in (float("nan"), float("inf")):
        bad = {**good, key: torch.full_like(good[key], value)}
        with pytest.raises(InputError, match=rf"a.safetensors has NaN or infinite weights in {key}"):
            load_checkpoint(save_model(tmp_path / "a.safetensors", weights=bad))
    for change, message in (
        ({key: good[key][:1].clone()}, f"does not fit its network, learnreg.networks.UNet, in {key}"),
        ({key: good[key].int()}, f"in {key}"),
        ({"more": torch.zeros(1)}, "in more"),
    ):
        with pytest.raises(InputError, match=message):
            load_checkpoint(save_model(tmp_path / "a.safetensors", weights={**good, **change}))
    huge = torch.zeros(1).expand(10**6, 10**6)
    content = torch.load(save(tmp_path / "a.ckpt"), weights_only=True)
    for value in (huge, torch.eye(3).to_sparse(), "text"):
        torch.save({**content, "state_dict": {f"network.{key}": value}}, tmp_path / "a.ckpt")
        with pytest.raises(InputError, match=f"is damaged: {key}"):
            load_checkpoint(tmp_path / "a.ckpt")


def test_levels_of_a_laplacian_pyramid_are_in_its_checkpoint(tmp_path):
    """It predicts as it was validated, and a number of levels that it does not have is refused."""
    network = LaplacianPyramid(2, (4, 4, 4))
    config = {"_target_": "learnreg.networks.LaplacianPyramid", "ndim": 2, "channels": [4, 4, 4]}
    for levels in (1, 2, 3):
        network.levels = levels
        weights = {f"network.{key}": value for key, value in network.state_dict().items()}
        torch.save({"state_dict": weights, KEY: recipe(config, OBJECTIVE, SPACE)}, tmp_path / "a.ckpt")
        assert load_checkpoint(tmp_path / "a.ckpt").network.levels == levels
        release(tmp_path / "a.ckpt", tmp_path / "a.safetensors")
        assert load_checkpoint(tmp_path / "a.safetensors").network.levels == levels
    for levels in (0, 4, -1):
        weights["network._extra_state"] = torch.tensor(levels)
        torch.save({"state_dict": weights, KEY: recipe(config, OBJECTIVE, SPACE)}, tmp_path / "a.ckpt")
        with pytest.raises(InputError, match=rf"a.ckpt: LaplacianPyramid.levels must be from 1 to 3, got {levels}"):
            load_checkpoint(tmp_path / "a.ckpt")


def test_damaged_files_are_one_line(tmp_path):
    """Whatever bytes are lost or changed, the error is ours or the network is whole."""
    generator = random.Random(0)
    for file in (save(tmp_path / "a.ckpt"), save_model(tmp_path / "a.safetensors")):
        whole = file.read_bytes()
        for _ in range(60):
            spoiled = bytearray(whole)
            for _ in range(4):
                spoiled[generator.randrange(min(len(whole), 2000))] = generator.randrange(256)
            file.write_bytes(spoiled[: generator.choice([len(whole), generator.randrange(len(whole))])])
            try:
                loaded = load_checkpoint(file)
            except InputError as error:
                assert str(file) in str(error)
            else:
                assert all(p.isfinite().all() for p in loaded.network.parameters())


@pytest.mark.parametrize("name", sorted(file.stem for file in (files.config_dir() / "network").glob("*.yaml")))
@pytest.mark.slow
def test_every_network_is_read_back(name, tmp_path):
    """Its shapes are known without memory, on torch's meta device."""
    register_schema()
    choices = [f"network={name}", "data.space.shape=[16,16,16]"]
    config = OmegaConf.to_container(compose_config(files.config_dir(), "train", choices).network, resolve=True)
    network = as_network(build(config, source=name))
    weights = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": weights, KEY: recipe(config, OBJECTIVE, SPACE)}, tmp_path / "a.ckpt")
    loaded = load_checkpoint(tmp_path / "a.ckpt").network
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


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
    stored = recipe(network, OBJECTIVE, SPACE)
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
