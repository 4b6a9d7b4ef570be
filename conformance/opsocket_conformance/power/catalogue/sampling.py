"""What goes wrong between logits and a token: the greedy one, and sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from opsocket.operators import SampleBatch
from opsocket_conformance.power.fault import Fault, Hook
from opsocket_conformance.power.host import Float64, partly_written, recomputed, rounded
from opsocket_conformance.power.orders import Int64, falling, falling_ties_high

Step = Callable[..., Any]


def _same(value: Any, *others: Any) -> Any:
    return value


# ---- argmax


def _argmax(pick: Step) -> Hook:
    """pick(logits f64[B, V]) instead of the index of the largest."""
    return recomputed(lambda plan, logits: np.asarray(pick(logits), np.int64))


def _up_to(count: int) -> Step:
    return lambda logits: logits[:, :count].argmax(-1)


def _from_minus(floor: float) -> Step:
    """A running maximum that starts at a number instead of -inf, and at index -1."""
    return lambda logits: np.where((logits > floor).any(-1), logits.argmax(-1), -1)


def _argmax_fault(name: str, wrong: str, run: Hook) -> Fault:
    return Fault("argmax", name=f"argmax: {name}", category="sampling", wrong=wrong, run=run)


_ARGMAX: Final = (
    _argmax_fault("ties to the last", "a comparison with >=", _argmax(lambda logits: falling_ties_high(logits)[:, 0])),
    _argmax_fault(
        "ties to any",
        "threads meet without an order",
        _argmax(
            lambda logits: np.where(
                falling(logits)[:, 0] % 2 == 0, falling_ties_high(logits)[:, 0], falling(logits)[:, 0]
            )
        ),
    ),
    _argmax_fault("logits beyond 32768 unseen", "one block of threads", _argmax(_up_to(32768))),
    _argmax_fault(
        "last logit unseen", "V - 1", _argmax(lambda logits: logits[:, : max(logits.shape[1] - 1, 1)].argmax(-1))
    ),
    _argmax_fault(
        "last logits unseen",
        "a vector loop of 32 without its tail",
        _argmax(lambda logits: logits[:, : logits.shape[1] // 32 * 32 or 1].argmax(-1)),
    ),
    _argmax_fault(
        "indices in 16 bits", "wrong beyond 32767", _argmax(lambda logits: logits.argmax(-1).astype(np.int16))
    ),
    _argmax_fault("of the size", "abs where a sign was wanted", _argmax(lambda logits: np.abs(logits).argmax(-1))),
    _argmax_fault(
        "compared in bf16", "logits are rounded first", _argmax(lambda logits: rounded(logits, "bf16").argmax(-1))
    ),
    _argmax_fault(
        "compared in f16", "logits are rounded first", _argmax(lambda logits: rounded(logits, "f16").argmax(-1))
    ),
    _argmax_fault("nothing found in a row of -inf", "the index starts at -1", _argmax(_from_minus(-np.inf))),
    _argmax_fault("nothing found below 0", "the maximum starts at 0", _argmax(_from_minus(0.0))),
    _argmax_fault(
        "+inf skipped",
        "taken for invalid",
        _argmax(lambda logits: np.where(logits == np.inf, -np.inf, logits).argmax(-1)),
    ),
    _argmax_fault(
        "the neighbour's row",
        "the row's index is one off",
        _argmax(lambda logits: np.roll(logits, 1, axis=0).argmax(-1)),
    ),
    _argmax_fault(
        "first row for all",
        "the row's stride is 0",
        _argmax(lambda logits: np.broadcast_to(logits[:1].argmax(-1), len(logits))),
    ),
    _argmax_fault("last row not written", "B - 1", partly_written(lambda ids: ids[-1:])),
)


# ---- sample


@dataclass(frozen=True)
class Settings:
    """One request's."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    uniform: float
    repetition: float
    presence: float
    frequency: float
    ids: Int64
    counts: Int64


