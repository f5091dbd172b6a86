"""The measure `self_speculative`: its table, its metrics, what it refuses, and what it does not quote."""

import copy
import io
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from edgetrain.decoding import acceptance
from edgetrain.decoding.acceptance import (
    Cell,
    Decodings,
    SelfSpeculative,
    bootstrap_interval,
    exit_agreement,
    speedups,
)
from edgetrain.decoding.acceptance_report import text_pieces
from edgetrain.decoding.autoregressive import generate
from edgetrain.decoding.degeneration import distinct_n
from edgetrain.errors import UserError
from edgetrain.folder import RunFolder

SETTINGS = {"exit_layers": [1, 3], "draft_lengths": [2, 4], "prompts": 3, "prompt_length": 20, "new_tokens": 24}


@pytest.fixture(scope="module")
def measured(trained: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, dict[str, float]]:
    folder = RunFolder(tmp_path_factory.mktemp("measured"))
    return folder, SelfSpeculative(**SETTINGS).measure(trained, folder)


def test_the_table_has_a_row_for_every_exit_layer_and_draft_length(measured: tuple[RunFolder, dict]) -> None:
    rows = measured[0].read_table("self_speculative")
    assert [(row["exit_layer"], row["draft_length"]) for row in rows] == [
        ("1", "2"),
        ("1", "4"),
        ("3", "2"),
        ("3", "4"),
    ]
    for row in rows:
        assert 0 < float(row["acceptance"]) <= 1
        assert 0 <= float(row["acceptance_temperature_1"]) <= 1
        assert 1 < float(row["tokens_per_round"]) <= 5
        assert float(row["speedup_low"]) <= float(row["speedup"]) <= float(row["speedup_high"])
        drafts = (float(row["tokens_per_round"]) - 1) / float(row["acceptance"])  # a round, by the bound's own formula
        bound = float(row["tokens_per_round"]) / (1 + drafts * int(row["exit_layer"]) / 4)
        assert float(row["bound"]) == pytest.approx(bound)
    assert float(rows[2]["acceptance"]) > float(rows[0]["acceptance"])  # three of four layers draft better than one


def test_outputs_equal_autoregressive_ones(measured: tuple[RunFolder, dict]) -> None:
    folder, metrics = measured
    assert metrics["self_speculative/mismatches"] == 0
    assert {row["mismatches"] for row in folder.read_table("self_speculative")} == {"0"}


def test_repetition_is_that_of_the_greedy_output_and_of_the_held_out_text(
    measured: tuple[RunFolder, dict], trained: SimpleNamespace
) -> None:
    folder, metrics = measured
    prompts, texts = trained.data.prompts(3, 20, continuation=24)
    outputs = [list(generate(trained.model, prompt, 24)) for prompt in prompts]
    assert metrics["self_speculative/best_distinct_3"] == pytest.approx(sum(map(distinct_n, outputs)) / 3)
    assert metrics["self_speculative/reference_distinct_3"] == pytest.approx(sum(map(distinct_n, texts.tolist())) / 3)
    assert len({row["distinct_3"] for row in folder.read_table("self_speculative")}) == 1


def test_best_is_the_fastest_row_that_is_not_grey(measured: tuple[RunFolder, dict]) -> None:
    folder, metrics = measured
    rows = folder.read_table("self_speculative")
    best = max([row for row in rows if row["collapsed"] == "False"] or rows, key=lambda row: float(row["speedup"]))
    for name in ("speedup", "bound", "exit_layer", "draft_length", "acceptance"):
        assert metrics[f"self_speculative/best_{name}"] == float(best[name])
    low, high = metrics["self_speculative/best_speedup_low"], metrics["self_speculative/best_speedup_high"]
    assert low <= metrics["self_speculative/best_speedup"] <= high
    assert metrics["self_speculative/autoregressive_tokens_per_s"] > 0


def test_figures_and_the_coloured_sample_are_there(measured: tuple[RunFolder, dict], trained: SimpleNamespace) -> None:
    folder = measured[0]
    names = {"self_speculative_acceptance", "self_speculative_speedup", "self_speculative_bound"}
    assert {path.stem for path in (folder.path / "figures").iterdir()} == names
    [sample] = [item for item in folder.report_items() if item["kind"] == "spans"]
    assert sample["spans"][0][1] == "plain"
    assert {style for _, style in sample["spans"]} <= {"plain", "good", "bad", "note"} == set(sample["legend"])
    prompt = trained.data.prompts(3, 20, continuation=24)[0][0]
    expected = trained.data.tokenizer.decode([*prompt.tolist(), *generate(trained.model, prompt, 24)])
    assert "".join(text for text, _ in sample["spans"]) == expected


