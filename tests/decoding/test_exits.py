"""Every exit's numbers against the slow way: one forward a layer, all logits, torch's cross-entropy."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from edgetrain.decoding import exits
from edgetrain.decoding.exits import Exits, exit_rows
from edgetrain.errors import UserError
from edgetrain.folder import RunFolder
from edgetrain.models.llama import Llama
from edgetrain.ops.targets import IGNORED


def slow_rows(model: Llama, batches: list[torch.Tensor]) -> list[dict[str, float]]:
    """Loss, accuracy and agreement with each exit run on its own."""
    tokens, targets = (torch.cat([batch[:, part] for batch in batches]) for part in (slice(-1), slice(1, None)))
    with torch.no_grad():
        last = model(tokens).argmax(-1)
        for layer in range(1, model.layers + 1):
            logits = model.head(model.run_layers(model.embed(tokens), 0, layer))
            yield {
                "layer": layer,
                "loss": F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item(),
                "accuracy": (logits.argmax(-1) == targets).float().mean().item(),
                "agreement": (logits.argmax(-1) == last).float().mean().item(),
            }


@pytest.mark.parametrize("chunk", [7, 1024])
def test_rows_equal_one_run_an_exit(trained: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(exits, "ROWS", chunk)
    batches = trained.data.test_dataloader()[:2]
    batches[1] = batches[1][:2]  # a smaller last batch weighs by its tokens
    for row, slow in zip(exit_rows(trained.model, batches), slow_rows(trained.model, batches), strict=True):
        assert row["perplexity"] == pytest.approx(torch.tensor(row["loss"]).exp().item(), rel=1e-4)
        assert {key: row[key] for key in slow} == pytest.approx(slow, rel=1e-5)


def test_rows_of_pairs_count_only_what_is_asked(model: Llama) -> None:
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(256, (3, 2, 20), generator=generator)
    batch[:, 1, :7] = batch[2, 1, 9:] = IGNORED
    targets = batch[:, 1].flatten()
    with torch.no_grad():
        last = model(batch[:, 0]).argmax(-1).flatten()[targets != IGNORED]
        for row in exit_rows(model, [batch[:2], batch[2:]]):
            logits = model.head(model.run_layers(model.embed(batch[:, 0]), 0, row["layer"])).flatten(0, 1)
            choices = logits.argmax(-1)[targets != IGNORED]
            assert row["loss"] == pytest.approx(
                F.cross_entropy(logits, targets).item(), rel=1e-5
            )  # torch leaves -100 out
            assert row["accuracy"] == pytest.approx((choices == targets[targets != IGNORED]).double().mean().item())
            assert row["agreement"] == pytest.approx((choices == last).double().mean().item())


def test_the_last_exit_is_the_model_and_agrees_with_itself(trained: SimpleNamespace) -> None:
    batches = trained.data.test_dataloader()
    last = exit_rows(trained.model, batches)[-1]
    held_out = trained.task.evaluate(trained.model, batches)
    assert last["agreement"] == 1.0
    assert last["loss"] == pytest.approx(held_out["loss"], rel=1e-5)
    assert last["accuracy"] == pytest.approx(held_out["accuracy"], rel=1e-5)


def test_a_hugging_face_llama_gives_the_same_rows(trained: SimpleNamespace) -> None:
    model = trained.model
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        max_position_embeddings=model.context,
        tie_word_embeddings=True,
    )
    peer = LlamaForCausalLM(config).eval()
    peer.load_state_dict(model.state_dict())
    batches = trained.data.test_dataloader()[:1]
    for ours, theirs in zip(exit_rows(model, batches), exit_rows(peer, batches), strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4)


def test_the_measure_writes_table_figures_and_metrics(trained: SimpleNamespace, tmp_path: object) -> None:
    folder = RunFolder(tmp_path)
    metrics = Exits(batches=2).measure(trained, folder)
    table = folder.read_table("exits")
    assert [int(row["layer"]) for row in table] == [1, 2, 3, 4]
    assert list(table[0]) == ["layer", "loss", "perplexity", "accuracy", "agreement"]
    assert metrics == pytest.approx(
        {f"exits/loss_{row['layer']}": float(row["loss"]) for row in table}
        | {"exits/loss_last": float(table[3]["loss"]), "exits/loss_middle": float(table[1]["loss"])}
        | {"exits/agreement_middle": float(table[1]["agreement"])}
    )
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"exits_loss.png", "exits_agreement.png"}
    assert metrics["exits/loss_last"] < metrics["exits/loss_1"]


def test_batches_limits_what_is_read(trained: SimpleNamespace, tmp_path: object) -> None:
    metrics = Exits(batches=1).measure(trained, RunFolder(tmp_path))
    first = exit_rows(trained.model, trained.data.test_dataloader()[:1])
    assert metrics["exits/loss_last"] == first[-1]["loss"]


def test_no_batch_is_a_sentence(trained: SimpleNamespace) -> None:
    with pytest.raises(UserError, match="no test batch"):
        exit_rows(trained.model, [])
    with pytest.raises(UserError, match=r"measure\.exits\.batches=0"):
        Exits(batches=0)


def test_a_model_without_layers_to_leave_after_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="measure.exits needs a language model with layers.*Linear has none"):
        Exits().measure(SimpleNamespace(model=torch.nn.Linear(2, 2)), RunFolder(tmp_path))
