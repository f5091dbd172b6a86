"""The bench of shared blocks: three forms of one model, whose sizes are known."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edgetrain.bench.decode import PLAIN, SHARED, UNROLLED, decoding_config, model_of
from edgetrain.errors import UserError
from edgetrain.folder import RunFolder

TINY = ["model.dim=32", "model.layers=2", "model.heads=2", "model.kv_heads=1", "model.hidden_dim=64"]
SMALL = ["model=llama", "data.vocab_size=300", *TINY]
BLOCK = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
TABLE = 300 * 32


def test_the_bench_reports_speed_memory_and_file_size(
    edgetrain: Callable[..., tuple[int, str, str]], workplace: Path
) -> None:
    code, out, err = edgetrain("bench", "decode", *SMALL, "prompt_length=4", "new_tokens=3", "repeats=1", "out=bench")
    assert code == 0, err
    assert "not quotable: 1 repeats are fewer than 5" in out
    rows = {row["contender"]: row for row in RunFolder.open("bench").read_table("decode")}
    assert [int(rows[name]["layers"]) for name in (PLAIN, SHARED, UNROLLED)] == [2, 4, 4]
    parameters = [int(rows[name]["parameters"]) for name in (PLAIN, SHARED, UNROLLED)]
    assert parameters == [TABLE + 2 * BLOCK + 32, TABLE + 2 * BLOCK + 32, TABLE + 4 * BLOCK + 32]
    cache, weights = ({name: float(row[key]) for name, row in rows.items()} for key in ("cache, MiB", "weights, MiB"))
    assert cache[SHARED] == cache[UNROLLED] == 2 * cache[PLAIN]
    assert weights[SHARED] == weights[PLAIN]
    assert weights[UNROLLED] - weights[SHARED] == pytest.approx(2 * BLOCK * 4 / 2**20)
    files = {name: float(row["file, MiB"]) for name, row in rows.items()}
    assert files[SHARED] == pytest.approx(files[PLAIN], rel=0.01)
    assert files[UNROLLED] - files[SHARED] == pytest.approx(2 * BLOCK * 4 / 2**20, rel=0.05)
    assert all(float(row["peak, MiB"]) > 0 for row in rows.values())


@torch.no_grad()
def test_the_unrolled_model_is_the_shared_one() -> None:
    config = decoding_config(SMALL, 16)
    tokens = torch.arange(12)[None]
    shared, unrolled, plain = (model_of(config, name)(tokens) for name in (SHARED, UNROLLED, PLAIN))
    assert torch.equal(shared, unrolled)
    assert not torch.allclose(shared, plain)


def test_what_it_cannot_bench_is_one_sentence() -> None:
    with pytest.raises(UserError, match="needs a Llama of ours"):
        decoding_config(["model=transformers", "model.name=gpt2"], 8)
    with pytest.raises(UserError, match="no room for 8 tokens"):
        decoding_config([*SMALL, "data.context=4"], 8)
