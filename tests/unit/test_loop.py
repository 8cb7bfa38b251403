"""The loop: what it minimizes, who plays when, how it scores, and what it says when it cannot go on."""

from __future__ import annotations

import json
import math
import random
import signal
import threading

import numpy as np
import pytest
import torch
from loop_toys import EVERYTHING, SPEC, TRAIN, VAL, Config, Pairs, Towers, make, noisy, run, same
from torch import nn

from avcl.errors import BatchError, ConfigError, DataError, DivergedError, ExistsError, LockedError
from avcl.files import Lock
from avcl.loop import fit
from avcl.loop.optimizer import Player
from avcl.seeds import seed_for, seeded
from avcl.system import Phase
from avcl.types import Inputs


def test_learns_and_reports() -> None:
    result = run(settings={"epochs": 15, "noise": 0.0})
    assert (result.steps, result.epochs, len(result.history), result.stopped_early) == (60, 15, 15, False)
    assert result.history[-1]["losses"]["nce"] < result.history[0]["losses"]["nce"] - 0.2
    scores = [entry["validation"] for entry in result.history]
    assert result.best == {"epoch": scores.index(max(scores)), "step": result.best["step"], "score": max(scores)}
    assert not result.system.training
    assert result.system.finished == 24


def test_same_seed_same_bits_whatever_the_workers() -> None:
    one, two = run(transforms=(noisy,)), run(transforms=(noisy,), workers=2)
    assert same(one.system.state_dict(), two.system.state_dict())
    assert one.history == two.history
    other = run(transforms=(noisy,), seed=1, system=make(0))
    assert not same(one.system.state_dict(), other.system.state_dict())
    assert not same(one.system.state_dict(), run().system.state_dict())


def test_global_randomness_of_the_caller_is_left_alone() -> None:
    def draw() -> tuple[float, float, float]:
        return torch.rand(1).item(), float(np.random.rand()), random.random()

    def start() -> None:
        torch.manual_seed(3), np.random.seed(3), random.seed(3)

    start()
    before = draw()
    start()
    run(max_steps=2)
    assert draw() == before


def test_first_step_is_adamw_by_hand() -> None:
    """One step from zero moments: p ← p (1 - lr · decay) - lr · g / (|g| + eps); no decay on one-axis parameters."""
    system = make(noise=0.0, warmup=0.0, weight_decay=0.1, clip_norm=0.0, epochs=1)
    for module in system.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    before = {n: p.detach().clone() for n, p in system.named_parameters()}
    gradients: dict[str, torch.Tensor] = {}
    for name, p in system.named_parameters():
        p.register_post_accumulate_grad_hook(lambda p, name=name: gradients.__setitem__(name, p.grad.clone()))
    result = run(system=system, val=None, max_steps=1)
    rate = 0.02
    assert result.history[0]["lr"] == {"main": rate}
    for name, p in system.named_parameters():
        g, decay = gradients[name], 0.1 if before[name].ndim > 1 else 0.0
        expected = before[name] * (1 - rate * decay) - rate * g / (g.abs() + 1e-8)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-6)


def test_learning_rate_by_hand() -> None:
    player = Player(Phase("x", [nn.Parameter(torch.ones(2))], optimizer={"learning_rate": 2.0}), Config(warmup=0.2), 10)
    expected = [1.0, 2.0] + [1 + math.cos(math.pi * k / 8) for k in range(8)]
    assert [player.rate(s) for s in range(10)] == pytest.approx(expected)
    late = Player(Phase("x", [nn.Parameter(torch.ones(2))], start=0.5, every=2), Config(warmup=0.0), 10)
    assert [s for s in range(10) if late.plays(s)] == [6, 8]
    assert late.rate(5) == pytest.approx(0.02)


def test_players_move_only_their_own_parameters_when_it_is_their_turn() -> None:
    class Watching(Towers):
        def after_step(self, encoded, batch, at):
            super().after_step(encoded, batch, at)
            seen.append((at.step, [p.detach().clone() for p in (self.audio[0].weight, self.video[0].weight)]))

    seen: list = []
    with seeded(0, "init"):
        system = Watching(Config(players=2), SPEC)
    start = [p.detach().clone() for p in (system.audio[0].weight, system.video[0].weight)]
    result = run(system=system, val=None)
    steps, weights = zip(*seen, strict=True)
    assert steps == tuple(range(16))
    moved = [[not torch.equal(a, b) for a, b in zip(x, y, strict=True)] for x, y in zip([start, *weights], weights)]  # noqa: B905
    # the second plays every second step of 0.2 · 16 = 3.2 → 4 up to 0.9 · 16 = 14.4 → 14
    assert [m[0] for m in moved] == [True] * 16
    assert [s for s, m in enumerate(moved) if m[1]] == [4, 6, 8, 10, 12, 14]
    assert set(result.history[1]["lr"]) == {"audio", "video"}
    assert set(result.history[0]["losses"]) == {"nce"}  # nobody minimized the other term yet


