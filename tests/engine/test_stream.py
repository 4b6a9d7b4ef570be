"""Text as it comes, in any cut, is the text at once; and a stop string never shows."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsocket.operators.errors import ContractError
from opsocket_engine.locate import locate
from opsocket_engine.stream import Detokenizer, StopMatcher
from opsocket_engine.tokenizer import Tokenizer, load_tokenizer

few_letters = st.text("abc", max_size=24)
stop_strings = st.lists(st.text("abc", min_size=1, max_size=4), max_size=4)


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    return load_tokenizer(locate("smollm2"))


def first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition, by looking at every beginning of the text: what precedes the first stop string to be complete."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


def cut(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(place % (len(text) + 1) for place in cuts), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(places)]


@settings(max_examples=300, derandomize=True)
@given(few_letters, stop_strings, st.lists(st.integers(0, 24), max_size=8))
def test_any_cut_gives_what_precedes_the_first_complete_stop_string(text, stops, cuts):
    matcher = StopMatcher(stops)
    out = "".join([matcher.push(part) for part in cut(text, cuts)]) + matcher.finish()
    assert (out, matcher.matched) == first_stop(text, stops)


@settings(max_examples=200, derandomize=True)
@given(few_letters, stop_strings)
def test_nothing_is_held_back_that_can_begin_no_stop_string(text, stops):
    matcher = StopMatcher(stops)
    out = matcher.push(text)
    if matcher.matched is None:
        held = text.removeprefix(out)
        assert text == out + held
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_after_a_stop_string_nothing_more_comes_out():
    matcher = StopMatcher(["END"])
    assert matcher.push("oneE") == "one"
    assert matcher.push("NDtwo") == ""
    assert (matcher.push("three"), matcher.finish(), matcher.matched) == ("", "", "END")


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ContractError, match="stops: wanted strings of at least one character"):
        StopMatcher(["a", ""])


@pytest.mark.parametrize("text", ["naïve café 🙂🏽 漢字", "👩‍👩‍👧‍👦", "plain\n\n  text\t\tend"])
def test_a_character_comes_whole_or_not_at_all(smollm2, text):
    detokenizer = Detokenizer(smollm2)
    parts = [detokenizer.push(id) for id in smollm2.encode(text, add_special=False)]
    assert all("\ufffd" not in part for part in parts)
    assert "" in parts or text.isascii(), "the text was to have characters of several tokens"
    assert "".join(parts) + detokenizer.finish() == text


@settings(max_examples=200, derandomize=True)
@given(st.lists(st.integers(0, 49151), max_size=12), st.booleans())
def test_pushed_text_is_decoded_text_for_any_ids(smollm2, ids, skip_special):
    detokenizer = Detokenizer(smollm2, skip_special=skip_special)
    pushed = "".join([detokenizer.push(id) for id in ids]) + detokenizer.finish()
    assert pushed == smollm2.decode(ids, skip_special=skip_special)
    assert pushed == b"".join(
        smollm2.token_bytes(id) for id in ids if not (skip_special and id in smollm2.special_ids)
    ).decode(errors="replace")


def test_what_an_unfinished_character_leaves_is_marked(smollm2):
    first, *_ = smollm2.encode("🦩", add_special=False)
    detokenizer = Detokenizer(smollm2)
    assert detokenizer.push(first) == ""
    assert detokenizer.finish() == "\ufffd"
