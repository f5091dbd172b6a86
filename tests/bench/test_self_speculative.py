"""The decoding bench compares the same decodings: equal outputs, known acceptance, ratios of the right pairs."""

from pathlib import Path

import pytest
import torch

from edgetrain.bench.self_speculative import Bench, Way, self_speculative, with_identity_tail
from edgetrain.bench.side_by_side import Timing
from edgetrain.decoding.self_speculative import SelfSpeculativeStats
from edgetrain.errors import UserError
from edgetrain.folder import RunFolder
from edgetrain.models.llama import Llama

SMALL = {"prompts": 2, "prompt_length": 8, "new_tokens": 12, "repeats": 5, "compiled": False, "exit_layers": [2]}


@pytest.fixture(scope="module")
def bench() -> Bench:
    torch.manual_seed(0)
    model = Llama(20, dim=16, layers=6, heads=2, kv_heads=1, hidden_dim=32, context=32).eval()
    return Bench(model, torch.zeros(1, 4, dtype=torch.int64), 8, True, [2], [3])


def timing(name: str, seconds: list[float]) -> Timing:
    return Timing(name, 2.0, 1, [100] * len(seconds), seconds, [0.0] * len(seconds))


def test_every_way_decodes_the_same_tokens(finished_run: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder.create("bench", str(tmp_path / "bench"))
    metrics = self_speculative(
        folder, subjects=["trained", "trained_identity"], run=str(finished_run.path), threads=1, **SMALL
    )
    for subject in ("trained", "trained_identity"):
        rows = {row["way"]: row for row in folder.read_table(f"{subject}_decoding")}
        assert {
            "own autoregressive",
            "own self-speculative",
            "transformers generate",
            "transformers assistant_early_exit",
            "transformers prompt lookup",
        } == set(rows)
        assert [row["differ"] for row in rows.values()] == ["0"] * 5
        assert all(float(row["tokens/s"]) > 0 for row in rows.values())
        assert metrics[f"{subject}/limit_tokens_per_s"] > 0
        assert f"{subject}/autoregressive_over_transformers" in metrics
    own, theirs = rows["own self-speculative"], rows["transformers assistant_early_exit"]
    assert float(own["acceptance"]) == 1.0
    assert (own["E"], own["d"]) == (theirs["E"], theirs["d"])
    assert int(own["E"]) == 1  # a fifth of few layers, but at least one


def test_an_identity_tail_leaves_what_the_exit_says() -> None:
    torch.manual_seed(0)
    model = Llama(20, dim=16, layers=4, heads=2, kv_heads=1, hidden_dim=32, context=32).eval()
    tokens = torch.arange(6)[None]
    with torch.inference_mode():
        exit_logits = model.head(model.run_layers(model.embed(tokens), 0, 2))
        torch.testing.assert_close(with_identity_tail(model, 2)(tokens), exit_logits)
        assert not torch.allclose(model(tokens), exit_logits)


def test_ratios_are_of_the_named_pairs(bench: Bench) -> None:
    seconds = {
        "own autoregressive": 2.0,
        "transformers generate": 3.0,
        "own self-speculative": 1.0,
        "transformers assistant_early_exit": 4.0,
        "own autoregressive, compiled": 0.5,
        "transformers generate, compiled": 1.0,
        "own self-speculative, compiled": 0.4,
        "own self-speculative, compiled, int8 drafts": 0.25,
    }
    found = bench.ratios({name: timing(name, [value] * 7) for name, value in seconds.items()})
    assert found == pytest.approx(
        {
            "autoregressive_over_transformers": 1.5,
            "self_speculative_over_autoregressive": 2.0,
            "self_speculative_over_transformers_early_exit": 4.0,
            "compiled_autoregressive_over_transformers": 2.0,
            "compiled_self_speculative_over_autoregressive": 2.0,
            "compiled_self_speculative_over_transformers_early_exit": 16.0,
        }
    )


def test_a_ratio_that_may_not_be_quoted_is_its_reason(bench: Bench) -> None:
    names = ["own autoregressive", "transformers generate", "own self-speculative", "transformers assistant_early_exit"]
    bench.compiled = False
    noisy = {name: timing(name, [1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0]) for name in names}
    noisy["own autoregressive"] = timing(names[0], [2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0])
    found = bench.ratios(noisy)
    bench.compiled = True
    assert found["autoregressive_over_transformers"].startswith("not quotable")


def test_a_row_stands_against_the_plain_decoding_of_its_kind(bench: Bench) -> None:
    way = Way("own self-speculative, compiled", True, lambda prompt: [], exit_layer=2, draft_length=3)
    way.outputs, way.counted = [[1, 2, 3, 1, 2, 3]], SelfSpeculativeStats(2, 6, 3, 5)
    timings = {
        "own autoregressive": timing("own autoregressive", [4.0] * 7),
        "own autoregressive, compiled": timing("own autoregressive, compiled", [2.0] * 7),
        way.name: timing(way.name, [1.0] * 7),
    }
    row = bench.row(way, timings, [[1, 2, 3, 1, 2, 4]], limit=200.0, reference=[[5, 6, 7, 8]])
    assert row["times own autoregressive"] == "2 (2 to 2)"
    assert row["tokens/s"] == pytest.approx(100) and row["of limit"] == pytest.approx(0.5)
    assert row["acceptance"] == 0.5
    assert row["bound"] == pytest.approx((0.5 * 3 + 1) / (3 * 2 / 6 + 1))
    assert row["distinct-3"] == 0.75 and row["of text"] == 1.0  # three of four triples are distinct
    assert row["differ"] == 1


def test_exit_layers_beyond_the_model_are_a_sentence() -> None:
    model = Llama(20, dim=16, layers=2, heads=2, kv_heads=1, hidden_dim=32, context=32)
    with pytest.raises(UserError, match="the model has 2 layers"):
        Bench(model, torch.zeros(1, 4, dtype=torch.int64), 8, False, [2, 3], [3])