def test_early_stopping_restores_the_best_weights() -> None:
    scores = iter([0.1, 0.3, 0.2, 0.25, 0.9])
    kept = {}

    def validate(system) -> float:
        assert not system.training
        assert not torch.is_grad_enabled()
        kept[len(kept)] = {k: v.clone() for k, v in system.state_dict().items()}
        return next(scores)

    result = run(settings={"epochs": 9, "patience": 2}, validate=validate)
    assert result.stopped_early
    assert (result.epochs, result.steps) == (4, 16)
    assert result.best == {"epoch": 1, "step": 8, "score": 0.3}
    final = result.system.state_dict()
    assert final.pop("finished") == 24
    assert same(final, {k: v for k, v in kept[1].items() if k != "finished"})


def test_moving_average_is_evaluated_and_kept() -> None:
    class Recording(Towers):
        def after_step(self, encoded, batch, at):
            history.append(self.audio[0].weight.detach().clone())

    history: list = []
    with seeded(0, "init"):
        system = Recording(Config(ema=0.5), SPEC)
    expected = system.audio[0].weight.detach().clone()
    result = run(system=system, val=None)
    for step, weight in enumerate(history):
        expected.lerp_(weight, 1 - min(0.5, (1 + step) / (10 + step)))
    assert torch.equal(result.system.audio[0].weight, expected)
    assert not torch.equal(history[-1], expected)


def test_validation_does_not_disturb_training() -> None:
    scored, unscored = run(settings={"epochs": 2}), run(settings={"epochs": 2}, val=None)
    assert [h["losses"] for h in scored.history] == [h["losses"] for h in unscored.history]
    assert unscored.best is None


def test_bf16() -> None:
    seen = set()

    class Looking(Towers):
        def losses(self, encoded, batch, at):
            seen.add(encoded["audio"].dtype)
            return super().losses(encoded, batch, at)

    result = run(system=Looking(Config(precision="bf16"), SPEC))
    assert seen == {torch.bfloat16}
    assert result.system.audio[0].weight.dtype == torch.float32
    with pytest.raises(ConfigError, match="precision"):
        run(settings={"precision": "fp8"})


def test_hooks_see_every_clip_in_order() -> None:
    seen = {}

    class Hooked(Towers):
        def begin_epoch(self, batches, epoch):
            assert not self.training
            seen[epoch] = [i for batch in batches for i in batch.id]
            assert [i for batch in batches for i in batch.id] == seen[epoch]  # twice, if it likes

    run(system=Hooked(Config(epochs=2, batch_size=7), SPEC))
    assert seen == {0: list(TRAIN.ids), 1: list(TRAIN.ids)}


def test_views_inputs_and_small_data() -> None:
    rows = []

    class Counting(Towers):
        def losses(self, encoded, batch, at):
            rows.append((len(batch), batch.view.tolist()[:2]))
            return super().losses(encoded, batch, at)

    system = Counting(Config(epochs=1, batch_size=50), SPEC)
    result = run(system=system, inputs=Inputs(views=2), val=None)
    assert rows == [(48, [0, 1])]
    assert result.steps == 1
    with pytest.raises(DataError, match="no clips"):
        run(train=TRAIN.subset([]))


# --------------------------------------------------------------------------------------------------------- closed forms
class Mean(Towers):
    """A closed form: the mean of the pictures."""

    closed_form = True

    def finish(self, batches):
        rows = [batch.video.data[:, 0].double() for batch in batches]
        self.center.copy_(torch.cat(rows).mean(0))

    def begin_epoch(self, batches, epoch):
        raise AssertionError("a closed form has no epochs")


def test_closed_form(tmp_path) -> None:
    with seeded(0, "init"):
        system = Mean(Config(), SPEC)
    before = system.audio[0].weight.detach().clone()
    result = run(tmp_path, system=system, validate=lambda s: float(s.center.sum()))
    assert torch.allclose(system.center, TRAIN.video[:24].double().mean(0))
    assert torch.equal(system.audio[0].weight, before)
    assert (result.steps, result.epochs) == (0, 0)
    assert result.best["score"] == float(system.center.sum())
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


# ----------------------------------------------------------------------------------------------------------- divergence
def test_nan_in_the_input_names_stream_and_clip() -> None:
    with pytest.raises(DivergedError, match=r'step \d: loss nce = nan, .*learning rate .*; video of clip "clip5" has'):
        run(train=Pairs(24, broken=5))


def test_nan_in_a_weight_names_it() -> None:
    system = make()
    with torch.no_grad():
        system.video[0].weight[0, 0] = float("inf")
    with pytest.raises(DivergedError, match=r"step 0: .*the weight video\.0\.weight is not finite"):
        run(system=system)


def test_overflow_of_the_objective_and_of_the_gradient(tmp_path) -> None:
    class Overflowing(Towers):
        def losses(self, encoded, batch, at):
            terms = super().losses(encoded, batch, at)
            if at.step == 6:
                terms["hinge"] = terms["nce"] * float("inf")
            return terms

    with pytest.raises(DivergedError, match=r"step 6: loss hinge = inf .*the objective overflowed"):
        run(tmp_path, system=Overflowing(Config(), SPEC))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]

    class Steep(Towers):
        def losses(self, encoded, batch, at):
            bias = self.video[4].bias[0]
            return {"root": (bias - bias.detach()).abs().sqrt() + (encoded["audio"] + encoded["video"]).mean()}

    with pytest.raises(DivergedError, match=r"the gradient is not finite .*first in video\.4\.bias"):
        run(system=Steep(Config(), SPEC))


