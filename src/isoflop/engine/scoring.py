"""What a prompt's own tokens cost the model: their log probabilities, told as the prompt is computed.

T packed token, M model width, N row whose next token is known, V vocabulary, K likeliest tokens told.

Logits of a whole prompt would take more memory than the model; they are read a few rows at a time from what leaves the
last layer, and only numbers stay.
"""

from collections.abc import Callable
from collections.abc import Sequence as Many

from torch import Tensor

from isoflop.engine.draw import Logprobs
from isoflop.engine.sequence import Sequence

ROWS = 64  # of logits at once


def score(sequence: Sequence, x_TM: Tensor, read: Callable[[Tensor], Tensor]) -> None:
    """Add to the sequence's scores what its next T tokens tell. `read` turns rows into logits, [N, V] float32."""
    if not sequence.unscored:
        return
    assert sequence.scores is not None and sequence.n_computed <= len(sequence.scores), "a row was passed over"
    most, first = sequence.request.sampling.prompt_logprobs or 0, sequence.n_computed
    last = min(first + len(x_TM), sequence.row.n_prompt - 1)
    for begin in range(len(sequence.scores), last, ROWS):
        end = min(begin + ROWS, last)
        logits_NV = read(x_TM[begin - first : end - first])
        sequence.scores += likelihoods(logits_NV, sequence.tokens[begin + 1 : end + 1], most)


def likelihoods(logits_NV: Tensor, tokens: Many[int], most: int) -> list[Logprobs]:
    """Of each row's token, and of the `most` likeliest."""
    total_N1 = logits_NV.logsumexp(-1, keepdim=True)
    own_N1 = logits_NV.gather(1, total_N1.new_tensor(tokens).long()[:, None]) - total_N1
    best = logits_NV.topk(min(most, logits_NV.shape[1]))
    told = zip(own_N1[:, 0].tolist(), best.indices.tolist(), (best.values - total_N1).tolist(), strict=True)
    return [Logprobs(own, tuple(zip(at_K, value_K, strict=True))) for own, at_K, value_K in told]
