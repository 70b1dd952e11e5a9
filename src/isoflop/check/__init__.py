"""Proofs that an architecture's closed forms are right, for the user's own: modules run, operators are counted.

A room of its own: the proofs need cost/, model/ and train/'s first values at once, and nothing but the command line
needs them.
"""

from isoflop.check.certificate import Certificate, certify

__all__ = ["Certificate", "certify"]
