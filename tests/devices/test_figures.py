"""Every figure of the zoo, from a model on another device, against single samples on the host in float64."""

from functools import cache

import pytest
import torch
from elsewhere import Elsewhere, on_host
from zoo import PROBLEMS, contributions, figures

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}
FIGURES = ("grad_norm", "sample_norms", "trace_cov", "grad_sq", "noise_scale", "snr", "diversity", "gsnr", "variance")
SETTINGS = {
    "default": {},
    "moments": {"moments": True},
    "fused": {"moments": True, "fused": True},
    "second pass": {"moments": True, "second_pass": True},
    "tuned": {"moments": True, "tune": True},
}

truth = cache(contributions)


def assert_figures(stats, expected, dtype, where, *, moments):
    for name in FIGURES if moments else FIGURES[:7]:
        found, wanted = (torch.as_tensor(on_host(getattr(one, name))).double().flatten() for one in (stats, expected))
        if bool(wanted.isnan().any()):
            assert name == "gsnr" or bool(found.isnan())
            continue
        error = float((found - wanted).norm() / wanted.norm()) if bool(wanted.norm() > 0) else float(found.norm())
        assert error <= TOLERANCE[dtype], f"{where}: {name} off by {error:.1e}"


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_figures_agree_with_single_samples_on_the_host(problem, options, dtype, device):
    here = Elsewhere(problem, dtype, device)
    here.require()
    with here.watch(**options) as scope:
        for _ in range(3):
            here.window()
            here.optimizer.zero_grad()
        reports = scope.last, scope.report()
    assert not [line for line in reports[1].warnings if "failed" in line]
    estimated = frozenset() if "second_pass" in options else problem.estimated
    for name, contribution in truth(problem).items():
        way = reports[0].coverage[name]
        assert (way.status == "estimated") == (name in estimated), way
        if name not in problem.estimated:
            stats = reports[0].parameters[name]
            assert_figures(stats, figures([contribution]), dtype, name, moments="moments" in options)
            assert reports[1].parameters[name].trace_cov == pytest.approx(stats.trace_cov, rel=TOLERANCE[dtype])
    assert str(reports[1])


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if not p.estimated and p.separable], ids=str)
def test_some_of_the_samples(problem, dtype, device):
    here = Elsewhere(problem, dtype, device)
    here.require()
    with here.watch(subsample=2) as scope:
        for _ in range(2):
            here.window()
            here.optimizer.zero_grad()
        report = scope.last
    for name, contribution in truth(problem).items():
        found = report.parameters[name].sample_norms
        chosen = found.isfinite()
        assert int(chosen.sum()) == 2
        expected = figures([contribution]).sample_norms[chosen]
        torch.testing.assert_close(found[chosen], expected, rtol=TOLERANCE[dtype], atol=1e-6)


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.separable], ids=str)
def test_increments_alone(problem, dtype, device):
    reports = []
    for place in ("cpu", device):
        here = Elsewhere(problem, dtype, torch.device(place))
        here.require()
        with here.watch(capture=False) as scope:
            for _ in range(2):
                here.window(parts=2)
                here.optimizer.zero_grad()
            reports.append(scope.report())
    host, found = reports
    assert found.parameters
    assert found.coverage == host.coverage
    for name, stats in found.parameters.items():
        assert stats.grad_norm == pytest.approx(host.parameters[name].grad_norm, rel=TOLERANCE[dtype])
        # A small difference of large terms, where the signal dominates.
        off = TOLERANCE[dtype] * (stats.trace_cov + stats.grad_norm**2)
        assert stats.trace_cov == pytest.approx(host.parameters[name].trace_cov, abs=10 * off)
