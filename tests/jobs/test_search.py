"""Architecture search: its space, what fits a board, the front, and a search from the command line to its tables."""

import itertools
import json
import os
import random
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from audio_sets import write_fsdd
from torch import nn

from edgetrain.build import build, read_config
from edgetrain.checkpoint import last_checkpoint, model_weights, read_checkpoint
from edgetrain.cli import main
from edgetrain.compose import compose
from edgetrain.config import Config
from edgetrain.data.audio import AudioData
from edgetrain.errors import UserError
from edgetrain.folder import RunFolder
from edgetrain.hardware.cost import Cost
from edgetrain.hardware.folding import deployed
from edgetrain.jobs.fit import Fit
from edgetrain.jobs.search import base_of
from edgetrain.jobs.search_board import Board, Need, Verdict, operations, restored, saved
from edgetrain.jobs.search_candidate import Candidate
from edgetrain.jobs.search_result import Aim, front, stairs
from edgetrain.jobs.search_sampler import spread_over, suggestions
from edgetrain.jobs.search_space import Axis, configured, point, read_space, size
from edgetrain.models.keyword import ds_cnn, keyword
from edgetrain.tasks.classify import Classify
from edgetrain.tasks.predictions import Predictions

RECIPE = """\
# A small search.
# Paper: none
# Claim: none
# Needs: nothing. Smoke: seconds.
# Run:   python -m edgetrain recipe=small
defaults:
  - override /job: search
  - override /data: fsdd
  - override /model: ds_cnn
  - override /task: classify
  - override /optimizer: adamw
  - override /trainer: default
  - override /hardware: [cortex_m4]
job:
  proposals: 8
  candidates: 4
  operations: 1e6
  space:
    model:
      channels: range(8,25,4)
      blocks: [1, 2]
      kernel: [[10, 4], [3, 3]]
  references:
    hand: {model: {channels: 16, blocks: 2}}
hardware: {cortex_m4: {flash_bytes: 2000}}
data: {batch_size: 10, limit: 20}
optimizer: {lr: 1e-2}
trainer: {max_steps: 4, val_check_interval: 4, accelerator: cpu, precision: 32-true}
smoke: []
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe and its data."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "small.yaml").write_text(RECIPE)
    write_fsdd(folder / "fsdd")
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("EDGETRAIN_DATA", str(place))


@pytest.fixture(scope="module")
def finished(place: Path) -> RunFolder:
    """A whole search, shared by the tests that only read it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("EDGETRAIN_DATA", str(place))
        assert main(["recipe=small.yaml", "out=finished"]) == 0
    return RunFolder.open(place / "finished")


