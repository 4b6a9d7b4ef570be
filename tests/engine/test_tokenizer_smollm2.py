"""SmolLM2's tokenizer, built from its GGUF file, against transformers' own reading of the same file."""

from __future__ import annotations

import re
import unicodedata

import pytest
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from opsocket.operators.errors import ContractError
from opsocket_engine.locate import locate
from opsocket_engine.tokenizer import Tokenizer, load_tokenizer

TEXTS = [
    "",
    " ",
    "Hello world",
    " leading and trailing ",
    "It's we'll I'd they've 'S",
    "runs   of    spaces\n\n\n\tand\ttabs \r\n end   ",
    "def f(x):\n    return {'a': x ** 2, \"b\": [1, 2]}  # comment\n\n\nclass A:\n\tpass",
    "numbers 1 22 333 4444 1,234,567.89 0x7fff 1e-9 v2.0.1",
    "naïve café Straße Ünïcödé ﬁ ẞ ŉ ™ ° µ",
    "漢字かな交じり文 한국어 עברית العربية ไทย हिन्दी",
    "🙂 👩‍👩‍👧‍👦 🏳️‍🌈 🇺🇳 e\u0301 \u200b \u00a0 \ufeff",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><|im_end",
    "a" * 1000 + " " * 100 + "b" * 100,
    "\x00\x01\x1b[31m\x7f",
]


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return load_tokenizer(locate("smollm2"))


@pytest.fixture(scope="module")
def theirs():
    path = locate("smollm2").path
    return transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)


@pytest.fixture(scope="module")
def lacking(ours) -> str:
    """Characters whose byte the vocabulary does not have. It lacks those that begin planes 4 and up, too."""
    alone = {id: ours.token_bytes(id) for id in range(ours.vocab_size)}
    present = {data[0] for data in alone.values() if len(data) == 1}
    return "".join(chr(code) for code in range(0x80) if code not in present)


def splits_as_theirs(text: str) -> bool:
    """Theirs drops the vocabulary's rule that each numeral is a word of its own: it shows after two spaces, and where a
    numeral has several bytes."""
    numerals = {character for character in text if unicodedata.category(character).startswith("N")}
    return all(map(str.isascii, numerals)) and not re.search(r"\s\s[0-9]", text)


texts = st.text(st.characters(codec="utf-8", max_codepoint=0x3FFFF), max_size=40)
wordy = st.lists(
    st.sampled_from(
        [" ", "  ", "\n", "\t", "the", "The", "ing", "'s", "'LL", "1", "42", "é", "🙂", "漢", "_", "==", "<|", "|>"]
    ),
    max_size=20,
).map("".join)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_transformers_ids(ours, theirs, text):
    assert splits_as_theirs(text)
    assert ours.encode(text, parse_special=True) == theirs.encode(text)
    assert ours.decode(ours.encode(text, parse_special=True), skip_special=False) == text


@settings(max_examples=300, derandomize=True, deadline=None)
@given(texts | wordy)
def test_ids_are_transformers_ids_for_any_text(ours, theirs, text):
    assume(splits_as_theirs(text))
    assert ours.encode(text, parse_special=True) == theirs.encode(text)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(texts | wordy)
def test_decoding_gives_back_what_was_encoded(ours, lacking, text):
    text = text.translate(dict.fromkeys(map(ord, lacking)))
    assert ours.decode(ours.encode(text)) == text
    assert ours.decode(ours.encode(text, parse_special=True), skip_special=False) == text


@settings(max_examples=200, derandomize=True, deadline=None)
@given(wordy, st.sampled_from("0123456789½²Ⅷ١"), wordy)
def test_a_numeral_is_a_word_of_its_own(ours, before, numeral, after):
    parts = [ours.encode(part) for part in (before, numeral, after)]
    assert ours.encode(before + numeral + after) == [id for part in parts for id in part]


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 49151), max_size=30), st.booleans())
def test_any_ids_decode_as_transformers_decodes_them(ours, theirs, ids, skip_special):
    want = theirs.decode(ids, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
    assert ours.decode(ids, skip_special=skip_special) == want


def test_the_vocabulary_itself_has_no_numeral_beside_anything_else(ours):
    """So it was trained with that rule, which the file only names."""
    pieces = [ours.token_bytes(id).decode(errors="replace") for id in range(17, ours.vocab_size)]
    assert not [p for p in pieces if len(p) > 1 and any(unicodedata.category(c).startswith("N") for c in p)]


def test_a_written_out_special_token_is_text_unless_it_is_to_be_parsed(ours):
    text = "a<|im_end|>b"
    assert ours.eos_id not in ours.encode(text)
    assert ours.decode(ours.encode(text)) == text
    parsed = ours.encode(text, parse_special=True)
    assert parsed.count(ours.eos_id) == 1
    assert ours.decode(parsed) == "ab"
    assert ours.eos_id not in ours.encode(text), "parsing is a setting of one call"


def test_ids_and_pieces(ours, theirs):
    assert (ours.vocab_size, ours.bos_id, ours.eos_id) == (49152, 1, 2)
    assert (ours.bos_token, ours.eos_token) == (theirs.bos_token, theirs.eos_token)
    assert sorted(ours.special_ids) == list(range(17))
    assert all(ours.id_to_piece(id) == theirs.convert_ids_to_tokens(id) for id in range(0, 49152, 97))
    assert all(ours.piece_to_id(ours.id_to_piece(id)) == id for id in range(0, 49152, 97))
    assert ours.piece_to_id("no such piece") is None
    assert ours.id_to_piece(49152) is None


def test_an_id_of_a_padded_embedding_adds_nothing_and_a_negative_one_is_an_error(ours):
    hello = ours.encode("Hello")
    assert ours.decode([*hello, 60000]) == "Hello"
    with pytest.raises(ContractError, match="id: wanted at least 0, got -1"):
        ours.decode([-1])


def test_a_lone_surrogate_is_refused(ours):
    with pytest.raises(ContractError, match="text: wanted valid Unicode"):
        ours.encode("a\ud800b")


def test_bytes_that_the_vocabulary_lacks_are_few_and_dropped(ours, lacking):
    assert lacking == "\x04\x06\x13\x14\x16\x1d"
    assert ours.decode(ours.encode("a\x04b")) == "ab"
