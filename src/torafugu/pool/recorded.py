"""Recorded answers: a folder of questions and of what real workers once answered, and the workers that replay it.

The format is that of `docs/recorded-format.md`: JSON lines (`.jsonl`, `.jsonl.xz` or `.jsonl.gz`) named `questions` and
`outcomes`, optionally `texts`, and `models.json` with prices in the folder or beside it. `fugu profile` writes it,
`fugu train` and `fugu eval` read it, and so do other people's collections. A question that a worker never answered is
missing, not wrong.
"""

from __future__ import annotations

import gzip
import logging
import lzma
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from ..agreement import canonical_answer
from ..errors import ConfigError, WorkerError
from ..types import Usage
from .backend import Completion, Delta, OnDelta, Query
from .pool import Member, Pool
from .prices import resolve_price
from .spec import Prices, WorkerSpec

__all__ = [
    "Question",
    "Recorded",
    "RecordedPrices",
    "RecordedSet",
    "Sample",
    "completion_id",
    "create_recorded_pool",
    "read_recorded",
    "replay",
]

_log = logging.getLogger(__name__)

_ENDINGS = (".jsonl", ".jsonl.xz", ".jsonl.gz")
_PIECE_CHARS = 24
"""How much of a replayed answer one streamed delta holds."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `questions`. Further columns are allowed and ignored."""

    qid: str
    prompt: str
    split: str
    gold: str | None = None
    dataset: str = ""
    category: str = ""
    family: str = ""
    source: str = ""
    options: dict[str, str] | list[str] | None = None
    context: str | None = None

    @property
    def text(self) -> str:
        """What a worker is asked: context, question and options."""
        parts = [self.context] if self.context else []
        parts.append(self.prompt)
        if isinstance(self.options, dict):
            parts.append("\n".join(f"{key}. {value}" for key, value in self.options.items()))
        elif self.options:
            parts.append("\n".join(f"{chr(65 + i)}. {value}" for i, value in enumerate(self.options)))
        return "\n\n".join(parts)


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `outcomes`: one answer of one worker. Further columns are allowed and ignored."""

    qid: str
    model: str
    correct: Annotated[float, msgspec.Meta(ge=0, le=1)] | bool
    """Score."""
    k: int = 0
    answer: str = ""
    """Extracted; two workers agree when theirs say the same (`agreement.py`), and an empty one with nobody."""
    in_tokens: int | None = None
    out_tokens: int | None = None
    latency_s: float | None = None
    cost_usd: float | None = None


class RecordedPrices(msgspec.Struct, frozen=True):
    """USD per million tokens."""

    input: Decimal
    output: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedSet:
    """A folder's rows."""

    path: Path
    questions: tuple[Question, ...]
    workers: tuple[str, ...]
    """In alphabetical order: nothing may hang on the order of rows."""
    samples: Mapping[tuple[str, str], tuple[Sample, ...]]
    """(qid, worker) -> its answers by k; a pair that was never asked is absent."""
    prices: Mapping[str, RecordedPrices]
    """Workers whose price is known."""
    models: Mapping[str, str]
    """Worker -> the provider's model behind it; the worker's own name where the folder does not say."""
    texts: Mapping[str, Mapping[str, str]]
    """qid -> worker -> visible text of sample 0; empty when not asked for or not recorded."""


def completion_id(sample: Sample) -> str:
    """The provider id of a replayed completion, by which its verdict is found again."""
    return f"{sample.qid}#{sample.model}#{sample.k}"