def refusal(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    assert main(["recipe=small.yaml", *overrides, "out=refused"]) == 2
    shutil.rmtree("refused", ignore_errors=True)
    return capsys.readouterr().err


# The space


def base() -> dict[str, Any]:
    return base_of(compose(["recipe=small.yaml"]))


def space(**model: Any) -> list[Axis]:
    return read_space({"model": model}, base())


def test_every_point_of_a_space_has_one_number() -> None:
    axes = space(channels="range(8,21,6)", blocks=[1, 3], kernel=[[10, 4], [3, 3]])
    expected = list(itertools.product(range(3), range(2), range(2)))
    assert size(axes) == 12
    assert [point(axes, number) for number in range(12)] == expected
    assert axes[0].values == (8, 14, 20)


def test_a_point_changes_its_own_keys_and_no_other() -> None:
    before = base()
    axes = read_space({"model": {"channels": [8, 12]}, "optimizer": {"lr": [0.1, 0.2]}}, before)
    config = configured(before, axes, (1, 0))
    assert before == base()
    expected = base()
    expected["model"]["channels"], expected["optimizer"]["lr"] = 12, 0.1
    assert config.to_dict() == expected


def test_keys_that_change_together_are_one_axis() -> None:
    features = [
        {"data": {"stride_ms": 20, "frames": 49}, "model": {"frames": 49}},
        {"data": {"stride_ms": 40, "frames": 25}, "model": {"frames": 25}},
    ]
    (axis,) = read_space({"features": features}, base())
    config = configured(base(), [axis], (1,))
    assert (config.data["stride_ms"], config.data["frames"], config.model["frames"]) == (40, 25, 25)
    assert config.data["batch_size"] == 10
    assert axis.shown(1) == "stride_ms=40 frames=25"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "job.space is empty"),
        ({"model": {}}, "job.space is empty"),
        ({"model": {"blocks": []}}, "job.space.model.blocks=[]: holds no value"),
        ({"model": {"blocks": [1, 1]}}, "a value stands in it twice"),
        ({"model": {"blocks": 3}}, "give a list of values"),
        ({"model": {"blocks": "range(3,1)"}}, "holds no value"),
        ({"model": {"blocks": "range(1,3,0)"}}, "holds no value"),
        ({"model": {"blocks": "range(1)"}}, "give a list of values, or range(START,END,STEP)"),
        ({"model": {"chanels": [8]}}, "did you mean 'channels'?"),
        ({"modle": {"channels": [8]}}, "there is no modle in the configuration"),
        ({"model": {"blocks": ["two"]}}, "model.blocks='two': expected int"),
        ({"model": {"blocks": [1, {"data": {}}]}}, "either all of its values are keys with values"),
        ({"dtaa": [{"data": {"frmes": 3}}]}, "data.frmes=3"),
    ],
)
def test_a_space_that_the_configuration_does_not_take_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match="job.space") as error:
        read_space(given, base())
    assert said in str(error.value)


# The board

SIZES = {  # speech.md 1.3, from the code that was released with the paper
    "s": ({"channels": 64, "blocks": 4, "stride": [2, 2], "block_stride": 1}, 5_385_548, 22_604),
    "m": ({"channels": 172, "blocks": 4, "stride": [2, 1], "block_stride": 2}, 19_765_220, 135_032),
    "l": ({"channels": 276, "blocks": 5, "stride": [2, 1], "block_stride": 2}, 56_904_036, 410_700),
}


def board(**limits: Any) -> Board:
    """A Cortex-M4 with these bytes; `operations` and `milliseconds` are the board's own."""
    own = {key: limits.pop(key) for key in ("operations", "milliseconds") if key in limits}
    node = compose(["recipe=kws_fsdd", "hardware=[cortex_m4]"]).hardware["cortex_m4"]
    return Board(build(node | limits), **own)


def network(**model: Any) -> Config:
    return compose(["recipe=kws_fsdd", "model=ds_cnn", *(f"model.{key}={value}" for key, value in model.items())])


@pytest.mark.parametrize("name", SIZES)
def test_one_by_one_hyperparameters_give_the_papers_networks(name: str) -> None:
    hyperparameters, _, _ = SIZES[name]
    ours, theirs = ds_cnn(**hyperparameters).eval(), keyword("ds_cnn", name).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 49, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("key", "value"), [("blocks", 0), ("channels", 1.5), ("kernel", [10]), ("stride", [0, 1]), ("block_stride", -1)]
)
def test_hyperparameters_that_no_network_has_are_refused(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"model.{key}="):
        ds_cnn(**{key: value})


@pytest.mark.parametrize("name", SIZES)
def test_a_network_needs_the_papers_operations_and_its_parameters_in_flash(name: str) -> None:
    """Operations as printed in the paper's table, 5.4, 19.8 and 56.9 million; a bias has 4 bytes, a weight one."""
    hyperparameters, operations, parameters = SIZES[name]
    verdict = board().judge(network(**hyperparameters, classes=12))
    channels, blocks = hyperparameters["channels"], hyperparameters["blocks"]
    biases = (2 * blocks + 1) * channels + 12
    assert verdict.of("operations") == pytest.approx(operations, rel=1e-4)
    assert verdict.of("flash") == parameters - biases + 4 * biases