def test_a_model_that_repeats_itself_is_greyed_and_still_measured(
    trained: SimpleNamespace, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    collapsed = copy.deepcopy(trained.model)
    with torch.no_grad():  # every exit says the same token, whatever is read
        collapsed.lm_head.weight.zero_()
    monkeypatch.setattr(trained, "model", collapsed)
    folder = RunFolder(tmp_path)
    metrics = SelfSpeculative(**SETTINGS).measure(trained, folder)
    assert {row["collapsed"] for row in folder.read_table("self_speculative")} == {"True"}
    assert metrics["self_speculative/all_rows_grey"] == 1
    assert metrics["self_speculative/best_acceptance"] == 1.0
    assert metrics["self_speculative/best_distinct_3"] == pytest.approx(1 / 22)


def test_a_bfloat16_model_is_measured_in_float32_and_left_alone(
    trained: SimpleNamespace, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = copy.deepcopy(trained.model).bfloat16()
    monkeypatch.setattr(trained, "model", half)
    assert SelfSpeculative(**SETTINGS).measure(trained, RunFolder(tmp_path))["self_speculative/mismatches"] == 0
    assert half.lm_head.weight.dtype == torch.bfloat16


def test_agreement_is_the_share_of_equal_predictions(trained: SimpleNamespace) -> None:
    windows = torch.cat(trained.data.prompts(2, 10, continuation=20), dim=1)
    model, tokens = trained.model, windows[:, :-1]
    with torch.no_grad():
        early = model.head(model.run_layers(model.embed(tokens), 0, 2)).argmax(-1)
        expected = (early == model(tokens).argmax(-1)).float().mean().item()
    assert exit_agreement(model, windows)[1] == pytest.approx(expected)
    assert exit_agreement(model, windows)[3] == 1.0


def test_each_row_has_the_agreement_of_its_own_exit_layer(
    measured: tuple[RunFolder, dict], trained: SimpleNamespace
) -> None:
    agreement = exit_agreement(trained.model, torch.cat(trained.data.prompts(3, 20, continuation=24), dim=1))
    for row in measured[0].read_table("self_speculative"):
        assert float(row["agreement"]) == agreement[int(row["exit_layer"]) - 1]


def test_progress_is_drawn_where_there_is_no_terminal(
    trained: SimpleNamespace, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = io.StringIO()
    monkeypatch.setattr(acceptance, "Console", lambda stderr: Console(file=text, width=100))
    SelfSpeculative([2], [2], prompts=1, prompt_length=4, new_tokens=4).measure(trained, RunFolder(tmp_path))
    assert "100%" in text.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exit_layers": [2, 4]}, "measure.self_speculative: exit_layer=4 is outside 1 to 3"),
        ({"exit_layers": [0]}, "exit_layer=0 is outside 1 to 3"),
        ({"exit_layers": []}, "exit_layers is empty"),
        ({"draft_lengths": [4, 0]}, "draft_length=0 must be at least 1"),
        ({"prompts": 0}, "prompts=0 must be at least 1"),
        ({"prompt_length": 0}, "prompt is empty"),
        ({"prompt_length": 200, "new_tokens": 57}, "200 tokens and 57 new ones are 257, more than the model's context"),
    ],
)
def test_settings_that_do_not_fit_are_a_sentence_before_any_work(
    trained: SimpleNamespace, tmp_path: object, monkeypatch: pytest.MonkeyPatch, change: dict, message: str
) -> None:
    monkeypatch.setattr(trained, "data", None)  # any work would need it
    with pytest.raises(UserError, match=message):
        SelfSpeculative(**SETTINGS | change).measure(trained, RunFolder(tmp_path))


def test_another_kind_of_model_is_a_sentence() -> None:
    with pytest.raises(UserError, match="needs model=llama.*not Linear"):
        SelfSpeculative(**SETTINGS).check(torch.nn.Linear(2, 2))


def test_text_pieces_join_to_the_text_and_wait_for_whole_characters(trained: SimpleNamespace) -> None:
    tokenizer = trained.data.tokenizer
    tokens = tokenizer.encode("für €")
    assert list(text_pieces(tokenizer, tokens)) == ["f", "", "ü", "r", " ", "", "", "€"]
    broken = [102, 0xFF, 0xC3, 114, 0xE2]  # never valid UTF-8, and cut at its end
    assert "".join(text_pieces(tokenizer, broken)) == tokenizer.decode(broken)


def test_a_speedup_is_autoregressive_over_self_speculative_time() -> None:
    cell = Cell(exit_layer=1, draft_length=2, seconds=[1.0, 4.0])
    assert speedups(Decodings(seconds=[2.0, 2.0]), cell) == [2.0, 0.5]


def test_the_bootstrap_interval_is_seeded_and_holds_the_median() -> None:
    values = torch.randn(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64).add(2).tolist()
    low, high = bootstrap_interval(values, seed=0)
    assert [low, high] == bootstrap_interval(values, seed=0)
    assert min(values) < low < torch.tensor(values).quantile(0.5) < high < max(values)
    assert bootstrap_interval([1.5], seed=0) == [1.5, 1.5]
