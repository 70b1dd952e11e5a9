"""Drafters over every kind of layer: the tokens are the model's own, and the caches of a draft model follow them."""

import copy
from collections.abc import Sequence as Many

import msgspec
import pytest
import torch
from small_engines import (
    FULL,
    KINDS,
    LATENT,
    MAMBA2,
    VOCABULARY,
    WINDOW,
    assert_plain,
    engine_of,
    greedy,
    model_of,
    prompts_of,
    run,
    served,
)

from isoflop.architecture import Decoder, Layer, MixtureOfExperts
from isoflop.cost.serving import Speculation
from isoflop.engine.draft_exit import EarlyExit, early_exit, first_layers
from isoflop.engine.draft_model import ModelDrafter, draft_model
from isoflop.engine.engine import Engine, Options
from isoflop.engine.gain import gain
from isoflop.engine.ngram import NgramDrafter
from isoflop.engine.request import Request
from isoflop.engine.sampling import Sampling
from isoflop.engine.sequence import Sequence
from isoflop.engine.speculate import Drafter, Proposal, worth
from isoflop.model import DecoderModel
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe

N = 12
DRAFTERS = ("n-gram", "near", "exit")
SHAPED = Sampling(temperature=0.4, top_k=30, top_p=0.95, min_p=0.01, frequency_penalty=-0.5, repetition_penalty=0.9)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def target(kind: str) -> DecoderModel:
    if kind != "experts":
        return model_of(*KINDS[kind])
    sparse = MixtureOfExperts(n_experts=4, top_k=2, d_ff=16)
    layers = tuple(Layer(mixer, sparse) for mixer in (FULL, FULL))
    model = DecoderModel(Decoder(vocab_size=VOCABULARY, d_model=24, layers=layers, max_context=128))
    initialize(model, 1, Recipe(lr=1e-3, batch=1))
    return model


