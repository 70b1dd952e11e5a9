"""Best of n, votes, beams and budgets on a small model of bytes."""

import itertools
from collections.abc import Sequence

import pytest
import torch

from isoflop.architecture import Dense
from isoflop.engine.engine import Engine, Options
from isoflop.engine.offline import Text, write
from isoflop.engine.sampling import Sampling
from isoflop.engine.search import Beam, Budget, beam_search, best_of, force_budget, majority
from isoflop.engine.vocabulary import Vocabulary
from isoflop.model import DecoderModel
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe

PROMPT = list(b"some text that is shared by all of them ")


class Letters:
    def encode(self, text: str, whole: bool) -> list[int]:
        return list(text.encode())


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    return Vocabulary(Letters(), [b"", *(bytes([byte]) for byte in range(1, 256))], {}, (0,), 0)


def engine_of(vocab_size: int = 256, scale: float = 30.0, ends: tuple[int, ...] = (0,)) -> Engine:
    model = DecoderModel(Dense().build(32, vocab_size, 512))
    initialize(model, 0, Recipe(lr=1e-3, batch=1))
    with torch.no_grad():
        model.embedding *= scale  # likes and dislikes
    return Engine(model, Options(memory=1 << 24, end_tokens=ends))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return engine_of()


def test_best_of_shares_the_prompt(engine: Engine, words: Vocabulary) -> None:
    sampling, before = Sampling(seed=1, max_tokens=10), engine.stats.computed
    tries = best_of(engine, words, PROMPT, sampling, 6)
    assert engine.stats.computed - before <= len(PROMPT) + 5 * 16 + 6 * 10
    means = [text.mean_logprob for text in tries]
    assert means == sorted(means, reverse=True, key=lambda m: m or 0.0) and len(tries) == 6
    same = write(engine, words, [(PROMPT, Sampling(seed=1, max_tokens=10, logprobs=0))] * 6)
    assert sorted(text.text for text in same) == sorted(text.text for text in tries)
    longest = best_of(engine, words, PROMPT, sampling, 6, score=lambda text: text.text.count("e"))
    assert longest[0].text.count("e") == max(text.text.count("e") for text in tries)


def test_majority() -> None:
    texts = [Text(text=text) for text in ("so 4", "it is 5, no, 7", "x = 7.", "none", "4", "7")]
    vote = majority(texts, r"(\d+)")
    assert (vote.answer, vote.votes, vote.tries, vote.text) == ("7", 3, 6, texts[1])
    assert majority(texts[:3:2], r"\d").answer == "4"  # one each: the likelier try
    with pytest.raises(ValueError, match="matches none of the 6 texts"):
        majority(texts, "z")
    with pytest.raises(ValueError, match="is not a regular expression"):
        majority(texts, "(")


def every(engine: Engine, prompt: Sequence[int], n: int, vocab_size: int) -> dict[tuple[int, ...], float]:
    """Log probability of each continuation of n tokens."""
    found = {}
    for tokens in itertools.product(range(vocab_size), repeat=n):
        with torch.no_grad():
            logits = engine.model(torch.tensor([[*prompt, *tokens]]))[0].log_softmax(-1)
        found[tokens] = float(sum(logits[len(prompt) - 1 + i, token] for i, token in enumerate(tokens)))
    return found


def test_a_wide_beam_is_exhaustive() -> None:

    small, prompt = engine_of(5, ends=()), [1, 2, 3, 4]
    truth = every(small, prompt, 3, 5)
    beams = beam_search(small, prompt, 25, 3)
    ranked = sorted(truth.items(), key=lambda item: item[1], reverse=True)
    assert [beam.tokens for beam in beams[:10]] == [tokens for tokens, _ in ranked[:10]]
    assert beams[0].logprob == pytest.approx(ranked[0][1], abs=1e-3)


def test_a_beam_of_one_is_greedy(engine: Engine, words: Vocabulary) -> None:
    greedy = write(engine, words, [(PROMPT, Sampling(temperature=0, max_tokens=12))])[0]
    beam = beam_search(engine, PROMPT, 1, 12, (0,))[0]
    assert list(beam.tokens) == greedy.tokens


def test_beams_that_end() -> None:
    one, two = Beam((1, 2), -2.0, True), Beam((1, 2, 3, 4), -3.0, False)
    assert one.score(0) > two.score(0) and one.score(1) < two.score(1)
    engine = engine_of(7, ends=(3,))
    beams = beam_search(engine, [1], 3, 20, (3,), 0.0)
    assert all(beam.ended == (beam.tokens[-1] == 3) for beam in beams) and 3 not in beams[0].tokens[:-1]
    with pytest.raises(ValueError, match="beam width 0"):
        beam_search(engine, [1], 0, 5)


def test_a_budget_is_kept(engine: Engine, words: Vocabulary) -> None:
    sampling = Sampling(seed=3, max_tokens=5)
    thought = force_budget(engine, words, PROMPT, sampling, Budget(0, 20))
    assert thought.n_tokens <= 20 and thought.forced == 0 and len(thought.answer.tokens) <= 5
    whole = write(engine, words, [(PROMPT, Sampling(seed=3, max_tokens=40))])[0].text
    early = Budget(30, 40, more=" Hm", end=whole[4:6])
    forced = force_budget(engine, words, PROMPT, sampling, early)
    assert forced.thinking.startswith(whole[: whole.find(whole[4:6])] + " Hm")
    assert forced.forced >= 1 and forced.n_tokens <= 40 + len(" Hm")
    with pytest.raises(ValueError, match="0 <= least <= most"):
        Budget(5, 4)
