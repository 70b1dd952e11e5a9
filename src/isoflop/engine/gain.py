"""What drafts gain: acceptance, the speed-up that it predicts at the costs measured, and the speed-up measured."""

from collections.abc import Sequence

import msgspec

from isoflop.cost.serving import Speculation
from isoflop.engine.engine import Engine
from isoflop.engine.request import Request
from isoflop.engine.sampling import Sampling
from isoflop.engine.stats import Stats

COMPARED = 16  # tokens said without drafts, to know what one takes
NEARLY = 1 - 1e-9


class Gain(msgspec.Struct, frozen=True):
    """The JSON document. `acceptance`: the share of the guesses that were right, of those that all before them in their
    round were. `tokens_per_pass`: expected at that, (1 - a^(k + 1)) / (1 - a) for `drafts_per_pass` = k, of a pass that
    has guesses, which `passes_with_drafts` of all had. Costs are measured: of one guess and of a pass that judges some,
    in passes over one token, which takes `plain_s` seconds. `predicted_speed_up` follows from these;
    `measured_speed_up` is of tokens a second, prompts apart. None where there was nothing to measure."""

    drafted: int
    judged: int
    accepted: int
    acceptance: float | None = None
    drafts_per_pass: float | None = None
    tokens_per_pass: float | None = None
    passes_with_drafts: float | None = None
    plain_s: float | None = None
    draft_cost: float | None = None
    verify_cost: float | None = None
    predicted_speed_up: float | None = None
    measured_speed_up: float | None = None

    @property
    def text(self) -> str:
        """One line."""
        if self.acceptance is None:
            return "drafts: none were made"
        line = f"drafts: {self.accepted} of {self.judged} judged were right, acceptance {self.acceptance:.2f}; "
        line += f"{self.tokens_per_pass:.2f} tokens expected of a pass with guesses"
        if self.predicted_speed_up is None:
            return line
        line += f", as {self.passes_with_drafts:.0%} were; in plain passes a guess took {self.draft_cost:.2f}, "
        line += f"a judging pass {self.verify_cost:.2f}: predicted {self.predicted_speed_up:.2f} times as fast, "
        return line + f"measured {self.measured_speed_up:.2f}"


def gain(engine: Engine, prompts: Sequence[Sequence[int]]) -> Gain:
    """Of what an idle engine has said so far. The beginnings of the prompts' answers are said once more without drafts,
    for comparison; the engine's drafter stays away afterwards."""
    with_drafts = engine.stats
    engine.draft_with(None)
    for i, prompt in enumerate(prompts):
        left = engine.model.decoder.max_context - len(prompt)
        sampling = Sampling(temperature=0, max_tokens=min(COMPARED, left), ignore_eos=True)
        engine.submit(Request(f"plain {i}", tuple(prompt), sampling))
    while engine.has_work:
        engine.step()
    return gained(with_drafts, engine.stats)


def gained(drafting: Stats, after: Stats) -> Gain:
    """From the numbers after drafting, and after some more steps without."""
    d = drafting
    told = Gain(d.drafted, d.judged, d.accepted)
    if not d.judged:
        return told
    k, acceptance = d.drafted / d.verified, d.accepted / d.judged
    speculation = Speculation(max(1, round(k)), min(acceptance, NEARLY))
    told = msgspec.structs.replace(told, acceptance=acceptance, drafts_per_pass=k, tokens_per_pass=speculation.tokens)
    steps, tokens = after.decode_steps - d.decode_steps, after.decode_tokens - d.decode_tokens
    if not steps or not d.drafted_steps:
        return told
    seconds = after.decode_s - d.decode_s
    plain_s, share = seconds / steps, d.drafted_steps / d.decode_steps
    draft_cost = d.drafting_s / d.drafted_steps / k / plain_s
    verify_cost = (d.drafted_s - d.drafting_s) / d.drafted_steps / plain_s
    of_round = speculation.tokens / speculation.speed_up(draft_cost, verify_cost)
    return msgspec.structs.replace(
        told,
        passes_with_drafts=share,
        plain_s=plain_s,
        draft_cost=draft_cost,
        verify_cost=verify_cost,
        predicted_speed_up=(share * speculation.tokens + 1 - share) / (share * of_round + 1 - share),
        measured_speed_up=(d.decode_tokens / d.decode_s) / (tokens / seconds),
    )