def near(model: DecoderModel) -> DecoderModel:
    """Another model, that often says the same."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.25 * weight.abs().mean() * torch.randn(weight.shape, generator=generator)
    return other


class Checked:
    """What a draft model guesses greedily is what it would say after these tokens without any cache."""

    def __init__(self, drafter: Drafter, model: DecoderModel) -> None:
        self.drafter, self.model, self.cost = drafter, model, drafter.cost

    def propose(self, asked: Many[tuple[Sequence, int]]) -> list[Proposal]:
        proposals = self.drafter.propose(asked)
        for (sequence, k), proposal in zip(asked, proposals, strict=True):
            assert len(proposal.tokens) == k
            whole = torch.tensor([[*sequence.tokens, *proposal.tokens]])
            said = self.model(whole)[0, len(sequence.tokens) - 1 : -1].argmax(-1)
            assert said.tolist() == list(proposal.tokens)
        return proposals

    def forget(self, sequence: Sequence) -> None:
        self.drafter.forget(sequence)


def drafting(model: DecoderModel, drafter: str, checked: bool = False, **options: object) -> Engine:
    engine = engine_of(model, drafts=3, **options)
    if drafter == "n-gram":
        engine.draft_with(NgramDrafter(2, 1))
        return engine
    if drafter == "exit":
        made, guessing = early_exit(engine, 1), first_layers(model, 1)
    else:
        guessing = near(model)
        own = Options(memory=1 << 17, drafts=3, page_tokens=4, most_running=4, typical=64)
        made = ModelDrafter(guessing, model.decoder, own)
    engine.draft_with(Checked(made, guessing) if checked else made)
    return engine


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("kind", [*KINDS, "experts"])
def test_greedy(kind: str, drafter: str) -> None:
    model, prompts = target(kind), prompts_of(11, 5, most=20)
    engine = drafting(model, drafter, checked=drafter != "n-gram")
    wanted = served(engine, prompts, N)
    assert_plain(model, prompts, wanted)
    stats = engine.stats
    assert 0 <= stats.accepted <= stats.judged <= stats.drafted > 0
    if drafter == "near":
        assert 0 < stats.accepted < stats.judged
    assert served(engine, prompts, N) == wanted


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize(("mixers", "pages"), [((FULL, WINDOW), 16), ((MAMBA2, FULL, LATENT, FULL), 9)])
def test_company_changes_nothing(mixers: tuple[object, ...], pages: int, drafter: str) -> None:
    """Seeded requests say the same alone and side by side, with too few pages for all and little room in a step."""
    model = model_of(*mixers)  # type: ignore[arg-type]
    prompts = {str(i): (prompt * 8)[:8] for i, prompt in enumerate(prompts_of(12, 5).values())}
    sampling = msgspec.structs.replace(SHAPED, max_tokens=24)

    def said(engine: Engine, ids: Many[str]) -> dict[str, list[int]]:
        for id in ids:
            engine.submit(Request(id, prompts[id], msgspec.structs.replace(sampling, seed=int(id))))
        return run(engine)

    alone = {id: said(drafting(model, drafter), [id])[id] for id in prompts}
    roomy = drafting(model, drafter)
    assert said(roomy, list(prompts)) == alone and roomy.stats.accepted > 0
    memory = roomy.plan.slot_bytes * 6 + sum(group.page_bytes * pages for group in roomy.plan.groups)
    for budget in (7, 3):
        tight = drafting(model, drafter, memory=memory, snapshots=2, tokens_per_step=budget, typical=64)
        assert said(tight, list(prompts)) == alone
        assert tight.stats.preempted > 0


def test_a_draft_model_with_little_memory() -> None:
    """Its caches hold one or two sequences at a time; those without any room at all are not guessed for."""
    for mixers in ((FULL, WINDOW), (MAMBA2, FULL)):
        model, prompts = model_of(*mixers), prompts_of(13, 4)
        engine = engine_of(model, drafts=3)
        own = Options(memory=1 << 18, drafts=3, page_tokens=4, most_running=1, typical=64)
        roomy = ModelDrafter(model, model.decoder, own)
        memory = roomy.plan.slot_bytes * 4 + sum(group.page_bytes * 14 for group in roomy.plan.groups)
        small = ModelDrafter(model, model.decoder, msgspec.structs.replace(own, memory=memory))
        engine.draft_with(small)
        assert_plain(model, prompts, served(engine, prompts, N))
        assert engine.stats.accepted == engine.stats.drafted > 0
        assert sum(pool.n_held for pool in small.holdings.pages) == small.holdings.slots.n_held == 0


@pytest.mark.parametrize("drafter", ["near", "twin"])
def test_ends_within_drafts(drafter: str) -> None:
    """Stop tokens and max_tokens end a request in the middle of accepted drafts; log probabilities are the model's."""
    model, prompt = model_of(*KINDS["attention"]), prompts_of(14, 1)["0"]
    plain = served(engine_of(model), {"a": prompt}, N)["a"]
    for n in range(1, N):
        engine = drafting(model, "near")
        if drafter == "twin":
            engine.draft_with(ModelDrafter(model, model.decoder, Options(memory=1 << 18, drafts=3)))
        stop = next(i for i, token in enumerate(plain) if token == plain[n])
        engine.submit(
            Request("stop", prompt, Sampling(temperature=0, max_tokens=N, stop_tokens=(plain[n],), logprobs=2))
        )
        engine.submit(Request("length", prompt, greedy(n)))
        events = []
        while engine.has_work:
            events += engine.step()
        told = [e for e in events if e.id == "stop"]
        assert [e.token for e in told] == plain[: stop + 1] and told[-1].finish == "stop"
        assert [e.token for e in events if e.id == "length"] == plain[:n]
        logits = model(torch.tensor([[*prompt, *plain]]))[0].detach().log_softmax(-1)
        for i, event in enumerate(told):
            assert event.logprobs is not None
            assert event.logprobs.token == pytest.approx(float(logits[len(prompt) - 1 + i, plain[i]]), abs=1e-4)


