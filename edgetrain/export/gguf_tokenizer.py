"""A byte-level BPE tokenizer as GGUF metadata, which llama.cpp calls the tokenizer model "gpt2".

How text is cut before merges is not written down in a GGUF file but named; llama.cpp knows each name's expression. The
names here are those whose cut is the same as the tokenizer's, as llama.cpp's source has them (src/llama-vocab.cpp).
"""

import json
from typing import Any

from edgetrain.errors import UserError

LETTERS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
REST = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
NAMES = {LETTERS + "\\p{N}{1,3}" + REST: "llama-bpe", LETTERS + "\\p{N}" + REST: "qwen2"}


def add_tokenizer(writer: Any, tokenizer: Any, vocab_size: int) -> None:
    """Tokens, their kinds, merges and special ids of a fast tokenizer of transformers; None writes that there is none.

    vocab_size: rows of the embedding; ids without a token become unused ones. Raises UserError for a tokenizer that is
    no byte-level BPE, or that cuts text in a way llama.cpp has no name for.
    """
    if tokenizer is None:
        writer.add_tokenizer_model("none")
        return
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(spec))
    tokens, kinds = tokens_of(tokenizer, vocab_size)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]])
    end, begin = tokenizer.eos_token_id, tokenizer.bos_token_id
    begin = end if begin is None else begin
    writer.add_eos_token_id(end)
    writer.add_bos_token_id(begin)
    writer.add_add_bos_token(tokenizer.encode("")[:1] == [begin])  # as it is trained and prompted here


def tokens_of(tokenizer: Any, vocab_size: int) -> tuple[list[str], list[int]]:
    """Every id's token, in the alphabet of bytes as merges spell it, and its kind."""
    from gguf import TokenType

    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, kinds = [], []
    for index in range(vocab_size):
        kind = TokenType.NORMAL if index in by_id else TokenType.UNUSED
        if index in added:
            kind = TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED
        tokens.append(by_id.get(index, f"[PAD{index}]"))
        kinds.append(int(kind))
    return tokens, kinds


def pre_tokenizer_name(spec: dict[str, Any]) -> str:
    """llama.cpp's name for how the tokenizer cuts text. spec: the contents of its tokenizer.json."""
    parts = spec["pre_tokenizer"] or {}
    parts = parts.get("pretokenizers", [parts])
    kinds = [part.get("type") for part in parts]
    last = parts[-1]
    plain = not (spec.get("normalizer") or last.get("add_prefix_space"))
    if spec["model"]["type"] == "BPE" and plain:
        if kinds == ["ByteLevel"] and last.get("use_regex", True):
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits") and last.get("use_regex", True):
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True):
            pattern = parts[0]["pattern"].get("Regex")
            if pattern in NAMES:
                return NAMES[pattern]
    raise UserError(
        "export.gguf writes byte-level BPE tokenizers that cut text as GPT-2, SmolLM, Llama 3 or Qwen 2 do, and the "
        "tokenizer of this run's data is another; train with data.tokenizer=null, or leave gguf out"
    )