def test_operations_are_two_a_mac_and_one_for_a_bias_that_is_added() -> None:
    """A 3x3 convolution from 4 x 4 to 8 maps of 2 x 2 without biases, and a linear layer, 32 to 5, with them."""
    convolution = nn.Conv2d(1, 8, 3, bias=False)
    model = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(32, 5))
    workload = deployed(model, (torch.zeros(1, 1, 4, 4),), "two")
    assert operations(workload) == 2 * (9 * 8 * 2 * 2 + 32 * 5) + 5


def test_the_smallest_network_holds_two_maps_in_ram() -> None:
    """64 channels of 25 x 5, read and written, each of one byte; its 3x3 kernels need no scratch memory."""
    assert board().judge(network()).of("RAM") == 2 * 64 * 25 * 5


def test_a_limit_holds_to_the_byte_and_says_by_how_much_it_does_not() -> None:
    needed = board().judge(network())
    flash, ram, operations = (int(needed.of(name)) for name in ("flash", "RAM", "operations"))
    just = {"flash_bytes": flash, "ram_bytes": ram, "operations": operations}
    assert board(**just).judge(network()).feasible
    assert board(**just).judge(network()).reason == ""
    cases = {"flash_bytes": "flash by 3 bytes", "ram_bytes": "RAM by 3 bytes", "operations": "operations by 3"}
    for key, said in cases.items():
        verdict = board(**just | {key: just[key] - 3}).judge(network())
        assert not verdict.feasible
        assert verdict.reason == said
        assert verdict.excess == pytest.approx(3 / (just[key] - 3))


def test_modelled_time_is_a_limit_in_milliseconds() -> None:
    workload = deployed(keyword("ds_cnn", "s", classes=10), (torch.zeros(1, 49, 10),), "s")
    milliseconds = board().judge(network()).of("milliseconds")
    assert milliseconds == pytest.approx(1e3 * board().device.cost(workload).seconds)
    assert board(milliseconds=milliseconds - 1).judge(network()).reason == "milliseconds by 1 ms"


def test_a_network_with_a_layer_of_unknown_time_does_not_keep_a_limit_of_time() -> None:
    """A table without a rate for pools, and the network averages its last maps."""
    without = board(milliseconds=1e6)
    without.device.cycles.pop("pool")
    assert "no modelled time" in without.judge(network()).reason


def test_a_model_that_cannot_be_built_does_not_fit() -> None:
    verdict = board().judge(network(kernel=[10]))
    assert not verdict.feasible
    assert "model.kernel" in verdict.reason


