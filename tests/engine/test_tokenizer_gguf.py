"""Tokenizers built from GGUF files written here: each kind against an independent reading, and what is refused."""

from __future__ import annotations

import itertools
import json
import unicodedata

import gguf
import pytest
import tokenizers
import transformers
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from opsocket.operators.errors import FormatError
from opsocket_engine.locate import locate
from opsocket_engine.tokenizer import Tokenizer, load_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
CORPUS = [
    "The cat sat on the mat; the cat's hat wasn't the hat that I'd have had. It'S SHE'LLed x'Save",
    "for i in range(1000):\n        print(i ** 2, i + 12345)\n\n\n\treturn  None ...\n\n!!!\r\n==> 100%",
    "naïve café e\u0301a\u0301 漢字かな 한국어 🙂🙂 2024-01-02 12:34:56 ½²x\u00a0\u2003_y",
]
# Any cut of these, joined to any other.
cuts = st.builds(lambda text, i, n: text[i : i + n], st.sampled_from(CORPUS), st.integers(0, 90), st.integers(0, 12))
texts = st.text(st.characters(codec="utf-8"), max_size=20) | st.lists(cuts, max_size=6).map("".join)


def write(path, **metadata) -> str:
    """A GGUF file that holds a vocabulary and nothing else. Keys are those under tokenizer.ggml."""
    writer = gguf.GGUFWriter(str(path), "llama")
    for key, value in metadata.items():
        name = f"tokenizer.ggml.{key}"
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        else:
            writer.add_string(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def load(path, **metadata) -> Tokenizer:
    return load_tokenizer(locate(write(path / "vocabulary.gguf", **metadata)))


def trained() -> dict:
    """The metadata of a small byte-level vocabulary with two control tokens.

    Its merges are learned without splitting, and so reach across words: wherever text is split wrongly, it shows.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "model": "gpt2",
        "tokens": tokens,
        "token_type": [CONTROL, CONTROL] + [NORMAL] * (len(tokens) - 2),
        "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


@pytest.fixture(scope="module")
def gpt2_metadata() -> dict:
    return trained() | {"pre": "gpt-2"}


@pytest.fixture(scope="module", params=["gpt-2", "llama-bpe", "qwen2"])
def named(request, tmp_path_factory):
    """A vocabulary under each name of a pre-tokenizer, as we read it and as transformers reads it."""
    path = tmp_path_factory.mktemp(request.param)
    metadata = trained() | {
        "pre": request.param,
        "add_bos_token": False,
    }
    ours = load(path, **metadata)
    theirs = transformers.AutoTokenizer.from_pretrained(str(path), gguf_file="vocabulary.gguf")
    return request.param, ours, theirs


@settings(max_examples=200, derandomize=True, deadline=None)
@given(texts)
@example("cafe\u0301 a\u0301")
def test_words_are_split_as_the_named_tokenizer_splits_them(named, text):
    name, ours, theirs = named
    normal = unicodedata.normalize("NFC", text) if name == "qwen2" else text
    assert ours.encode(text, parse_special=True) == theirs.encode(normal)
    assert ours.decode(ours.encode(text)) == normal


def test_llama3_takes_a_whole_word_even_where_no_merges_lead_to_it(tmp_path, gpt2_metadata):
    tokens = [*gpt2_metadata["tokens"], "zebra"]
    types = [*gpt2_metadata["token_type"], NORMAL]
    metadata = gpt2_metadata | {"tokens": tokens, "token_type": types}
    assert load(tmp_path, **metadata | {"pre": "llama-bpe"}).encode("zebra", add_special=False) == [len(tokens) - 1]
    assert len(load(tmp_path, **metadata).encode("zebra")) > 1


@pytest.mark.parametrize(
    ("flags", "before", "after"),
    [
        ({}, [], []),
        ({"pre": "llama-bpe"}, [0], []),
        ({"pre": "llama-bpe", "add_bos_token": False}, [], []),
        ({"add_bos_token": True}, [0], []),
        ({"add_bos_token": True, "add_eos_token": True}, [0], [1]),
    ],
)
def test_special_tokens_are_put_around_a_text_as_the_file_says(tmp_path, gpt2_metadata, flags, before, after):
    tokenizer = load(tmp_path, **gpt2_metadata | flags)
    plain = tokenizer.encode("the hat", add_special=False)
    assert tokenizer.encode("the hat") == before + plain + after
    assert tokenizer.decode(before + plain + after) == "the hat"


def test_user_defined_tokens_are_always_matched_whole_and_are_text(tmp_path, gpt2_metadata):
    tokens = [*gpt2_metadata["tokens"], "<thé>"]
    tokenizer = load(
        tmp_path, **gpt2_metadata | {"tokens": tokens, "token_type": [*gpt2_metadata["token_type"], USER_DEFINED]}
    )
    ids = tokenizer.encode("a<thé>b</s>")
    assert len(tokens) - 1 in ids
    assert tokenizer.decode(ids) == "a<thé>b</s>"
    assert len(tokens) - 1 not in tokenizer.special_ids


@pytest.mark.parametrize("pre", [{"pre": "default"}, {}])
def test_a_file_that_names_no_pre_tokenizer_gets_gpt2s_and_a_warning(tmp_path, gpt2_metadata, caplog, pre):
    metadata = {key: value for key, value in gpt2_metadata.items() if key != "pre"}
    tokenizer = load(tmp_path, **metadata, **pre)
    assert "splitting as GPT-2 does" in caplog.text
    assert tokenizer.encode(CORPUS[0]) == load(tmp_path, **gpt2_metadata).encode(CORPUS[0])


# SentencePiece

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def sentencepiece(pieces: list[str], **more) -> dict:
    """The metadata of a SentencePiece vocabulary of these pieces, best first, after <unk>, <s>, </s> and the bytes."""
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *pieces]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces)]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(pieces))]
    return {"model": "llama", "tokens": tokens, "token_type": types, "scores": scores} | more


def sentencepiece_reference(text: str, pieces: list[str]) -> list[str]:
    """SentencePiece's BPE by its definition: join the best adjacent pair, leftmost first, until none makes a piece."""
    symbols = list("\u2581" + text.replace(" ", "\u2581")) if text else []
    while True:
        joined = [(pieces.index(a + b), i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in pieces]
        if not joined:
            break
        rank, i = min(joined)
        symbols[i : i + 2] = [pieces[rank]]
    return [
        part for symbol in symbols for part in ([symbol] if symbol in pieces else [BYTES[b] for b in symbol.encode()])
    ]


@st.composite
def vocabularies(draw):
    pieces = ["\u2581", "a", "b", "c"]
    for i, j in draw(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=12)):
        piece = pieces[i % len(pieces)] + pieces[j % len(pieces)]
        if piece not in pieces and len(piece) <= 8:
            pieces.append(piece)
    order = draw(st.permutations(pieces[4:]))
    return order + pieces[:4]


def ambiguous(pieces: list[str]) -> bool:
    """Whether a piece that can overlap itself can be joined in two ways: the one case that an order can't say."""
    return any(
        any(piece.startswith(piece[i:]) for i in range(1, len(piece)))
        and sum(piece[:cut] in pieces and piece[cut:] in pieces for cut in range(1, len(piece))) > 1
        for piece in pieces
    )


@settings(max_examples=300, derandomize=True, deadline=None)
@given(vocabularies(), st.lists(st.text("abcé ", max_size=16), min_size=4, max_size=4))
def test_sentencepiece_joins_by_score_and_falls_back_to_bytes(tmp_path_factory, pieces, some_texts):
    assume(not ambiguous(pieces))
    tokenizer = load(tmp_path_factory.mktemp("sp"), **sentencepiece(pieces))
    for text in some_texts:
        ids = tokenizer.encode(text, add_special=False)
        assert [tokenizer.id_to_piece(id) for id in ids] == sentencepiece_reference(text, pieces)
        assert tokenizer.decode(ids) == text


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    pieces = ["\u2581the", "\u2581t", "he", "\u2581cat", "at", "\u2581c", "\u2581\u2581"]
    path = tmp_path_factory.mktemp("words")
    ours = load(path, **sentencepiece([*pieces, *"\u2581thecasd"], bos_token_id=1, eos_token_id=2))
    return ours, transformers.AutoTokenizer.from_pretrained(str(path), gguf_file="vocabulary.gguf")


@pytest.mark.parametrize("text", ["the cat", "the  cats  dash", "a\nthé 🙂", "x", "the cat ", "(the) cat"])
def test_sentencepiece_ids_are_transformers_ids(words, text):
    ours, theirs = words
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True) == text


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(st.sampled_from(["the", " cat", "  ", "</s>", "<s>", "é", "\n", "<unk>"]), max_size=8).map("".join))
def test_decoding_takes_away_the_space_that_encoding_put_before_each_segment(words, text):
    ours, _ = words
    assert ours.decode(ours.encode(text, add_special=False, parse_special=True), skip_special=False) == text
    assert ours.decode(ours.encode(text)) == text


