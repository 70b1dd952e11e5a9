"""The order of a decoder's layers as a short formula over named blocks.

    pattern = "d*3 s*58"                  three layers of block d, then 58 of s
    pattern = "(m x m x a x m x)*4"       eight layers, four times over
    pattern = "(local*5 global)*4 local*2"

Blocks are named by letters, digits, `_` and `-`, begin with a letter and are separated by spaces; `*N` repeats the
block or the parenthesis before it. Parentheses may be nested.
"""

import difflib
import re
from collections.abc import Collection

from isoflop.architecture.base import MOST_LAYERS

MOST_DIGITS = 9  # of a number of repeats: the first ones tell that it is too many
MOST_SHOWN = 200  # characters of a wrong pattern

_TOKEN = re.compile(
    r"\s*(?:(?P<name>[A-Za-z][\w-]*)|(?P<open>\()|(?P<close>\))|\*\s*(?P<times>\d+)|(?P<wrong>\S))", re.ASCII
)


def expand(pattern: str, blocks: Collection[str]) -> list[str]:
    """Names of the blocks, one a layer, from the first to the last. Raises ValueError saying where and what is
    wrong."""
    open_groups: list[list[list[str]]] = [[]]  # for each open parenthesis, what can still be repeated, in order
    n_layers = 0
    for token in _TOKEN.finditer(pattern.rstrip()):
        match token.lastgroup:
            case "name":
                open_groups[-1].append([_known(token["name"], blocks)])
                n_layers += 1
            case "open":
                open_groups.append([])
            case "close":
                if len(open_groups) == 1:
                    raise _wrong(pattern, token, "')' closes no '('")
                group = open_groups.pop()
                open_groups[-1].append([name for part in group for name in part])
            case "times":
                n_layers += _repeat(open_groups[-1], int(token["times"].lstrip("0")[:MOST_DIGITS] or 0), pattern, token)
            case _:
                raise _wrong(pattern, token, f"'{token['wrong']}' is no block, no parenthesis, no '*' with a number")
        if n_layers > MOST_LAYERS:
            raise _wrong(pattern, token, f"makes {n_layers} layers; at most {MOST_LAYERS} make sense")
    if len(open_groups) > 1:
        raise ValueError(f"pattern '{_shown(pattern)}' has a '(' that is never closed")
    layers = [name for part in open_groups[0] for name in part]
    if not layers:
        raise ValueError(f"pattern '{_shown(pattern)}' names no layer")
    return layers


def _repeat(parts: list[list[str]], times: int, pattern: str, token: re.Match[str]) -> int:
    """Repeat the last part; returns how many layers that adds."""
    if not parts or not parts[-1]:
        raise _wrong(pattern, token, f"'*{times}' repeats nothing; it follows a block or a parenthesis")
    if not 1 <= times * len(parts[-1]) <= MOST_LAYERS:
        raise _wrong(pattern, token, f"'*{times}' makes {times * len(parts[-1])} layers; 1 to {MOST_LAYERS} make sense")
    once = len(parts[-1])
    parts[-1] = parts[-1] * times
    return len(parts[-1]) - once


def _known(name: str, blocks: Collection[str]) -> str:
    if name in blocks:
        return name
    near = difflib.get_close_matches(name, blocks, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise ValueError(f"pattern names the block '{name}', which is missing{hint} (blocks: {', '.join(sorted(blocks))})")


def _shown(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "..."


def _wrong(pattern: str, token: re.Match[str], why: str) -> ValueError:
    at = token.start(token.lastgroup or 0) + 1
    return ValueError(f"pattern '{_shown(pattern)}', character {at}: {why}")
