"""Checks that gradients are right: assertions for tests, and their diagnosis."""

from gradscope.checks.accumulation import assert_accumulates, diagnose
from gradscope.checks.diagnosis import CAUSES, Cause, Diagnosis, ParameterError
from gradscope.checks.failures import (
    AccumulationFailure,
    BiasFailure,
    CheckFailure,
    ExpectationFailure,
    GoldenFailure,
    GradientFailure,
    IdleParameterFailure,
    LeakageFailure,
    NonFiniteFailure,
    PerSampleFailure,
    RuleFailure,
)

__all__ = [
    "CAUSES",
    "AccumulationFailure",
    "BiasFailure",
    "Cause",
    "CheckFailure",
    "Diagnosis",
    "ExpectationFailure",
    "GoldenFailure",
    "GradientFailure",
    "IdleParameterFailure",
    "LeakageFailure",
    "NonFiniteFailure",
    "ParameterError",
    "PerSampleFailure",
    "RuleFailure",
    "assert_accumulates",
    "diagnose",
]