def test_shared_pages_hold_no_copy() -> None:
    """Early exit drafts through the engine's own pages where there are no states; else with caches of its own."""
    engine = engine_of(model_of(*KINDS["latent"]))
    assert isinstance(early_exit(engine, 1), EarlyExit)
    hybrid = engine_of(model_of(*KINDS["hybrid"]))
    assert isinstance(early_exit(hybrid, 1), ModelDrafter)
    for n in (0, 2, 7):
        with pytest.raises(ValueError, match=f"early exit after {n} of 2 layers: must be from 1 to 1"):
            early_exit(engine, n)


def test_vocabularies_must_agree() -> None:
    model = model_of(FULL)
    decoder = msgspec.structs.replace(model.decoder, vocab_size=60)
    with pytest.raises(ValueError, match="the draft model has 61 tokens and the model 60"):
        ModelDrafter(model, decoder, Options(memory=1 << 18))


def test_guesses_that_do_not_pay_stop() -> None:
    """A drafter that is never right is asked now and then; one that always is, for all it may."""
    model, prompts = model_of(*KINDS["attention"]), prompts_of(15, 2)

    def drafted(drafter: str) -> tuple[int, int]:
        engine = drafting(model, "near", row_cost=0.1)
        wrong = model_of(FULL)
        right = drafter == "twin"
        made = ModelDrafter(model if right else wrong, model.decoder, Options(memory=1 << 18, drafts=3))
        made.cost = 0.1
        engine.draft_with(made)
        assert_plain(model, prompts, served(engine, prompts, 60))
        return engine.stats.drafted, engine.stats.accepted

    often, accepted = drafted("twin")
    assert accepted == often > 80 and drafted("wrong")[0] < 50


def test_how_many_guesses_pay() -> None:
    engine = engine_of(model_of(FULL))
    sequence = engine._new(Request("a", (1, 2), greedy(9)), [1, 2], 2)
    assert worth(sequence, 4, cost=0.1, row_cost=0.0) == 4 and worth(sequence, 0, 0.1, 0.0) == 0
    sequence.judged, sequence.accepted = 99, 49
    assert worth(sequence, 4, 0.0, 0.0) == 4 and worth(sequence, 4, 0.2, 0.05) == 1
    sequence.tokens.append(3)
    assert worth(sequence, 4, 0.6, 0.0) == 0


def test_lookup() -> None:
    engine, drafter = engine_of(model_of(FULL)), NgramDrafter(3, 2)
    for tokens, guesses in (
        ([1, 2, 3, 4, 5, 1, 2], (3, 4, 5, 1)),
        ([1, 2, 3, 9, 2, 3, 7, 1, 2, 3], (9, 2, 3, 7)),
        ([4, 4, 4], (4, 4, 4, 4)),
        ([1, 2, 3], ()),
        ([7], ()),
    ):
        sequence = engine._new(Request("a", tuple(tokens), greedy(9)), tokens, len(tokens))
        assert drafter.propose([(sequence, 4)])[0] == Proposal(guesses)
        drafter.forget(sequence)
    with pytest.raises(ValueError, match="n-grams from 3 to 2"):
        NgramDrafter(2, 3)


def test_gain_adds_up() -> None:
    """A twin is always right; what was measured is what the engine counted, and the prediction is the cost model's."""
    model, prompts = model_of(*KINDS["attention"]), prompts_of(16, 3)
    engine = engine_of(model, drafts=3)
    assert gain(engine, []).text == "drafts: none were made"
    engine.draft_with(draft_model(engine, model))
    served(engine, prompts, 13)
    told = gain(engine, list(prompts.values()))
    assert told.acceptance == 1 and told.accepted == told.judged == told.drafted == 27 and told.passes_with_drafts == 1
    assert told.tokens_per_pass == pytest.approx(4, abs=1e-6)
    assert told.draft_cost is not None and told.verify_cost is not None and told.draft_cost > 0
    predicted = Speculation(3, 1 - 1e-9).speed_up(told.draft_cost, told.verify_cost)
    assert told.predicted_speed_up == pytest.approx(predicted) and told.measured_speed_up is not None
    assert "27 of 27 judged were right, acceptance 1.00; 4.00 tokens expected" in told.text
