"""Tokenizers: a byte-level BPE trained on the run's own text, or one read from a Hugging Face folder.

Byte-level (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2): the 256 bytes are
the base alphabet, so every text can be written and decode(encode(text)) == text; there is no unknown token.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from edgetrain.errors import UserError

END_OF_TEXT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257  # 256 bytes and the end of text
PADDING = 512  # checkpoints round their embedding tables up to a multiple of at most this many rows


def train_tokenizer(texts: Iterable[list[str]], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens; the same texts in the same order give the same tokenizer.

    Id 0 is the end of text. A text too small for that many merges gives fewer tokens; the ids above stay unused.
    Raises UserError where not even the bytes fit.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(
            f"data.vocab_size={vocab_size} is too small: 256 bytes and {END_OF_TEXT} need {SMALLEST_VOCABULARY}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def wrap_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The transformers form, which `save_pretrained` writes and every Hugging Face tool reads."""
    # Clean-up would join "a ." to "a." on decoding, and the text would no longer come back as it was.
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def load_tokenizer(folder: str, vocab_size: int) -> PreTrainedTokenizerFast:
    """The tokenizer of a Hugging Face folder, offline and without running code from it.

    Raises UserError when the folder holds no readable tokenizer, when it has no end-of-text token, or when
    `vocab_size` is not its number of tokens (up to 511 unused ids on top are a checkpoint's padding).
    """
    where = f"data.tokenizer={folder}"
    if not Path(folder).is_dir():
        raise UserError(f"{where} is not a folder; give one that holds tokenizer.json, or null to train a tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a damaged folder raises whatever its parser met first
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"{where} cannot be read as a tokenizer ({reason}); give a folder that save_pretrained wrote"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"{where} has no tokenizer.json; save its fast version there with save_pretrained")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{where} has no end-of-text token; set eos_token in its tokenizer_config.json")
    size = max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1)  # ids may have gaps
    if not 0 <= vocab_size - size < PADDING:
        raise UserError(f"{where} has {size} tokens but data.vocab_size={vocab_size}; set data.vocab_size={size}")
    return tokenizer