def read_recorded(path: Path, *, datasets: Sequence[str] = (), with_texts: bool = False) -> RecordedSet:
    """The folder, or those questions of it whose `dataset` is one of `datasets`.

    Raises:
        ConfigError: a file is missing or damaged, a row is malformed (named by line), or no question is left.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: not a folder: expected one that holds questions.jsonl[.xz|.gz] and outcomes.jsonl")
    questions = tuple(_read_rows(path, "questions", Question))
    if datasets:
        known = sorted({q.dataset for q in questions})
        if unknown := set(datasets) - set(known):
            raise ConfigError(f"{path}: no dataset {sorted(unknown)[0]!r}: the folder has {', '.join(known)}")
        questions = tuple(q for q in questions if q.dataset in set(datasets))
    if not questions:
        raise ConfigError(f"{path}: no questions")
    qids = {q.qid for q in questions}
    if len(qids) != len(questions):
        (twice, _), *_ = Counter(q.qid for q in questions).most_common(1)
        raise ConfigError(f"{path}: question id {twice!r} stands twice")
    samples: dict[tuple[str, str], list[Sample]] = {}
    for sample in _read_rows(path, "outcomes", Sample):
        if sample.qid in qids:
            rows = samples.setdefault((sample.qid, sample.model), [])
            if any(sample.k == row.k for row in rows):
                raise ConfigError(f"{path}: outcomes: {completion_id(sample)!r} (question, worker, k) stands twice")
            rows.append(sample)
    if not samples:
        raise ConfigError(f"{path}: no outcome belongs to any of the {len(questions)} questions")
    texts = {row.qid: row.texts for row in _read_rows(path, "texts", _Texts)} if with_texts else {}
    workers = tuple(sorted({worker for _, worker in samples}))
    models = _read_models(path)
    return RecordedSet(
        path=path,
        questions=questions,
        workers=workers,
        samples={key: tuple(sorted(rows, key=lambda s: s.k)) for key, rows in samples.items()},
        prices={w: price for w in workers if w in models and (price := models[w].price_usd_per_million)},
        models={w: (models[w].model if w in models else None) or w for w in workers},
        texts=texts,
    )


class Recorded:
    """Replays one worker of a recorded set: a `Backend`.

    The question is known by the query's task id, or, when a client asks, by the text of the last message.
    """

    def __init__(self, worker: str, recorded: RecordedSet, qid_of: Mapping[str, str]) -> None:
        self.worker = worker
        self._recorded = recorded
        self._qid_of = qid_of

    async def complete(self, query: Query, on_delta: OnDelta | None) -> Completion:
        asked = query.messages[-1].text if query.question is None else query.question
        qid = query.task if query.task is not None else self._qid_of.get(asked, "")
        rows = self._recorded.samples.get((qid, self.worker))
        if rows is None:
            raise WorkerError(
                f"worker {self.worker!r}: no recorded answer to this question", worker=self.worker, code="unavailable"
            )
        sample = rows[0]
        text = self._recorded.texts.get(qid, {}).get(self.worker) or sample.answer or "(no answer)"
        if query.role == "verifier":  # it has solved the question itself; do the answers agree?
            own, other = canonical_answer(sample.answer), canonical_answer(query.verifies or "")
            verdict = "ACCEPT" if own and own == other else "REJECT"
            text = f"{verdict}\nMy own answer is <answer>{sample.answer}</answer>"
        if on_delta is not None:
            for start in range(0, len(text), _PIECE_CHARS):
                await on_delta(Delta(text=text[start : start + _PIECE_CHARS]))
        return Completion(
            text=text,
            finish_reason="stop",
            answer=sample.answer,
            usage=Usage(input_tokens=sample.in_tokens, output_tokens=sample.out_tokens),
            provider_model=self.worker,
            provider_id=completion_id(sample),
            sent_bytes=0,
        )

    async def close(self) -> None:
        return


def replay(recorded: RecordedSet) -> dict[str, Recorded]:
    """A backend for each worker of the set. Of questions with the same text, the first is known by it."""
    qid_of: dict[str, str] = {}
    for question in recorded.questions:
        qid_of.setdefault(question.text, question.qid)
    return {worker: Recorded(worker, recorded, qid_of) for worker in recorded.workers}


def create_recorded_pool(recorded: RecordedSet) -> Pool:
    """The set's workers as a pool, priced where the folder knows prices."""
    return Pool(
        Member(spec=(spec := _to_spec(recorded, worker)), backend=backend, price=resolve_price(spec))
        for worker, backend in replay(recorded).items()
    )


def _to_spec(recorded: RecordedSet, worker: str) -> WorkerSpec:
    price = recorded.prices.get(worker)
    prices = None if price is None else Prices(input=price.input, output=price.output)
    try:
        return WorkerSpec(id=worker, dialect="recorded", model=recorded.models[worker], prices=prices)
    except ConfigError as error:  # an id that cannot be one
        raise ConfigError(f"{recorded.path}: outcomes: {error.message}") from None


class _Texts(msgspec.Struct, frozen=True):
    qid: str
    texts: dict[str, str]


_Row = TypeVar("_Row", Question, Sample, _Texts)


def _read_rows(folder: Path, stem: str, row_type: type[_Row]) -> Iterator[_Row]:
    found = [folder / (stem + ending) for ending in _ENDINGS if (folder / (stem + ending)).exists()]
    if not found:
        raise ConfigError(f"{folder}: no {stem}.jsonl, {stem}.jsonl.xz or {stem}.jsonl.gz in it")
    if len(found) > 1:
        raise ConfigError(f"{folder}: both {found[0].name} and {found[1].name}: keep one")
    path = found[0]
    decoder = msgspec.json.Decoder(row_type, strict=False)
    number = 0
    try:
        for number, line in enumerate(_read_lines(path), start=1):  # noqa: B007  # for the error message
            if line.strip():
                yield decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: line {number}: {error}") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise ConfigError(f"{path}: after line {number}: {error}") from None


def _read_lines(path: Path) -> Iterator[bytes]:
    opener: Any = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    with opener(path, "rb") as file:
        yield from file


class _Model(msgspec.Struct, frozen=True):
    model: str | None = None
    price_usd_per_million: RecordedPrices | None = None


class _Models(msgspec.Struct, frozen=True):
    models: dict[str, _Model]


def _read_models(folder: Path) -> dict[str, _Model]:
    """`models.json` of the folder, else of its parent; without one nothing is known of prices."""
    path = next((p for p in (folder / "models.json", folder.parent / "models.json") if p.exists()), None)
    if path is None:
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Models).models
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        if path.parent != folder:  # not this set's own: it may be about something else
            _log.warning("%s: not read, so no prices are known: %s", path, error)
            return {}
        raise ConfigError(f"{path}: {error}") from None