def test_nan_score() -> None:
    with pytest.raises(DivergedError, match="validation score after step 4 is nan"):
        run(validate=lambda system: float("nan"))


# ----------------------------------------------------------------------------------------------------- systems at fault
@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (lambda s: (Phase("a", tuple(s.parameters()), ("nec",)),), 'a loss "nec" .*Did you mean "nce"'),
        (lambda s: (Phase("a", tuple(s.parameters()), optimizer={"lr": 0.1}),), '"lr" is not a setting'),
        (lambda s: (Phase("a", ()),), "no parameter"),
        (lambda s: (), "different names"),
        (
            lambda s: (Phase("a", tuple(s.audio.parameters())), Phase("a", tuple(s.video.parameters()))),
            "different names",
        ),
    ],
)
def test_phases_that_do_not_fit(phases, message) -> None:
    system = make()
    system.phases = lambda: phases(system)
    with pytest.raises(ConfigError, match=message):
        run(system=system)


def test_losses_that_do_not_fit() -> None:
    system = make()
    system.losses = lambda encoded, batch, at: {"rows": encoded["audio"].mean(1)}
    with pytest.raises(ConfigError, match=r'"rows" must be a scalar; its shape is \(6,\)'):
        run(system=system)
    system.losses = lambda encoded, batch, at: {"none": encoded["audio"].detach().mean()}
    with pytest.raises(ConfigError, match="depends on a parameter"):
        run(system=system)


def test_typed_errors_of_data_pass_through() -> None:
    system = make()
    system.encode = lambda batch: batch.require("text")
    with pytest.raises(BatchError, match="no text"):
        run(system=system)


# ------------------------------------------------------------------------------------------------------------- the log
def test_metrics_and_plain_progress(tmp_path, capsys) -> None:
    run(tmp_path, settings=EVERYTHING | {"patience": 0}, progress=True)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, 17))
    assert steps[4].keys() == {"event", "step", "epoch", "losses", "lr", "grad_norm", "clips_per_second"}
    assert steps[4]["grad_norm"].keys() == {"audio", "video"}
    assert [line["epoch"] for line in lines if line["event"] == "epoch"] == [0, 1, 2, 3]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert 5 <= printed.err.count("step ") <= 10
    assert printed.err.count("validation") == 4
    run()
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    run(progress=True, settings={"epochs": 2})
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "8/8" in printed.err


# --------------------------------------------------------------------------------------------------- folders and Ctrl-C
def test_one_writer_at_a_time(tmp_path) -> None:
    with Lock(tmp_path), pytest.raises(LockedError, match="is writing here"):
        run(tmp_path)


def test_another_run_is_refused_by_name(tmp_path) -> None:
    run(tmp_path, settings={"epochs": 1})
    with pytest.raises(ExistsError, match=r"seed was 0, is 1"):
        run(tmp_path, seed=1, settings={"epochs": 1})
    with pytest.raises(ExistsError, match=r"config\.learning_rate was 0\.02, is 0\.5"):
        run(tmp_path, settings={"epochs": 1, "learning_rate": 0.5})
    with pytest.raises(ExistsError, match="train was"):
        run(tmp_path, settings={"epochs": 1}, train=VAL)
    with pytest.raises(ExistsError, match="transforms was"):
        run(tmp_path, settings={"epochs": 1}, transforms=(noisy,))
    with pytest.raises(ExistsError, match="there is a run"):
        run(tmp_path, settings={"epochs": 1}, resume=False)
    assert run(tmp_path, settings={"epochs": 1}, workers=1).steps == 4


def test_ctrl_c_leaves_a_checkpoint_and_the_handler(tmp_path) -> None:
    class Interrupted(Towers):
        def losses(self, encoded, batch, at):
            if at.step == 5 and armed:
                armed.clear()
                signal.raise_signal(signal.SIGINT)
            return super().losses(encoded, batch, at)

    def system() -> Towers:
        with seeded(0, "init"):
            return Interrupted(Config(**EVERYTHING), SPEC)

    armed: list = []
    whole = run(tmp_path / "whole", system=system(), checkpoint_steps=0)
    armed = [True]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", system=system(), checkpoint_steps=0)
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "cut" / "checkpoints" / "step-00000006").is_dir()
    again = run(tmp_path / "cut", system=system(), checkpoint_steps=0)
    assert same(whole.system.state_dict(), again.system.state_dict())


def test_in_another_thread() -> None:
    results: list = []
    thread = threading.Thread(target=lambda: results.append(run(settings={"epochs": 1})))
    thread.start()
    thread.join()
    assert results[0].steps == 4


def test_seed_streams_are_named() -> None:
    assert len({seed_for(0, "init"), seed_for(1, "init"), seed_for(0, "loss", 1), seed_for(0, "loss", 2)}) == 4
    assert seed_for(0, "init") == seed_for(0, "init") < 2**63
    assert fit.__doc__