@pytest.mark.parametrize(("limits", "said"), [({"operations": 0}, "job.operations=0"), ({"milliseconds": -1}, "=-1")])
def test_limits_that_nothing_keeps_are_refused(limits: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        board(**limits)


@pytest.mark.parametrize(("key", "name"), [("flash_bytes", "flash"), ("ram_bytes", "RAM")])
def test_a_board_without_memory_is_refused(key: str, name: str) -> None:
    with pytest.raises(UserError, match=f"0 bytes of {name}.*hardware.cortex_m4.{key}"):
        board(**{key: 0}).judge(network())


def test_a_device_without_limits_is_no_board() -> None:
    device = SimpleNamespace(name="free", cost=lambda workload: Cost("free", workload.name, (), 0))
    with pytest.raises(UserError, match="nothing limits the search"):
        Board(device).judge(network())


def test_a_verdict_is_the_same_from_its_file() -> None:
    verdict = Verdict((Need("flash", "bytes", 30, 20), Need("milliseconds", "ms", 0.25)), "")
    assert restored(json.loads(json.dumps(saved(verdict)))) == verdict


# The front, and what is trained next


def scored(cost: float, score: float, name: str = "one") -> Candidate:
    verdict = Verdict((Need("operations", "", cost),))
    return Candidate(name, None, verdict, metrics={"validation/accuracy": score, "validation/loss": score})


@pytest.mark.parametrize(("metric", "sign"), [("accuracy", 1), ("loss", -1)])
def test_the_front_is_what_nothing_dominates(metric: str, sign: int) -> None:
    """By the definition: nothing else is at most as dear and at least as good; a high accuracy is good, a low loss."""
    rng = random.Random(0)
    for _ in range(50):
        drawn = {f"n{number}": (rng.randint(1, 6), rng.randint(1, 6)) for number in range(12)}
        values = set(drawn.values())
        better = {
            (cost, value)
            for cost, value in values
            if not any(c <= cost and sign * v >= sign * value and (c, v) != (cost, value) for c, v in values)
        }
        found = front([scored(*value, name) for name, value in drawn.items()], Aim(metric, sign, "operations"))
        assert [drawn[one.name] for one in found] == sorted(better)


def test_of_equals_the_cheaper_is_the_best() -> None:
    everyone = [scored(5, 0.9, "dear"), scored(3, 0.9, "cheap"), scored(1, 0.5, "poor")]
    assert front(everyone, Aim("accuracy", 1, "operations"))[-1].name == "cheap"


def test_the_line_of_the_front_steps_up_where_a_network_is() -> None:
    assert stairs([(1, 0.5), (3, 0.7), (9, 0.8)]) == [(1, 0.5), (3, 0.5), (3, 0.7), (9, 0.7), (9, 0.8)]
    assert stairs([(1, 0.5)]) == [(1, 0.5)]


def test_what_is_trained_first_lies_evenly_over_the_decades() -> None:
    costs = {(number,): float(number) for number in (1, 2, 3, 9, 11, 30, 99, 500, 1000)}
    assert spread_over(costs, 4) == [(1,), (11,), (99,), (1000,)]
    assert spread_over(costs, 1) == [(1,)]
    assert sorted(spread_over(costs, 20)) == sorted(costs)


def test_suggestions_follow_from_the_seed_and_stay_in_the_space() -> None:
    axes = space(channels="range(8,81,4)", kernel=[[10, 4], [3, 3]])
    done = [(point(axes, number), 10.0 + number, number / 40) for number in range(0, 38, 4)]

    def first(seed: int) -> list[tuple[int, ...]]:
        return list(itertools.islice(suggestions(axes, done, seed), 10))

    assert first(1) == first(1)
    assert first(1) != first(2)
    assert all(0 <= place < len(axis.values) for each in first(1) for axis, place in zip(axes, each, strict=True))


def test_suggestions_come_from_where_networks_were_good_and_cheap() -> None:
    """Of 40 values the lower half has high scores at equal cost; by lot half of the proposals would lie there."""
    axes = space(channels="range(8,165,4)")
    done = [((place,), 100.0, 0.9 if place < 20 else 0.1) for place in range(0, 40, 2)]
    drawn = list(itertools.islice(suggestions(axes, done, 0), 40))
    assert sum(place < 20 for (place,) in drawn) > 30


# A whole search


def trained_rows(folder: RunFolder) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in folder.read_table("trained")]


def test_every_proposal_is_listed_with_why_it_does_not_fit(finished: RunFolder) -> None:
    rows = finished.read_table("candidates")
    assert len({(row["model.channels"], row["model.blocks"], row["model.kernel"]) for row in rows}) == len(rows) >= 8
    assert {row["fits"] for row in rows} == {"yes", "no"}
    for row in rows:
        over = {"flash": int(row["flash (bytes)"]) - 2000, "operations": int(row["operations"]) - 1_000_000}
        units = {"flash": " bytes", "operations": ""}
        expected = [f"{name} by {value:,}{units[name]}" for name, value in over.items() if value > 0]
        assert row["why not"] == ", ".join(expected)


def test_only_networks_that_fit_are_trained_and_each_once(finished: RunFolder) -> None:
    fit = {row["network"] for row in finished.read_table("candidates") if row["fits"] == "yes"}
    trained = [row["network"] for row in finished.read_table("trained")]
    assert set(trained) - {"hand"} <= fit
    assert len(trained) == len(set(trained)) == 5
    runs = {path.name for path in (finished.path / "runs").iterdir()}
    assert runs == {f"{name}_seed0" for name in trained}