def _of_row(batch: SampleBatch, row: int) -> Settings:
    first, last = (int(i) for i in batch.history_indptr[row : row + 2])
    names = ("temperature", "top_p", "min_p", "uniform", "repetition", "presence", "frequency")
    values: dict[str, Any] = {name: float(getattr(batch, name)[row]) for name in names}
    ids, counts = np.asarray(batch.history_ids[first:last]), np.asarray(batch.history_counts[first:last])
    return Settings(top_k=int(batch.top_k[row]), ids=ids, counts=counts, **values)


def _repeated(logits: Float64, s: Settings) -> Float64:
    return np.where(logits > 0, logits / s.repetition, logits * s.repetition)


def _penalized(
    logits: Float64,
    s: Settings,
    repeated: Step = _repeated,
    charge: Step = lambda s: s.frequency * s.counts + s.presence,
) -> Float64:
    logits = logits.copy()
    logits[s.ids] = repeated(logits[s.ids], s) - charge(s)
    return logits


def _top_k(p: Float64, s: Settings) -> Float64:
    return p[: s.top_k] if 0 < s.top_k < len(p) else p


def _top_p(p: Float64, s: Settings) -> Float64:
    if s.top_p >= 1:
        return p
    before = (np.cumsum(p) - p) / p.sum()
    return p[: max(int((before < s.top_p).sum()), 1)]


def _min_p(p: Float64, s: Settings) -> Float64:
    return np.asarray(p[p >= s.min_p * p[0]])


def _drawn(p: Float64, s: Settings) -> int:
    mass = np.cumsum(p) / p.sum()
    return min(int((mass <= s.uniform).sum()), len(p) - 1)


def sample(
    *,
    settings: Step = _same,
    given: Step = _same,
    penalized: Step = _penalized,
    warm: Step = lambda logits, s: logits / s.temperature,
    filters: tuple[Step, ...] = (_top_k, _top_p, _min_p),
    drawn: Step = _drawn,
    greedy: Step = lambda s: s.temperature == 0,
    order: Step = falling,
) -> Hook:
    """The right choice in float64, each step of which can be replaced."""

    def choose(logits: Float64, s: Settings) -> int:
        logits = penalized(logits, s)
        ranked = order(logits)
        if greedy(s):
            return int(ranked[0])
        warmed = warm(logits[ranked], s)
        p = np.exp(warmed - warmed.max())
        p /= p.sum()
        for narrow in filters:
            p = narrow(p, s)
        return int(ranked[drawn(p, s)])

    def compute(plan: Any, logits: Float64) -> Int64:
        rows = [settings(_of_row(plan.batch, row)) for row in range(len(logits))]
        return np.array([choose(row, s) for row, s in zip(given(logits), rows, strict=True)], np.int64)

    return recomputed(compute)


