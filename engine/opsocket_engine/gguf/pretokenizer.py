"""How text is cut into words before byte-level BPE, by the name that a GGUF file gives in tokenizer.ggml.pre.

The file names a tokenizer and leaves its rules to the reader; these are the rules of the tokenizer.json files that
those names stand for.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from opsocket_engine.keys import Keys

log = logging.getLogger(__name__)

_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LLAMA3 = "|".join((_CONTRACTIONS, _WORD, r"\p{N}{1,3}", _SYMBOLS, _SPACES))
_QWEN2 = "|".join((_CONTRACTIONS, _WORD, r"\p{N}", _SYMBOLS, _SPACES))


@dataclass(frozen=True, eq=False)
class PreTokenizerRules:
    """ignore_merges: a word that is a piece becomes it even where merges would lead elsewhere. add_bos: where the file
    doesn't say."""

    split: PreTokenizer
    normalizer: Normalizer | None = None
    ignore_merges: bool = False
    add_bos: bool = False


def pretokenizer_rules(keys: Keys) -> PreTokenizerRules:
    """The rules that the file names. A file from before there were names gets GPT-2's, and a warning in the log."""
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    name = keys.text("tokenizer.ggml.pre", None)
    match name:
        case None | "default":
            log.warning("%s: tokenizer.ggml.pre=%s names no tokenizer; splitting as GPT-2 does", keys.path, name)
            return PreTokenizerRules(gpt2)
        case "gpt-2":
            return PreTokenizerRules(gpt2)
        case "smollm":
            digits = pre_tokenizers.Digits(individual_digits=True)
            return PreTokenizerRules(pre_tokenizers.Sequence([digits, gpt2]))
        case "llama-bpe" | "llama3" | "llama-v3":
            return PreTokenizerRules(_regex(_LLAMA3), ignore_merges=True, add_bos=True)
        case "qwen2":
            # llama.cpp leaves NFC out; the tokenizer that the model was trained with has it.
            return PreTokenizerRules(_regex(_QWEN2), normalizer=normalizers.NFC())
    known = "gpt-2, smollm, llama-bpe, llama3, llama-v3, qwen2, default"
    raise keys.wrong("tokenizer.ggml.pre", f"wanted one of {known}, got {name!r}")


def _regex(pattern: str) -> PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