def test_the_best_on_validation_data_is_what_the_run_goes_on_with(finished: RunFolder) -> None:
    metrics = finished.read_json("metrics.json")
    rows = [row for row in finished.read_table("trained") if row["network"] != "hand"]
    best = max(rows, key=lambda row: (float(row["accuracy"]), -int(row["operations"])))
    assert metrics["best/network"] == best["network"]
    assert metrics["validation/accuracy"] == float(best["accuracy"])
    assert metrics["cost/cortex_m4/weight_bytes"] == int(best["flash (bytes)"]) == metrics["best/flash"]
    assert (finished.path / "figures" / "front.png").stat().st_size > 5000


def test_the_most_accurate_is_chosen_and_not_the_cheapest(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an accuracy that grows with the network, the front is all of them and its dearest end the best."""

    def by_size(self: Classify, predictions: Predictions) -> dict[str, float]:
        size = sum(weight.numel() for weight in self.model.parameters())
        return {"loss": predictions.mean_loss, "accuracy": size / 1e4}

    monkeypatch.setattr(Classify, "score", by_size)
    assert main(["recipe=small.yaml", "job.candidates=2", "out=larger"]) == 0
    folder = RunFolder.open("larger")
    rows = [row for row in folder.read_table("trained") if row["network"] != "hand"]
    assert [row["kind"] for row in rows] == ["front", "front"]
    best = max(rows, key=lambda row: float(row["accuracy"]))
    assert folder.read_json("metrics.json")["best/network"] == best["network"]


def test_a_network_is_an_ordinary_run(finished: RunFolder, place: Path) -> None:
    """The same network trained by job=fit has the same weights to the bit."""
    child = RunFolder.open(finished.path / finished.read_json("metrics.json")["best/run"])
    model = read_config(child)["model"]
    values = [f"model.{key}={model[key]}" for key in ("channels", "blocks", "kernel")]
    assert main(["recipe=small.yaml", "job=fit", *values, "hardware=[]", "out=ordinary"]) == 0
    ours, theirs = (
        model_weights(read_checkpoint(last_checkpoint(folder))) for folder in (child, RunFolder.open("ordinary"))
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    scores = RunFolder.open("ordinary").read_json("metrics.json")
    accuracy = finished.read_json("metrics.json")["test/accuracy"]
    assert scores["test/accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_a_search_looks_at_the_test_split_when_all_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    in_order, train = AudioData._in_order, Fit.train

    def noted(self: AudioData, split: str) -> Any:
        looked.append(split)
        return in_order(self, split)

    def train_noted(*arguments: Any) -> Any:
        looked.append("train")
        return train(*arguments)

    monkeypatch.setattr(AudioData, "_in_order", noted)
    monkeypatch.setattr(Fit, "train", train_noted)
    assert main(["recipe=small.yaml", "out=looks"]) == 0
    assert looked.count("test") == 2  # the best and the one reference, once each
    assert looked.count("train") == 5
    assert looked[-2:] == ["test", "test"]
    for path in Path("looks/runs").glob("*/metrics.json"):
        assert not any(name.startswith("test/") for name in json.loads(path.read_text()))


def test_a_search_that_was_stopped_goes_on_to_the_same_end(
    finished: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C within the third training: two runs are not trained again, and the third goes on from its checkpoint."""
    steps = 0
    step = Classify.training_step

    def counted(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 4 + 4 + 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments)

    trainings = []
    train = Fit.train

    def noted(self: Fit, config: Config, folder: RunFolder) -> Any:
        trainings.append(folder.path.name)
        return train(self, config, folder)

    monkeypatch.setattr(Classify, "training_step", counted)
    monkeypatch.setattr(Fit, "train", noted)
    assert main(["recipe=small.yaml", "out=stopped"]) == 130
    assert "resume with" in capsys.readouterr().err
    assert steps == 10
    assert main(["resume=stopped"]) == 0
    assert steps == 5 * 4
    assert len(trainings) == 3 + 3
    assert trainings[2] == trainings[3]
    assert trained_rows(RunFolder.open("stopped")) == trained_rows(finished)
    both = [RunFolder.open(name).read_json("metrics.json") for name in ("stopped", "finished")]
    chosen = [
        {key: value for key, value in each.items() if key.startswith(("best/", "test/", "hand/"))} for each in both
    ]
    assert chosen[0] == chosen[1]


def test_a_finished_run_of_another_network_is_not_taken_for_ones_own(finished: RunFolder, tmp_path: Path) -> None:
    one = next((finished.path / "runs").iterdir())
    shutil.copytree(one, tmp_path / "runs" / "candidate0_seed0")
    axes = read_space({"model": {"channels": [100]}}, base())
    stranger = Candidate("candidate0", configured(base(), axes, (0,)), Verdict())
    with pytest.raises(UserError, match="candidate0_seed0 has another model"):
        stranger.train(RunFolder(tmp_path))


def test_a_verb_for_one_network_names_the_best(finished: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", f"run={finished.path}"]) == 2
    best = finished.read_json("metrics.json")["best/run"]
    assert f"run=finished/{best}" in capsys.readouterr().err
    assert main(["eval", f"run=finished/{best}"]) == 0
    assert "test/accuracy" in capsys.readouterr().out


def test_a_network_that_diverges_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    step, first = Classify.training_step, []

    def of_the_reference(self: Classify, batch: Any, index: int) -> Any:
        loss = step(self, batch, index)
        if not first:
            first.append(self)
        return loss * float("nan") if self is first[0] else loss

    monkeypatch.setattr(Classify, "training_step", of_the_reference)
    assert main(["recipe=small.yaml", "job.candidates=1", "out=diverges"]) == 0
    assert "hand" not in [row["network"] for row in RunFolder.open("diverges").read_table("trained")]


def test_a_small_space_is_searched_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["recipe=small.yaml", "job.space.model.channels=[8]", "job.space.model.kernel=[[3,3]]", "out=whole"]) == 0
    )
    metrics = RunFolder.open("whole").read_json("metrics.json")
    assert (metrics["search/proposals"], metrics["search/trained"]) == (2, 2)