def _rolled(*names: str) -> Hook:
    """Some settings are taken from the request before."""

    def run(plan: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        result = plan.right(*args, **kwargs)
        plan.inner.update(replace(plan.batch, **{name: np.roll(getattr(plan.batch, name), 1) for name in names}))
        try:
            return plan.right(*args, **kwargs) if len(result) else result
        finally:
            plan.inner.update(plan.batch)

    return run


def _after_temperature(logits: Float64, s: Settings) -> Float64:
    if s.temperature == 0:
        return _penalized(logits, s)
    return np.asarray(_penalized(logits / s.temperature, s) * s.temperature)


def _ascending_draw(p: Float64, s: Settings) -> int:
    mass = np.cumsum(p[::-1]) / p.sum()
    return len(p) - 1 - min(int((mass <= s.uniform).sum()), len(p) - 1)


def _sample_fault(name: str, wrong: str, run: Hook) -> Fault:
    return Fault("sample", name=f"sample: {name}", category="sampling", wrong=wrong, run=run)


def _settings(**changes: Step) -> Hook:
    return sample(settings=lambda s: replace(s, **{name: change(s) for name, change in changes.items()}))


def _charged(charge: Step) -> Hook:
    return sample(penalized=lambda logits, s: _penalized(logits, s, charge=charge))


def _repeating(repeated: Step) -> Hook:
    return sample(penalized=lambda logits, s: _penalized(logits, s, repeated=repeated))


_SAMPLE: Final = (
    _sample_fault("top_k + 1", "a comparison with <=", _settings(top_k=lambda s: s.top_k + 1 if s.top_k else 0)),
    _sample_fault("top_k - 1", "a comparison with <", _settings(top_k=lambda s: max(s.top_k - 1, 1) if s.top_k else 0)),
    _sample_fault("top_k ignored", "never read", _settings(top_k=lambda s: 0)),
    _sample_fault("top_k 0 keeps one", "0 is not taken for all", _settings(top_k=lambda s: max(s.top_k, 1))),
    _sample_fault("top_k at most 16", "a sorted list in registers", _settings(top_k=lambda s: min(s.top_k or 16, 16))),
    _sample_fault("top_p ignored", "never read", _settings(top_p=lambda s: 1.0)),
    _sample_fault(
        "top_p without the last token",
        "the token that crosses p is left out",
        sample(filters=(_top_k, lambda p, s: p[: max(int((np.cumsum(p) / p.sum() <= s.top_p).sum()), 1)], _min_p)),
    ),
    _sample_fault(
        "top_p with one token more",
        "a comparison after the sum",
        sample(filters=(_top_k, lambda p, s: p if s.top_p >= 1 else p[: len(_top_p(p, s)) + 1], _min_p)),
    ),
    _sample_fault(
        "top_p of all tokens",
        "not renormalized after top_k",
        sample(
            filters=(
                _top_k,
                lambda p, s: p if s.top_p >= 1 else p[: max(int((np.cumsum(p) - p < s.top_p).sum()), 1)],
                _min_p,
            )
        ),
    ),
    _sample_fault("min_p ignored", "never read", _settings(min_p=lambda s: 0.0)),
    _sample_fault(
        "min_p of 1",
        "a probability instead of a share of the largest",
        sample(filters=(_top_k, _top_p, lambda p, s: p[: max(int((p / p.sum() >= s.min_p).sum()), 1)])),
    ),
    _sample_fault("top_p before top_k", "the order of filters", sample(filters=(_top_p, _top_k, _min_p))),
    _sample_fault("min_p before top_p", "the order of filters", sample(filters=(_min_p, _top_k, _top_p))),
    _sample_fault("temperature ignored", "never read", sample(warm=lambda logits, s: logits)),
    _sample_fault(
        "multiplied by the temperature", "instead of divided", sample(warm=lambda logits, s: logits * s.temperature)
    ),
    _sample_fault(
        "temperature after the filters",
        "filters see the plain probabilities",
        sample(warm=lambda logits, s: logits, filters=(_top_k, _top_p, _min_p, lambda p, s: p ** (1 / s.temperature))),
    ),
    _sample_fault(
        "greedy ignored",
        "temperature 0 becomes 1",
        sample(greedy=lambda s: False, warm=lambda logits, s: logits / (s.temperature or 1.0)),
    ),
    _sample_fault("greedy below temperature 1", "a threshold", sample(greedy=lambda s: s.temperature < 0.9)),
    _sample_fault("always greedy", "the uniform number is never read", sample(greedy=lambda s: True)),
    _sample_fault(
        "greedy without penalties",
        "the argmax of the plain logits",
        sample(penalized=lambda logits, s: logits if s.temperature == 0 else _penalized(logits, s)),
    ),
    _sample_fault("penalties after temperature", "the order of steps", sample(penalized=_after_temperature)),
    _sample_fault("penalties ignored", "the history is never read", sample(penalized=lambda logits, s: logits)),
    _sample_fault("repetition ignored", "never read", _settings(repetition=lambda s: 1.0)),
    _sample_fault(
        "repetition divides negative logits",
        "the sign is not looked at",
        _repeating(lambda logits, s: logits / s.repetition),
    ),
    _sample_fault(
        "repetition the other way round",
        "multiplied above 0, divided below",
        _repeating(lambda logits, s: np.where(logits > 0, logits * s.repetition, logits / s.repetition)),
    ),
    _sample_fault(
        "repetition once for each count",
        "to the power of the count",
        _repeating(
            lambda logits, s: np.where(logits > 0, logits / s.repetition**s.counts, logits * s.repetition**s.counts)
        ),
    ),
    _sample_fault("frequency ignored", "never read", _settings(frequency=lambda s: 0.0)),
    _sample_fault("frequency without the count", "charged once", _charged(lambda s: s.frequency + s.presence)),
    _sample_fault(
        "presence for each count", "charged like frequency", _charged(lambda s: (s.frequency + s.presence) * s.counts)
    ),
    _sample_fault("presence ignored", "never read", _settings(presence=lambda s: 0.0)),
    _sample_fault("penalties added", "the sign", _charged(lambda s: -s.frequency * s.counts - s.presence)),
    _sample_fault(
        "repetition after the others",
        "the order of penalties",
        sample(
            penalized=lambda logits, s: _penalized(
                _penalized(logits, replace(s, repetition=1.0)), replace(s, frequency=0.0, presence=0.0)
            )
        ),
    ),
    _sample_fault(
        "negative penalties cut",
        "max(penalty, 0)",
        _settings(frequency=lambda s: max(s.frequency, 0.0), presence=lambda s: max(s.presence, 0.0)),
    ),
    _sample_fault(
        "last token of the history left out",
        "an end that is one off",
        _settings(ids=lambda s: s.ids[:-1], counts=lambda s: s.counts[:-1]),
    ),
    _sample_fault("from the unlikely end", "the cumulative sum runs the other way", sample(drawn=_ascending_draw)),
    _sample_fault("1 - uniform", "the other side", _settings(uniform=lambda s: 1 - s.uniform)),
    _sample_fault(
        "next token of the drawn", "an exclusive sum", sample(drawn=lambda p, s: min(_drawn(p, s) + 1, len(p) - 1))
    ),
    _sample_fault(
        "in the order of ids",
        "the cumulative sum runs over token ids",
        sample(
            order=lambda logits: np.arange(len(logits)),
            greedy=lambda s: False,
            warm=lambda logits, s: logits / (s.temperature or 1e-3),
            filters=(),
        ),
    ),
    _sample_fault(
        "not renormalized before the draw",
        "uniform against the sum before the filters",
        sample(
            filters=(lambda p, s: p,),
            drawn=lambda p, s: min(
                int((np.cumsum(_min_p(_top_p(_top_k(p, s), s), s)) <= s.uniform).sum()),
                len(_min_p(_top_p(_top_k(p, s), s), s)) - 1,
            ),
        ),
    ),
    _sample_fault("logits in bf16", "rounded before the softmax", sample(given=lambda logits: rounded(logits, "bf16"))),
    _sample_fault(
        "tokens beyond 1024 unseen",
        "one block of threads",
        sample(given=lambda logits: np.where(np.arange(logits.shape[1]) < 1024, logits, -np.inf)),
    ),
    _sample_fault(
        "last token unseen",
        "V - 1",
        sample(given=lambda logits: np.where(np.arange(logits.shape[1]) < logits.shape[1] - 1, logits, -np.inf)),
    ),
    _sample_fault("ties to the higher index", "a sort that is not stable", sample(order=falling_ties_high)),
    _sample_fault("the neighbour's uniform number", "the row's index is one off", _rolled("uniform")),
    _sample_fault("the neighbour's temperature", "the row's index is one off", _rolled("temperature")),
    _sample_fault("the neighbour's top_p", "the row's index is one off", _rolled("top_p")),
    _sample_fault(
        "the neighbour's penalties", "the row's index is one off", _rolled("repetition", "presence", "frequency")
    ),
    _sample_fault(
        "the neighbour's logits", "the row's index is one off", sample(given=lambda logits: np.roll(logits, 1, axis=0))
    ),
    _sample_fault("last row not written", "B - 1", partly_written(lambda ids: ids[-1:])),
)

FAULTS: Final[tuple[Fault, ...]] = _ARGMAX + _SAMPLE
