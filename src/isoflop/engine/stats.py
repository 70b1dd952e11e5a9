"""What an engine counts."""

import msgspec


class Stats(msgspec.Struct):
    """Now: requests running and waiting, pages and slots held and in all, bytes of all caches. Since the start: steps,
    tokens computed and generated, tokens of prompts looked up and found in the cache, preemptions, pages copied on
    write, blocks evicted; drafts brought, judged (all up to the first that is wrong) and accepted, how often a sequence
    brought any, seconds of drafting; of the steps that took in no prompt, how many, their tokens and seconds, and how
    many of them brought drafts and those's seconds."""

    running: int = 0
    waiting: int = 0
    pages: int = 0
    pages_held: int = 0
    slots: int = 0
    slots_held: int = 0
    nbytes: int = 0
    steps: int = 0
    computed: int = 0
    generated: int = 0
    looked_up: int = 0
    found: int = 0
    preempted: int = 0
    copied: int = 0
    evicted: int = 0
    drafted: int = 0
    judged: int = 0
    accepted: int = 0
    verified: int = 0
    drafting_s: float = 0.0
    decode_steps: int = 0
    decode_tokens: int = 0
    decode_s: float = 0.0
    drafted_steps: int = 0
    drafted_s: float = 0.0
