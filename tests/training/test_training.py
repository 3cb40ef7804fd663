from dataclasses import replace
from functools import partial

import pytest
import pytorch_lightning as pl
import torch

from learnreg.consistency import GradICON, InverseConsistency
from learnreg.data.datasets import OrderedPairs, collate
from learnreg.grid import Grid
from learnreg.io import read_image
from learnreg.methods import IterativeMethod
from learnreg.networks import ConditionalTemplate, Conditioned, LaplacianPyramid, LearnedTemplate, Pyramid, UNet
from learnreg.networks.base import Task
from learnreg.networks.checkpoint import load_checkpoint, recipe
from learnreg.objective import Objective, Penalty
from learnreg.optimization import FieldStage
from learnreg.optimization.moments import center_of_mass
from learnreg.regularization import Diffusion
from learnreg.similarity import MSE
from learnreg.supervision import LabelOverlap
from learnreg.terms import Weighted
from learnreg.training.callbacks import AmortizationGap, Pictures, Progressive, SaveTemplate, amortization
from learnreg.training.module import RegistrationModule
from learnreg.transforms import Affine
from tests.conftest import blob_image, make_grid

GRID = make_grid(shape=(16, 16, 16), spacing=(1.5, 1.5, 1.5), dtype=torch.float32)
NETWORK = {"_target_": "learnreg.networks.Pyramid", "ndim": 3, "channels": [8, 8], "steps": 4}
OBJECTIVE = {
    "_target_": "learnreg.objective.Objective",
    "similarity": {"_target_": "learnreg.similarity.MSE"},
    "penalties": {
        "diffusion": {
            "_target_": "learnreg.objective.Penalty",
            "weight": 0.01,
            "term": {"_target_": "learnreg.regularization.Diffusion"},
        }
    },
}


def make(supervised=True, **kwargs):
    torch.manual_seed(0)
    supervision = {"dice": Weighted(LabelOverlap([1, 2]))} if supervised else None
    objective = Objective(MSE(), {"diffusion": Penalty(Diffusion(), 0.01)}, supervision)
    stored = recipe(NETWORK, OBJECTIVE, {"spacing": 1.5, "shape": [16, 16, 16], "multiple": 16})
    return RegistrationModule(
        Pyramid(3, (8, 8), steps=4), objective, lambda p: torch.optim.AdamW(p, lr=5e-3), recipe=stored, **kwargs
    )


def loader():
    images = [blob_image(GRID, (float(i), 0.0, -float(i)), (8.0, 7.0, 6.0 + 0.5 * i)) for i in range(-1, 2)]
    return torch.utils.data.DataLoader(OrderedPairs(images, lambda i: i), batch_size=2, collate_fn=collate)


def refinement():
    objective = Objective(MSE(), {"diffusion": Penalty(Diffusion(), 0.01)})
    return FieldStage(objective, factors=(1,), iterations=(50,), learning_rate=0.1, tolerance=0.0)


