import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALL
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from edgetrain.data.tokenizer import END_OF_TEXT, load_tokenizer, train_tokenizer, wrap_tokenizer
from edgetrain.errors import UserError

TEXTS = [
    ["def add(left, right):\n    return left + right\n" * 3, "naïve Straße 你好 🙂\n"],
    ["the end , of the line ."],
]
TOKENIZER = wrap_tokenizer(train_tokenizer(TEXTS, 300))


@given(st.text())
def test_decode_of_encode_is_the_text(text: str):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_the_end_of_text_is_one_token_with_id_zero():
    assert TOKENIZER.eos_token_id == 0
    assert TOKENIZER.encode(END_OF_TEXT) == [0]


def test_training_gives_the_same_tokenizer_in_every_process():
    code = f"""from edgetrain.data.tokenizer import train_tokenizer, wrap_tokenizer
print(wrap_tokenizer(train_tokenizer({TEXTS!r}, 300)).backend_tokenizer.to_str())"""
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8")
    assert other.stdout.strip() == TOKENIZER.backend_tokenizer.to_str()


def test_a_small_text_gives_fewer_tokens_than_asked():
    assert len(wrap_tokenizer(train_tokenizer([["ab"]], 5000))) == 258


def test_a_vocabulary_below_the_bytes_is_an_error():
    with pytest.raises(UserError, match="data.vocab_size=256 is too small: 256 bytes and <|endoftext|> need 257"):
        train_tokenizer(TEXTS, 256)


def test_a_saved_tokenizer_loads_as_the_same(tmp_path: Path):
    TOKENIZER.save_pretrained(tmp_path)
    text = "return the naïve line . 🙂"
    loaded = load_tokenizer(str(tmp_path), 300)
    assert loaded.encode(text) == TOKENIZER.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == END_OF_TEXT


def test_a_checkpoints_padding_is_allowed_and_no_other_size(tmp_path: Path):
    TOKENIZER.save_pretrained(tmp_path)
    load_tokenizer(str(tmp_path), 384)
    for wrong in (299, 2048):
        with pytest.raises(UserError, match=f"has 300 tokens but data.vocab_size={wrong}; set data.vocab_size=300"):
            load_tokenizer(str(tmp_path), wrong)


def test_a_broken_tokenizer_folder_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="none is not a folder; give one that holds tokenizer.json"):
        load_tokenizer(str(tmp_path / "none"), 300)
    for content in (None, "{broken", '{"version": "1.0"}'):
        if content:
            (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(
            UserError, match="cannot be read as a tokenizer .*; give a folder that save_pretrained wrote"
        ):
            load_tokenizer(str(tmp_path), 300)


def test_a_tokenizer_without_end_of_text_is_an_error(tmp_path: Path):
    TOKENIZER.save_pretrained(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"eos_token"', '"other_token"'))
    with pytest.raises(UserError, match="has no end-of-text token; set eos_token"):
        load_tokenizer(str(tmp_path), 300)


def test_ids_above_a_gap_count_too(tmp_path: Path):
    TOKENIZER.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["zz"] = 399  # the 301st token
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="has 400 tokens but data.vocab_size=301; set data.vocab_size=400"):
        load_tokenizer(str(tmp_path), 301)


def test_a_model_of_another_vocabulary_is_an_error_before_training(edgetrain):
    code, _, err = edgetrain("run", "recipe=layerskip_llama", *SMALL, "model.vocab_size=512", "out=other")
    assert code == 2 and "Traceback" not in err
    assert "error: the model's token table has 512 rows but data.vocab_size=300; set data.vocab_size=512" in err
    assert not Path("other/checkpoints").exists()
