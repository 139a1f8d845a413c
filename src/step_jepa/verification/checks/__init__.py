"""The checks of `step-jepa verify`: each is a function of a VerificationContext, made known by `@register_check`.

They are made in the order of the modules that are imported here, and from top to bottom in each: what comes later
builds on what was checked before. A module of a user's own adds one the same way.
"""

from step_jepa.verification.checks import data, model, training
from step_jepa.verification.checks.registry import CHECKS, Check, CheckResult, check_results, register_check

__all__ = ["CHECKS", "Check", "CheckResult", "check_results", "data", "model", "register_check", "training"]