def trainer(tmp_path, **kwargs):
    settings = {
        "max_epochs": 4,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "inference_mode": False,
    }
    return pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", log_every_n_steps=1, **{**settings, **kwargs})


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.slow
class TestTraining:
    @pytest.mark.parametrize("symmetric", [False, True])
    def test_the_loss_falls_and_a_checkpoint_can_be_used(self, tmp_path, symmetric):
        module = make(symmetric=symmetric)
        best = pl.callbacks.ModelCheckpoint(tmp_path, "best", monitor="val/dice", mode="max")
        run = trainer(tmp_path, callbacks=[best], max_epochs=12)
        before = float(run.validate(module, loader(), verbose=False)[0]["val/loss"])
        run.fit(module, loader(), loader())
        after = run.callback_metrics
        assert float(after["val/loss"]) < 0.9 * before
        assert {"val/dice", "val/sd_log_jacobian", "val/folding", "train/dice", "train/similarity"} <= set(after)
        loaded = load_checkpoint(tmp_path / "best.ckpt")
        assert isinstance(loaded.network, Pyramid)
        assert not loaded.objective.supervision

    @pytest.mark.parametrize(
        "consistency",
        [Weighted(GradICON()), Weighted(InverseConsistency(), 0.1), Weighted(InverseConsistency(through=1), 0.1)],
    )
    def test_the_way_back_is_asked_for_and_penalized(self, tmp_path, consistency):
        module = make(consistency=consistency)
        with torch.no_grad():  # a network that does not undo its own answers
            module.network.heads[0].conv.weight.normal_(std=0.05)
        run = trainer(tmp_path, max_epochs=1)
        run.fit(module, loader())
        first = float(run.callback_metrics["train/consistency"])
        run = trainer(tmp_path, max_epochs=25)
        run.fit(module, loader())
        assert float(run.callback_metrics["train/consistency"]) < 0.5 * first

    def test_the_way_back_through_a_third_image(self):
        """A network that says where centers lie closes every cycle; one that adds a shift misses by a shift a leg."""

        class Centers(torch.nn.Module):
            drift = 0.0

            def forward(self, fixed, moving):
                shift = center_of_mass(moving) - center_of_mass(fixed)
                return Affine.translation(shift + self.drift)

        network, (fixed, moving) = Centers(), next(iter(loader()))
        module = RegistrationModule(network, Objective(MSE()), torch.optim.Adam)
        there, back = module(fixed, moving), module.way_back(Task(fixed, moving, module.objective), through=1)
        assert float(InverseConsistency()(there, back, fixed.grid)) == pytest.approx(0, abs=1e-8)
        network.drift = 0.5
        there, back = module(fixed, moving), module.way_back(Task(fixed, moving, module.objective), through=1)
        assert float(InverseConsistency()(there, back, fixed.grid)) == pytest.approx(3 * 1.5**2, rel=1e-4)
        with pytest.raises(ValueError, match=r"data\.batch_size=3"):
            module.way_back(Task(fixed, moving, module.objective), through=2)

    def test_a_conditioned_network_is_validated_at_its_documented_weight(self, tmp_path):
        module = make()
        network = Conditioned(module.network, between=(0.01, 1.0), weight=0.1)
        module = RegistrationModule(network, module.objective, partial(torch.optim.Adam, lr=1e-3))
        weights = []

        class Seen(pl.Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                weights.append(("train", pl_module.task(batch).weight))

            def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
                weights.append(("val", pl_module.task(batch).weight))

        trainer(tmp_path, max_epochs=3, callbacks=[Seen()]).fit(module, loader(), loader())
        assert {weight for when, weight in weights if when == "val"} == {0.1}
        assert len({weight for when, weight in weights if when == "train"}) > 3

    def test_weights_are_averaged(self, tmp_path):
        """Averaging copies the module at any moment, with passes before and after."""
        module = make()
        module.network.deep = 0.5
        averaging = pl.callbacks.StochasticWeightAveraging(1e-3, swa_epoch_start=1)
        trainer(tmp_path, max_epochs=3, callbacks=[averaging]).fit(module, loader())
        assert all(p.isfinite().all() for p in module.network.parameters())

    def test_resuming_goes_on(self, tmp_path):
        first = trainer(tmp_path, max_epochs=1, callbacks=[pl.callbacks.ModelCheckpoint(tmp_path, "last")])
        first.fit(make(), loader())
        again = trainer(tmp_path, max_epochs=2)
        again.fit(make(), loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
        assert again.global_step == 2 * first.global_step

    def test_gradients_in_half_precision_do_not_depend_on_what_memory_held(self):
        """The deepest features have 2 voxels an axis, see :class:`learnreg.numerics.SmallConvolutions`."""
        module, (fixed, moving) = make(), next(iter(loader()))
        module.network = Pyramid(3, (16, 16, 16), steps=4)
        weights, gradients = list(module.network.parameters()), []
        for left in (1.0, 1e30, float("nan")):
            garbage = [torch.full((n,), left) for n in (10, 100, 1000, 7000, 10000, 100000) for _ in range(20)]
            with torch.autocast("cpu", torch.bfloat16):
                loss = module.training_step((fixed, moving), 0)
            del garbage
            gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
        assert torch.equal(gradients[0], gradients[1])
        assert torch.equal(gradients[0], gradients[2])

    def test_a_training_that_diverged_says_what_to_do(self, tmp_path):
        module = make()
        with torch.no_grad():
            next(module.network.parameters()).fill_(float("nan"))
        with pytest.raises(ValueError, match=r"optimizer\.lr"):
            trainer(tmp_path).validate(module, loader(), verbose=False)

    def test_callbacks(self, tmp_path):
        gap, pictures = AmortizationGap(refinement(), (2, 4), pairs=1), Pictures(str(tmp_path / "figures"), every=1)
        run = trainer(tmp_path, max_epochs=1, callbacks=[gap, pictures])
        run.fit(make(), loader(), loader())
        names = {f"val/{what}_after_{k}" for what in ("objective", "dice") for k in (0, 2, 4)}
        assert names | {"val/amortization_gap"} <= set(run.callback_metrics)
        assert float(run.callback_metrics["val/amortization_gap"]) > 0
        assert len(list((tmp_path / "figures").glob("step_*.png"))) == 1

    def test_the_rate_rises_and_falls_with_time_too(self, tmp_path):
        module, rates = make(), []

        class Watch(pl.Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                rates.append(trainer.optimizers[0].param_groups[0]["lr"])

        trainer(tmp_path, max_epochs=10, callbacks=[Watch()]).fit(module, loader())
        assert rates[-1] < 0.01 * max(rates)
        assert rates.index(max(rates)) < 0.2 * len(rates)
        rates.clear()
        trainer(tmp_path, max_epochs=-1, max_time="00:00:00:02", callbacks=[Watch()]).fit(make(), loader())
        assert rates[-1] < 0.3 * max(rates)


@pytest.mark.parametrize("as_method", [False, True])
def test_what_classical_steps_gain_after_an_untrained_network(as_method):
    solver = IterativeMethod({"deformation": refinement()}) if as_method else refinement()
    found = amortization(make(), next(iter(loader())), solver, (5, 20))
    assert found["objective_after_20"] < found["objective_after_5"] < found["objective_after_0"]
    assert found["dice_after_20"] > found["dice_after_0"] + 0.02


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.slow
def test_levels_join_one_after_the_other(tmp_path):
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            seen.append(pl_module.network.levels)

    network = LaplacianPyramid(3, (4, 4, 4), blocks=1)
    module = RegistrationModule(network, Objective(MSE()), partial(torch.optim.SGD, lr=0.01))
    run = trainer(tmp_path, max_steps=9, max_epochs=9, callbacks=[Progressive(), Watch()])
    run.fit(module, loader(), loader())
    assert seen[:9] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    other = RegistrationModule(UNet(3, (4,)), Objective(MSE()), partial(torch.optim.SGD, lr=0.01))
    with pytest.raises(ValueError, match="needs the network LaplacianPyramid"):
        trainer(tmp_path, max_steps=1, callbacks=[Progressive()]).fit(other, loader(), loader())


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.slow
def test_a_template_is_learned_and_saved(tmp_path):
    """From three bodies of 6 to 7 mm it becomes one of the middle size, in the middle."""
    torch.manual_seed(0)
    network = LearnedTemplate(UNet(3, (8, 16)), (16, 16, 16), momentum=0.9)
    objective = Objective(MSE(), {"diffusion": Penalty(Diffusion(), 0.01)})
    module = RegistrationModule(network, objective, partial(torch.optim.Adam, lr=5e-3))
    file = tmp_path / "template.nii.gz"
    run = trainer(tmp_path, max_epochs=40, callbacks=[SaveTemplate(str(file), 1.5), AmortizationGap(refinement(), [2])])
    before = float(run.validate(module, loader(), verbose=False)[0]["val/loss"])
    run.fit(module, loader(), loader())
    assert float(run.callback_metrics["val/loss"]) < 0.5 * before
    saved = read_image(file)
    assert saved.grid.matches(Grid.regular((16, 16, 16), 1.5))
    assert torch.allclose(saved.data, network.values.detach(), atol=1e-5)
    middle = blob_image(GRID, (0.0, 0.0, 0.0), (8.0, 7.0, 6.0))
    assert float((saved.data - middle.data).square().mean()) < 0.01
    assert float(network.mean.norm(dim=1).mean()) < 0.45  # mm; voxels of 1.5
    with pytest.raises(ValueError, match="needs the network LearnedTemplate"):
        trainer(tmp_path, max_epochs=1, callbacks=[SaveTemplate(str(file))]).fit(make(), loader())


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.slow
def test_a_template_that_depends_on_covariates(tmp_path):
    """Bodies grow with the covariate; so does the template, also for a value that no image had."""
    torch.manual_seed(0)
    ages = (20.0, 30.0, 50.0, 60.0)
    images = [
        replace(blob_image(GRID, (0.0, 0.0, 0.0), (4.0 + age / 15,) * 3), covariates=torch.tensor([[age]]))
        for age in ages
    ]
    pairs = torch.utils.data.DataLoader(OrderedPairs(images, lambda i: i), batch_size=4, collate_fn=collate)
    network = ConditionalTemplate(UNet(3, (8, 16)), (16, 16, 16), [[20, 60]], momentum=0.9)
    # at this stiffness it is the template that changes, not the deformation
    objective = Objective(MSE(), {"diffusion": Penalty(Diffusion(), 100.0)})
    module = RegistrationModule(network, objective, partial(torch.optim.Adam, lr=5e-3))
    file = tmp_path / "template.nii.gz"
    save = SaveTemplate(str(file), 1.5, [[25], [40], [55]])
    trainer(tmp_path, max_epochs=60, callbacks=[save]).fit(module, pairs)
    found = [read_image(tmp_path / f"template_{age}.nii.gz").data for age in (25, 40, 55)]
    wanted = [blob_image(GRID, (0.0, 0.0, 0.0), (4.0 + age / 15,) * 3).data for age in (25, 40, 55)]
    apart = [[float((f - w).square().mean()) for w in wanted] for f in found]
    assert all(row.index(min(row)) == k for k, row in enumerate(apart)), apart
    assert apart[1][1] < 0.7 * min(apart[1][0], apart[1][2])
    with pytest.raises(ValueError, match=r"data\.covariates"):
        network.template(blob_image(GRID))
    with pytest.raises(ValueError, match="say for which values"):
        trainer(tmp_path, max_epochs=1, callbacks=[SaveTemplate(str(file))]).fit(module, pairs)
