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
from gradscope.checks.finite import NonFinite, assert_finite
from gradscope.checks.finite_differences import WrongGradient, assert_gradients
from gradscope.checks.leakage import Leakage, assert_no_leakage
from gradscope.checks.learning import IdleParameter, assert_every_parameter_learns
from gradscope.checks.live import Loop, loop
from gradscope.checks.per_sample import CapturedWrongly, assert_per_sample, assert_rule
from gradscope.checks.unbiased import Bias, assert_unbiased

__all__ = [
    "CAUSES",
    "AccumulationFailure",
    "Bias",
    "BiasFailure",
    "CapturedWrongly",
    "Cause",
    "CheckFailure",
    "Diagnosis",
    "ExpectationFailure",
    "GoldenFailure",
    "GradientFailure",
    "IdleParameter",
    "IdleParameterFailure",
    "Leakage",
    "LeakageFailure",
    "Loop",
    "NonFinite",
    "NonFiniteFailure",
    "ParameterError",
    "PerSampleFailure",
    "RuleFailure",
    "WrongGradient",
    "assert_accumulates",
    "assert_every_parameter_learns",
    "assert_finite",
    "assert_gradients",
    "assert_no_leakage",
    "assert_per_sample",
    "assert_rule",
    "assert_unbiased",
    "diagnose",
    "loop",
]
