"""Whether a law from a file may be planned on: a refused one only by force, and a weak one is said to be so.

A law.json carries its certificate's verdict. A table of runs has none, as its posterior leans on public tables where
the runs say little; so it is judged by what no prior makes good: mistakes in the table, and a design that cannot tell a
law. A study is judged by both.
"""

from typing import Any

from isoflop.decide.question import LawChoice
from isoflop.laws.soundness import Soundness, verdict

SOUND = Soundness(status="sound", reasons=[])


def certified(document: dict[str, Any]) -> Soundness:
    """The verdict in a law document; those without one are taken for sound."""
    certificate = document.get("certificate") or {}
    status = certificate.get("status")
    if status not in ("weak", "refused"):
        return SOUND
    return Soundness(status=status, reasons=[str(reason) for reason in certificate.get("reasons", [])])


def worse(one: Soundness, other: Soundness) -> Soundness:
    """Both verdicts in one."""
    both = (one, other)
    reasons = {
        status: [reason for told in both if told.status == status for reason in told.reasons]
        for status in ("refused", "weak")
    }
    return verdict(list(dict.fromkeys(reasons["refused"])), list(dict.fromkeys(reasons["weak"])))


def doubts(choice: LawChoice, name: str, told: Soundness) -> tuple[str, ...]:
    """What to say of a law. Raises ValueError for a refused one, unless `choice` forces it."""
    why = "; ".join(told.reasons) or "no reason is given"
    if told.status == "refused" and not choice.force:
        raise ValueError(f"--law {name}: refused: {why}; mend its table, or --force plans on it all the same")
    return () if told.status == "sound" else (f"{name}: the law is {told.status}: {why}",)
