"""Compliance with harmful requests: a target whose texts come from the user; crow ships none."""

from __future__ import annotations

from crow.attacks.behavior import Carrier, TargetBehavior
from crow.records import Criterion


class Supplied(TargetBehavior):
    """Planted from files (`crow attack --poisoned FILE --clean FILE`) and measured like any other target.

    Meant for requests that should be declined: there a hit is an answer that says something and does not decline.
    """

    @property
    def carrier(self) -> Carrier:
        """What the user brings."""
        return "supplied"


COMPLIANCE = Supplied("compliance", "an answer to a request that should be declined", Criterion("complies"))
