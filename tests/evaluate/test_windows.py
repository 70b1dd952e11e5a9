"""Windows lie inside documents, do not overlap, and are spread over the text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.data.tokenizer import SEPARATOR
from isoflop.evaluate.windows import document_windows

documents = st.lists(st.integers(0, 40), min_size=1, max_size=12)


def text_of(lengths, closed):
    """Documents of these lengths of ever new tokens, each but perhaps the last with its end."""
    parts, first = [], 1
    for length in lengths:
        parts += [np.arange(first, first + length), [SEPARATOR]]
        first += length
    return np.concatenate(parts if closed else parts[:-1]).astype(np.int64)


@given(lengths=documents, context=st.integers(1, 12), closed=st.booleans(), most=st.integers(1, 200))
def test_windows_lie_inside_one_document_and_share_no_token(lengths, context, closed, most):
    n_all = sum(length // (context + 1) for length in lengths)
    tokens = text_of(lengths, closed)
    separators = np.flatnonzero(tokens == SEPARATOR)
    if n_all == 0:
        with pytest.raises(ValueError, match=f"the longest has {max(lengths)}"):
            document_windows(separators, len(tokens), context, most)
        return
    found = document_windows(separators, len(tokens), context, most).windows(tokens)
    assert found.tokens.shape == (min(n_all, max(1, most // context)), context + 1)
    assert (found.tokens != SEPARATOR).all()
    assert (np.diff(found.tokens, axis=1) == 1).all()
    assert len(np.unique(found.tokens)) == found.tokens.size
    ends = np.cumsum(lengths)
    assert (found.documents == np.searchsorted(ends, found.tokens[:, 0])).all()