def test_when_nothing_fits_the_nearest_miss_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Of these the network of 8 channels is the smallest: 9 x 8 + 8 x 10 + 8 x (8 + 3 x 3) weights, 4-byte biases."""
    space = ["job.space.model.channels=[8,12]", "job.space.model.kernel=[[3,3]]", "job.space.model.blocks=[1]"]
    flash = 9 * 8 + 9 * 8 + 8 * 8 + 8 * 10 + 4 * (3 * 8 + 10)
    said = refusal(capsys, *space, "hardware.cortex_m4.flash_bytes=100")
    assert "none of 2 networks" in said
    assert "model.channels=8" in said
    assert f"flash by {flash - 100} bytes" in said


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["hardware=[]"], "hardware names none"),
        (["hardware=[cortex_m4,cortex_m7]"], "hardware names cortex_m4, cortex_m7"),
        (["job.candidates=0"], "job.candidates=0 must be at least 1"),
        (["job.proposals=0"], "job.proposals=0 must be at least 1"),
        (["job.references.hand.model.chanels=8"], "job.references.hand: model.chanels=8"),
        (["+job.references.candidate3={model:{channels:8}}"], "job.references.candidate3: a reference names a folder"),
        (["job.metric=f1"], "job.metric=f1: the task scores loss, accuracy"),
        (["job.space.model.blocks=[7,seven]"], "model.blocks='seven': expected int"),
    ],
)
def test_a_search_that_cannot_be_is_refused_in_a_sentence(
    overrides: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, *overrides)
    assert said in message
    assert "Traceback" not in message
