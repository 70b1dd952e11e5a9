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

MOST_LAYERS = 10_000

_TOKEN = re.compile(r"\s*(?:(?P<name>[A-Za-z][\w-]*)|(?P<open>\()|(?P<close>\))|\*\s*(?P<times>\d+)|(?P<wrong>\S))")


def expand(pattern: str, blocks: Collection[str]) -> list[str]:
    """Names of the blocks, one a layer, from the first to the last. Raises ValueError saying where and what is
    wrong."""
    open_groups: list[list[list[str]]] = [[]]  # for each open parenthesis, what can still be repeated, in order
    for token in _TOKEN.finditer(pattern.rstrip()):
        match token.lastgroup:
            case "name":
                open_groups[-1].append([_known(token["name"], blocks)])
            case "open":
                open_groups.append([])
            case "close":
                if len(open_groups) == 1:
                    raise _wrong(pattern, token, "')' closes no '('")
                group = open_groups.pop()
                open_groups[-1].append([name for part in group for name in part])
            case "times":
                _repeat(open_groups[-1], int(token["times"]), pattern, token)
            case _:
                raise _wrong(pattern, token, f"'{token['wrong']}' is no block, no parenthesis, no '*' with a number")
    if len(open_groups) > 1:
        raise ValueError(f"pattern '{pattern}' has a '(' that is never closed")
    layers = [name for part in open_groups[0] for name in part]
    if not layers:
        raise ValueError(f"pattern '{pattern}' names no layer")
    return layers


def _repeat(parts: list[list[str]], times: int, pattern: str, token: re.Match[str]) -> None:
    if not parts or not parts[-1]:
        raise _wrong(pattern, token, f"'*{times}' repeats nothing; it follows a block or a parenthesis")
    if not 1 <= times * len(parts[-1]) <= MOST_LAYERS:
        raise _wrong(pattern, token, f"'*{times}' makes {times * len(parts[-1])} layers; 1 to {MOST_LAYERS} make sense")
    parts[-1] = parts[-1] * times


def _known(name: str, blocks: Collection[str]) -> str:
    if name in blocks:
        return name
    near = difflib.get_close_matches(name, blocks, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise ValueError(f"pattern names the block '{name}', which is missing{hint} (blocks: {', '.join(sorted(blocks))})")


def _wrong(pattern: str, token: re.Match[str], why: str) -> ValueError:
    at = token.start(token.lastgroup or 0) + 1
    return ValueError(f"pattern '{pattern}', character {at}: {why}")