def test_control_tokens_are_never_made_from_text(tmp_path):
    pieces = ["<s", "</", "s>", "<", "/", "s", ">", "\u2581"]
    tokenizer = load(tmp_path, **sentencepiece(pieces))
    assert not tokenizer.special_ids & set(tokenizer.encode("<s></s>", add_special=False))
    assert [id for id in tokenizer.encode("<s></s>", add_special=False, parse_special=True) if id < 3] == [1, 2]


def test_no_space_is_put_before_a_text_where_the_file_says_so(tmp_path):
    tokenizer = load(tmp_path, **sentencepiece(["a", "\u2581"], add_space_prefix=False))
    assert [tokenizer.id_to_piece(id) for id in tokenizer.encode("a a", add_special=False)] == ["a", "\u2581", "a"]
    assert tokenizer.decode(tokenizer.encode(" a")) == " a"


def test_sentencepiece_defaults_are_llama_cpps(words):
    ours, _ = words
    assert (ours.bos_id, ours.eos_id, ours.encode("")) == (1, 2, [1])
    assert ours.special_ids == {0, 1, 2}


# Hostile files


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"model": "bert"}, r"tokenizer\.ggml\.model: wanted gpt2 or llama, got 'bert'"),
        ({"pre": "tekken"}, r"tokenizer\.ggml\.pre: wanted one of gpt-2, .*got 'tekken'"),
        ({"merges": ["a b c", "x"]}, r"merges: merge 0, 'a b c': wanted two tokens that make a third, got 'b c'"),
        ({"merges": ["ab"]}, r"merges: merge 0, 'ab': wanted two tokens"),
        ({"merges": ["a b", "no suchtoken"]}, r"merge \d, .*wanted two tokens that make a third"),
        ({"merges": ["z q"]}, r"got 'zq'"),
        ({"merges": [1, 2]}, r"merges: wanted a list of str"),
        ({"token_type": [1]}, r"token_type: wanted \d+, one for each token, got 1"),
        ({"bos_token_id": 99999}, r"bos_token_id: wanted an integer in 0\.\."),
        ({"eos_token_id": "x"}, r"eos_token_id: wanted an integer"),
        ({"add_bos_token": 1}, r"add_bos_token: wanted true or false, got 1"),
    ],
)
def test_a_broken_byte_level_vocabulary_is_refused(tmp_path, gpt2_metadata, change, problem):
    with pytest.raises(FormatError, match=problem) as caught:
        load(tmp_path, **gpt2_metadata | change)
    assert caught.value.path.endswith("vocabulary.gguf")


