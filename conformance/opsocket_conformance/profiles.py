"""Named sets of cases that say what a backend can be used for. A report says which of them it holds."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from opsocket.operators import ContractError
from opsocket.quantization import FORMATS
from opsocket_conformance.case import Case
from opsocket_conformance.verdicts import Result, Verdict, count

Patterns = tuple[str, ...]


@dataclass(frozen=True)
class Profile:
    """A set of cases, told by what they need of a backend (`Check.features`).

    base, own: patterns of features. A case belongs if all of its features match, and one of them matches `own`, where
    the profile has one. choices: of the features that match the same choice, one is enough: a backend that has bf16
    and no f16 can hold `decoder`.
    """

    name: str
    title: str
    base: Patterns
    own: Patterns = ()
    choices: tuple[Patterns, ...] = ()

    def includes(self, features: frozenset[str]) -> bool:
        if not all(_matches(feature, self.base + self.own) for feature in features):
            return False
        return not self.own or any(_matches(feature, self.own) for feature in features)


def _matches(feature: str, patterns: Patterns) -> bool:
    return any(fnmatch.fnmatchcase(feature, pattern) for pattern in patterns)


_CACHE = ("op:cache_write", "op:cache_read", "op:cache_move", "op:cache_copy_blocks")
_MODEL = tuple(
    f"op:{name}" for name in ("rms_norm", "rope", "silu_mul", "add", "take_rows", "embedding", "argmax", "sample")
)
_WEIGHTS = ("op:matmul", "weight:*")
_ANY_DTYPE = ("dtype:bf16", "dtype:f16", "dtype:f32")
_ATTENTION = ("op:attention", "cache:same", *_ANY_DTYPE)


def _weights(bits: int) -> Patterns:
    return tuple(
        f"weight:{f.id}" for f in FORMATS if f.bits == bits and f.base == f and f.code in ("signed", "unsigned")
    )


def _with_int8_activations(weights: Patterns) -> Patterns:
    return tuple(f"{weight}_{suffix}" for weight in weights for suffix in ("a8", "a8g32"))


def _decoder(name: str, title: str, *dtypes: str) -> Profile:
    base = ("op:attention", "cache:same", *_CACHE, *_MODEL, *_WEIGHTS, *dtypes)
    return Profile(name, title, base, choices=(dtypes, ("weight:*",)))


def _kv(name: str, title: str, code: str) -> Profile:
    base = ("op:attention", *_CACHE, *_ANY_DTYPE)
    return Profile(name, title, base, (f"cache:{code}.*", f"cache:{code}"), (_ANY_DTYPE, (f"cache:{code}*",)))


PROFILES: Final[tuple[Profile, ...]] = (
    _decoder("decoder", "a decoder over a paged cache, in one 16-bit type", "dtype:bf16", "dtype:f16"),
    _decoder("decoder-f32", "the same in f32", "dtype:f32"),
    _decoder("decoder-f16", "the same in f16", "dtype:f16"),
    Profile("quant-w4", "4-bit weights", ("op:matmul", *_ANY_DTYPE), _weights(4), (_ANY_DTYPE, ("weight:*",))),
    Profile(
        "quant-w4a8",
        "4-bit weights, 8-bit activations",
        ("op:matmul", *_ANY_DTYPE),
        _with_int8_activations(_weights(4)),
        (_ANY_DTYPE, ("weight:*",)),
    ),
    Profile(
        "quant-w8a8",
        "8-bit weights and activations",
        ("op:matmul", *_ANY_DTYPE),
        ("weight:i8_channel_a8", "op:quantize_activation"),
        (_ANY_DTYPE,),
    ),
    Profile("quant-w2", "2-bit weights", ("op:matmul", *_ANY_DTYPE), _weights(2), (_ANY_DTYPE, ("weight:*",))),
    Profile(
        "quant-f8",
        "8-bit float weights",
        ("op:matmul", *_ANY_DTYPE),
        ("weight:f8e4m3fn_*",),
        (_ANY_DTYPE, ("weight:*",)),
    ),
    Profile(
        "quant-mxfp4",
        "4-bit float weights with power-of-two scales",
        ("op:matmul", *_ANY_DTYPE),
        ("weight:mxfp4*",),
        (_ANY_DTYPE, ("weight:*",)),
    ),
    _kv("kv-int8", "8-bit integer cache", "i8"),
    _kv("kv-int4", "4-bit integer cache", "i4"),
    _kv("kv-fp8", "8-bit float cache", "f8e4m3fn"),
    Profile("long-context", "beyond 4096 keys", (*_ATTENTION, "op:rope"), ("long",), (_ANY_DTYPE,)),
    Profile("sliding-window", "windows", _ATTENTION, ("window",), (_ANY_DTYPE,)),
    Profile("mla", "latent attention", (*_ATTENTION, *_CACHE, "head_dim:576"), ("latent",), (_ANY_DTYPE,)),
    Profile(
        "moe",
        "mixture of experts",
        ("weight:*", *_ANY_DTYPE),
        ("op:grouped_matmul", "op:moe_route", "op:moe_sort", "op:moe_combine"),
        (_ANY_DTYPE, ("weight:*",)),
    ),
    Profile("speculative", "tree masks, several tokens verified at once", _ATTENTION, ("tree",), (_ANY_DTYPE,)),
    Profile(
        "cascade",
        "LSE, and the merge of parts",
        _ATTENTION,
        ("lse", "op:merge_states"),
        (_ANY_DTYPE,),
    ),
    Profile(
        "capture",
        "a decode step recorded once and replayed",
        (*_ATTENTION, "op:cache_write", *_MODEL, "op:matmul", "deterministic"),
        ("capture",),
        (_ANY_DTYPE,),
    ),
    Profile(
        "deterministic", "the same bits every time", (*_ATTENTION, "op:cache_move"), ("deterministic",), (_ANY_DTYPE,)
    ),
)


def find_profiles(names: Sequence[str]) -> tuple[Profile, ...]:
    """Profiles by name; `ContractError` lists those that there are."""
    known = {profile.name: profile for profile in PROFILES}
    for name in names:
        if name not in known:
            raise ContractError("profile", f"one of {sorted(known)}", repr(name))
    return tuple(known[name] for name in names)


@dataclass(frozen=True)
class Held:
    """Whether a profile is held. verdict: "held"; "held with exclusions"; "not held"; "incomplete" where cases of the
    tier were left out.

    by: the combinations of choices that hold it. counts: verdicts of its cases. missing: of the combination that comes
    nearest, the cases that stand in its way.
    """

    profile: str
    verdict: str
    by: tuple[str, ...]
    counts: Mapping[Verdict, int]
    missing: tuple[str, ...] = ()


def hold(profile: Profile, planned: Iterable[Case], results: Mapping[str, Result]) -> Held:
    """Judge a profile by the results of its cases. planned: all cases of the tier that was run, run or not."""
    members = [(case.id, case.check.features()) for case in planned if profile.includes(case.check.features())]
    ran = {id: features for id, features in members if id in results}
    counts = count(results[id] for id in ran)
    complete = len(ran) == len(members)
    lacking = {
        choice: [id for id, f in ran.items() if results[id].verdict is not Verdict.PASS and _agrees(profile, f, choice)]
        for choice in _combinations(profile, [features for _, features in members])
        if any(set(choice) <= features for features in ran.values())
    }
    excluded = {id for id in ran if results[id].verdict is Verdict.EXCLUDED}
    for verdict, tolerated in (("held", set()), ("held with exclusions", excluded)):
        by = tuple(_words(choice) for choice, ids in lacking.items() if set(ids) <= tolerated)
        if by:
            return Held(profile.name, verdict if complete else "incomplete", by, counts)
    missing = min(lacking.values(), key=len, default=[])
    return Held(profile.name, "not held" if missing else "incomplete", (), counts, tuple(missing))


def _words(choice: tuple[str, ...]) -> str:
    return " ".join(feature.partition(":")[2] for feature in choice)


def _combinations(profile: Profile, features: Sequence[frozenset[str]]) -> list[tuple[str, ...]]:
    """One feature from each choice, of those that occur."""
    options = []
    for patterns in profile.choices:
        occurring = sorted({f for case in features for f in case if _matches(f, patterns)})
        if occurring:
            options.append(occurring)
    return list(itertools.product(*options))


def _agrees(profile: Profile, features: frozenset[str], choice: tuple[str, ...]) -> bool:
    """Whether a case is part of a combination: it needs none of the options that the combination leaves out."""
    return all(feature in choice for patterns in profile.choices for feature in features if _matches(feature, patterns))
