"""The engine: requests in, tokens out, many at a time (continuous batching: Yu et al. 2022, Orca; paged caches: Kwon et
al. 2023, arXiv 2309.06180). R row of logits, V vocabulary.

    engine = Engine(model, Options(memory=2**30))
    engine.submit(Request("a", prompt, Sampling(temperature=0)))
    while engine.has_work:
        for event in engine.step():
            ...

Synchronous and for one thread. Its memory is taken at the start, and is what the cost model says to the byte.
"""

import random
import time
from collections.abc import Callable
from collections.abc import Sequence as Many

import msgspec
import torch
from torch import Tensor

from isoflop.cost.cache import CACHE_DTYPES
from isoflop.engine.draw import Drawn, Row
from isoflop.engine.holdings import Holdings
from isoflop.engine.memory import Memory
from isoflop.engine.notices import copies, notices
from isoflop.engine.plan import plan_memory
from isoflop.engine.request import Event, Request
from isoflop.engine.sampling import SEEDS, Grammar, Guide, Sampling
from isoflop.engine.scheduler import Scheduler
from isoflop.engine.sequence import Sequence, Work
from isoflop.engine.speculate import Drafter, Guess, rows_after, say, worth
from isoflop.engine.stats import Stats
from isoflop.engine.store import NAMES
from isoflop.model import DecoderModel


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`memory`: bytes of all caches; `page_tokens`: tokens of a page; `most_running`: sequences at once;
    `tokens_per_step`: new tokens of a step; `dtype` of keys, values and latents: fp32, bf16, fp16, fp8, int8, int4
    (None: the model's); `snapshots`: copies of recurrent states that are kept for other requests with the same prefix
    (None: as many as most_running); `reuse`: prefixes are found again by their contents; `end_tokens`: of the model;
    `guide`: what follows a grammar; `drafts`: the most tokens that the drafter is asked for at once;
    `row_cost`: of a further token in a pass, about, in passes over one token; a request is guessed for less, or not at
    all, where guesses would not pay at that (None: always for all); `typical`: tokens of a usual
    sequence, by which memory is divided between layers that see everything and layers that see a window (None: up to
    2048)."""

    memory: int = 1 << 30
    page_tokens: int = 16
    most_running: int = 64
    tokens_per_step: int = 512
    dtype: str | None = None
    snapshots: int | None = None
    reuse: bool = True
    end_tokens: tuple[int, ...] = ()
    guide: Callable[[Grammar], Guide] | None = None
    drafts: int = 4
    row_cost: float | None = None
    typical: int | None = None

    def __post_init__(self) -> None:
        for name in ("memory", "page_tokens", "most_running", "tokens_per_step", "drafts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.snapshots is not None and self.snapshots < 0:
            raise ValueError(f"snapshots = {self.snapshots} must not be negative")
        if self.dtype is not None and self.dtype not in CACHE_DTYPES:
            raise ValueError(f"cache dtype {self.dtype!r} is unknown; valid: {', '.join(CACHE_DTYPES)}")


class Engine:
    """See the top of this file. `notices`: what of the options does nothing, or does otherwise, for this model."""

    def __init__(self, model: DecoderModel, options: Options | None = None, drafter: Drafter | None = None) -> None:
        o = self.options = options or Options()
        self.model = model.eval()
        n_slots = o.most_running + (0 if not o.reuse else o.most_running if o.snapshots is None else o.snapshots)
        own, new = NAMES[model.dtype], o.tokens_per_step
        self.plan = plan_memory(model.decoder, o.memory, o.page_tokens, n_slots, new, o.dtype, own, o.typical)
        self.holdings = Holdings(self.plan, o.reuse)
        most = min(o.most_running, self.plan.n_slots) if self.plan.slot_bytes else o.most_running
        self.scheduler = Scheduler(self.holdings, most, new, self.plan.chunk(new))
        with torch.inference_mode():
            self.memory = Memory(model, self.plan)
        self.draft_with(drafter)
        self._sequences: dict[str, Sequence] = {}
        self._ended: list[Event] = []
        self._n_arrived, self._counts = 0, Stats()
        self._random = random.SystemRandom()

    def draft_with(self, drafter: Drafter | None) -> None:
        """Let a drafter guess for the requests to come; it may need the engine to be made."""
        self.drafter = drafter
        self.notices = notices(self.model.decoder, self.plan, self.options.reuse, drafter is not None)
        self.notices += copies(self.model)

    # ---- requests

    def submit(self, request: Request) -> None:
        """Put a request in the line. ValueError, one line, where it is not valid or can never fit."""
        self._check(request)
        sequence = self._new(request, list(request.prompt), len(request.prompt))
        self._sequences[request.id] = sequence
        self.scheduler.add(sequence)

    def fork(self, id: str, new: str, sampling: Sampling) -> None:
        """Let a new request go on from where request `id` is now, in the same pages until it writes. Its `max_tokens`
        counts from the prompt of `id`. ValueError where there is no such request, or the new one is not valid."""
        old = self._sequences.get(id)
        if old is None:
            raise ValueError(f"request {id!r} is not under way")
        if sampling.prompt_logprobs is not None:
            raise ValueError(f"prompt_logprobs: the prompt of {id!r} is computed already")
        request = Request(new, old.request.prompt, sampling)
        self._check(request)
        if len(request.prompt) + sampling.max_tokens <= len(old.tokens):
            raise ValueError(f"max_tokens = {sampling.max_tokens}: request {id!r} already has that many")
        sequence = self._new(request, list(old.tokens), len(request.prompt))
        for token in old.tokens[len(request.prompt) :]:
            if sequence.row.guide is not None:
                sequence.row.guide.accept(token)
        self._sequences[new] = sequence
        same = sequence.turns == old.turns and old in self.scheduler.running
        if same and len(self.scheduler.running) < self.scheduler.most_running and self.holdings.fork(old, sequence):
            self.scheduler.start(sequence)
        else:
            self.scheduler.add(sequence)

    def cancel(self, id: str) -> bool:
        """End a request and free what it holds, now; False where it is not under way. The next step tells of it."""
        sequence = self._sequences.get(id)
        if sequence is None:
            return False
        self._end(sequence)
        self._ended.append(Event(id, finish="cancelled"))
        return True

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to tell."""
        return bool(self._sequences or self._ended)

    # ---- a step

    def step(self) -> list[Event]:
        """One forward over what every scheduled request brings; its events."""
        with torch.inference_mode():
            return self._step()

    def _step(self) -> list[Event]:
        start, said = time.perf_counter(), self._counts.generated
        events, self._ended = self._ended, []
        self._draft()
        works = self.scheduler.schedule()
        if not works:
            assert not self._sequences, "requests wait, and none can enter"
            return events
        self.memory.obey(self.holdings.orders)
        logits_RV = self.memory.forward(works)
        drawn = iter(self._choose(logits_RV, works))
        self._counts.steps += 1
        self._counts.computed += sum(work.n_tokens for work in works)
        for work in works:
            self._settle(work, [next(drawn) for _ in range(work.n_wanted)], events)
        if all(work.n == 1 for work in works):
            self._time(works, self._counts.generated - said, time.perf_counter() - start)
        return events

    @property
    def stats(self) -> Stats:
        """Counts of now and since the start."""
        h, s = self.holdings, self.scheduler
        return msgspec.structs.replace(
            self._counts,
            running=len(s.running),
            waiting=len(s.waiting),
            pages=sum(self.plan.n_pages),
            pages_held=sum(pool.n_held for pool in h.pages),
            slots=self.plan.n_slots,
            slots_held=h.slots.n_held,
            nbytes=self.plan.nbytes,
            looked_up=h.n_looked_up,
            found=h.n_found,
            preempted=s.n_preempted,
            copied=h.n_copied,
            evicted=h.slots.n_evicted + sum(pool.n_evicted for pool in h.pages),
        )

    def close(self) -> None:
        """Cancel everything and free the caches."""
        for sequence in list(self._sequences.values()):
            self._end(sequence)
        self._ended.clear()
        del self.memory

    # ---- parts

    def _check(self, request: Request) -> None:
        d, s, n = self.model.decoder, request.sampling, len(request.prompt)
        limit = n + s.max_tokens
        if request.id in self._sequences:
            raise ValueError(f"request {request.id!r} is already under way")
        if n == 0:
            raise ValueError("prompt is empty; it needs at least one token")
        if not 0 <= min(request.prompt) <= max(request.prompt) < d.vocab_size:
            raise ValueError(f"prompt has tokens outside the vocabulary, 0 to {d.vocab_size - 1}")
        if limit > d.max_context:
            asked = f"prompt of {n} tokens and max_tokens = {s.max_tokens}"
            raise ValueError(f"{asked} exceed max_context = {d.max_context}")
        if s.grammar is not None and self.options.guide is None:
            raise ValueError("grammar: this engine has no tokenizer to follow one with")
        for group, n_pages in zip(self.plan.groups, self.plan.n_pages, strict=True):
            needed = group.pages(limit, self.scheduler.chunk, self.plan.page_tokens)
            if needed > n_pages:
                raise ValueError(
                    f"prompt of {n} tokens and max_tokens = {s.max_tokens} need {needed} pages of {group.page_bytes} "
                    f"bytes at once; the cache has {n_pages}"
                )

    def _new(self, request: Request, tokens: list[int], n_prompt: int) -> Sequence:
        s = request.sampling
        limit = n_prompt + s.max_tokens
        seed = self._random.randrange(SEEDS) if s.seed is None else s.seed
        guide = None if s.grammar is None or self.options.guide is None else self.options.guide(s.grammar)
        turns = tuple(rope.limited(limit) for rope in self.model.ropes)
        self._n_arrived += 1
        row = Row(s, seed, n_prompt, tokens, guide)
        drafted_for = self.drafter is not None and guide is None
        return Sequence(
            request,
            self._n_arrived,
            row,
            tokens,
            limit,
            turns,
            drafted_for=drafted_for,
            scores=None if s.prompt_logprobs is None else [],
        )

    def _draft(self) -> None:
        """Have guesses for those that have none left. A grammar's requests have none: it says what may follow only once
        the tokens before are said."""
        if self.drafter is None:
            return
        idle = [s for s in self.scheduler.running if s.unguessed and s.n_pending == 1]
        asked = [(s, k) for s in idle if (k := self._n_drafts(s)) > 0]
        if not asked:
            return
        start = time.perf_counter()
        for (sequence, k), proposal in zip(asked, self.drafter.propose(asked), strict=True):
            sequence.drafts, sequence.odds = list(proposal.tokens[:k]), proposal.odds_KV
        self._counts.drafting_s += time.perf_counter() - start

    def _n_drafts(self, sequence: Sequence) -> int:
        assert self.drafter is not None
        most, row_cost = min(self.options.drafts, sequence.limit - len(sequence.tokens) - 1), self.options.row_cost
        return most if row_cost is None else worth(sequence, most, self.drafter.cost, row_cost)

    def _choose(self, logits_RV: Tensor, works: Many[Work]) -> list[Drawn]:
        """What is said at each wanted row: the guess there, or something else."""
        rows: list[Row] = []
        guesses: list[Guess | None] = []
        for work in works:
            if work.wanted:
                own = rows_after(work.sequence.row, work.drafts)
                rows += own
                guesses += [self._guess(work.sequence, i) for i in range(len(own))]
        return say(logits_RV, rows, guesses) if rows else []

    def _guess(self, sequence: Sequence, i: int) -> Guess | None:
        odds = sequence.odds
        return None if odds is None or i >= len(sequence.drafts) else Guess(sequence.drafts[i], odds[i])

    def _settle(self, work: Work, drawn: list[Drawn], events: list[Event]) -> None:
        """Take what the step gave, roll back what it gave in vain."""
        sequence = work.sequence
        known = sequence.n_computed + work.n
        accepted = next((i for i, d in enumerate(work.drafts) if d != drawn[i].token), len(work.drafts))
        if drawn and sequence.drafted_for:
            self._count(work, accepted)
            sequence.keep_drafts([choice.token for choice in drawn[: accepted + 1]])
        finish = "length" if known == sequence.limit else None  # a prompt that was asked about, and nothing else
        if finish is not None:
            self._tell(Event(sequence.id, finish=finish), sequence, events)
        for choice in drawn[: accepted + 1]:
            finish = self._take(sequence, choice, events)
            if finish is not None:
                break
        known = min(known + accepted, len(sequence.tokens) - 1) if drawn else known
        if work.drafts:
            self.memory.keep(sequence, known - sequence.n_computed)
        self.holdings.settle(sequence, known)
        if self.holdings.keeps_states and known % self.plan.page_tokens == 0:
            self.holdings.keep_states(sequence, replaced=known > sequence.row.n_prompt)
        if finish is not None:
            self._end(sequence)

    def _count(self, work: Work, accepted: int) -> None:
        judged = min(accepted + 1, len(work.drafts))
        work.sequence.judged += judged
        work.sequence.accepted += accepted
        self._counts.judged += judged
        self._counts.accepted += accepted
        self._counts.drafted += len(work.drafts)
        self._counts.verified += bool(work.drafts)

    def _time(self, works: Many[Work], tokens: int, seconds: float) -> None:
        self._counts.decode_steps += 1
        self._counts.decode_tokens += tokens
        self._counts.decode_s += seconds
        if any(work.drafts for work in works):
            self._counts.drafted_steps += 1
            self._counts.drafted_s += seconds

    def _take(self, sequence: Sequence, choice: Drawn, events: list[Event]) -> str | None:
        """One more token of the output; how the request ends with it, if it does."""
        token, row = choice.token, sequence.row
        sequence.tokens.append(token)
        self._counts.generated += 1
        if row.guide is not None:
            row.guide.accept(token)
        finish = self._finish(sequence, token)
        self._tell(Event(sequence.id, token, choice.logprobs, finish), sequence, events)
        return finish

    def _tell(self, event: Event, sequence: Sequence, events: list[Event]) -> None:
        if not sequence.told:
            first = {"cached": sequence.n_cached, "scores": tuple(sequence.scores or ())}
            event, sequence.told = msgspec.structs.replace(event, **first), True
        events.append(event)

    def _finish(self, sequence: Sequence, token: int) -> str | None:
        s = sequence.request.sampling
        ends = s.stop_tokens if s.ignore_eos else (*s.stop_tokens, *self.options.end_tokens)
        if token in ends or (sequence.row.guide is not None and sequence.row.guide.finished):
            return "stop"
        return "length" if len(sequence.tokens) >= sequence.limit else None

    def _end(self, sequence: Sequence) -> None:
        del self._sequences[sequence.id]
        self.scheduler.remove(sequence)
        if self.drafter is not None:
            self.drafter.forget(sequence)