@pytest.mark.parametrize(
    ("tokens", "problem"),
    [
        (["a", "b", "a"], r"tokens: token 2 repeats token 0, 'a'"),
        (["a", "b" * 5000], r"tokens: token 1: wanted at most 4096 characters, got 5000"),
        ([1, 2], r"tokens: wanted a list of str, got 1 at 0"),
    ],
)
def test_a_broken_list_of_tokens_is_refused(tmp_path, tokens, problem):
    with pytest.raises(FormatError, match=problem):
        load(tmp_path, model="gpt2", pre="gpt-2", tokens=tokens, merges=["a b"])


def test_missing_lists_are_named(tmp_path, gpt2_metadata):
    for key in ("tokens", "merges", "model"):
        metadata = {name: value for name, value in gpt2_metadata.items() if name != key}
        with pytest.raises(FormatError, match=rf"tokenizer\.ggml\.{key}: wanted .*, got nothing"):
            load(tmp_path, **metadata)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"scores": [0.0, float("nan")]}, "scores: wanted 260, one for each token, got 2"),
        ({"scores": [float("nan")] * 260}, "scores: wanted finite numbers"),
        ({"token_type": [9] * 260}, "token_type: token 0: wanted one of"),
        ({"unknown_token_id": 5000}, "unknown_token_id: wanted an integer"),
    ],
)
def test_a_broken_sentencepiece_vocabulary_is_refused(tmp_path, change, problem):
    with pytest.raises(FormatError, match=problem):
        load(tmp_path, **sentencepiece(["a"]) | change)


def test_a_bos_that_does_not_exist_cannot_be_put_before_a_text(tmp_path, gpt2_metadata):
    metadata = {key: value for key, value in gpt2_metadata.items() if key != "bos_token_id"}
    with pytest.raises(FormatError, match="add_bos_token: true, in a file without bos_token_id"):
        load(tmp_path, **metadata, add_bos_token=True)
