"""Signal, noise and what is derived from them, each against a hand computation or a law."""

import math

import pytest
import torch
from torch.testing import assert_close

from gradscope.statistics import diversity as _diversity
from gradscope.statistics import noise_scale as _noise_scale
from gradscope.statistics import signal as _signal
from gradscope.statistics import snr as _snr
from gradscope.statistics import trace_cov as _trace_cov
from gradscope.statistics.elementwise import elementwise_moments
from gradscope.statistics.gsnr import gsnr, gsnr_sum
from gradscope.statistics.preconditioned import adam_preconditioner, preconditioned_sums


def of_tensors(module):
    """The module's figure of tensors, as a tensor."""
    figure = getattr(module, module.__name__.rpartition(".")[2])
    return lambda *values: torch.as_tensor(figure(*(value.numpy() for value in values)))


diversity, noise_scale, signal, snr, trace_cov = map(of_tensors, (_diversity, _noise_scale, _signal, _snr, _trace_cov))


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def gradients():
    """Per-sample gradients of seven samples, five elements each."""
    return torch.randn(7, 5, dtype=torch.float64) + 1


def sums(g, w):
    """``‖ḡ‖²``, ``Σ‖hᵢ‖²`` and ``V₂``."""
    h = w[:, None] * g
    return h.sum(0).square().sum(), h.square().sum(), w.square().sum()


def equal(n):
    return torch.full((n,), 1 / n, dtype=torch.float64)


def test_signal_and_noise_of_two_samples_by_hand():
    # g = 1 and 3: mean 2, unbiased variance 2, so the mean's square 4 holds 2/2 of noise.
    grad_sq = signal(f64(4), f64(0.25 + 2.25), f64(0.5))
    assert_close(grad_sq, f64(3))
    assert_close(trace_cov(f64(4), grad_sq, f64(2)), f64(2))
    assert_close(noise_scale(f64(2), f64(3)), f64(2 / 3))
    assert_close(snr(f64(4), f64(3)), f64(3))


def test_signal_is_the_weighted_mean_of_products_over_pairs(gradients):
    w = f64(1, 2, 3, 4, 5, 6, 7) / 28
    products, weights = gradients @ gradients.T, w[:, None] * w
    apart = ~torch.eye(7, dtype=torch.bool)
    pairs = (weights * products)[apart].sum() / weights[apart].sum()
    assert_close(signal(*sums(gradients, w)), pairs, rtol=1e-12, atol=0)


def test_with_equal_weights_noise_is_the_unbiased_variance(gradients):
    first, second, v2 = sums(gradients, equal(7))
    assert_close(trace_cov(first, signal(first, second, v2), f64(7)), gradients.var(0).sum()[None], rtol=1e-12, atol=0)


def test_scaling_the_gradient_scales_figures_by_their_units(gradients):
    def figures(g):
        first, second, v2 = sums(g, equal(7))
        grad_sq = signal(first, second, v2)
        noise = trace_cov(first, grad_sq, torch.tensor(7.0))
        return torch.stack([grad_sq, noise, noise_scale(noise, grad_sq), snr(first, grad_sq), diversity(first, second)])

    assert_close(figures(1e-9 * gradients), figures(gradients) * f64(1e-18, 1e-18, 1, 1, 1), rtol=1e-10, atol=0)


def test_a_negative_signal_stays_negative():
    assert_close(signal(f64(0), f64(0.5), f64(0.5)), f64(-1))  # samples 1 and -1


@pytest.mark.parametrize("v2", [1.0, 1 - 1e-16])
def test_one_sample_shows_no_noise(v2):
    assert signal(f64(4), f64(4), f64(v2)).isnan().all()


@pytest.mark.parametrize("grad_sq", [0.0, -1.0, math.nan])
def test_a_signal_that_is_not_positive_leaves_the_noise_scale_unresolved(grad_sq):
    assert noise_scale(f64(2), f64(grad_sq)).isnan().all()


def test_signal_is_unbiased_with_token_weights_where_the_usual_weighted_formula_is_not():
    # Long samples are quiet: a mean over u tokens has variance 1/u² here. Truth |G|² = 0.5.
    u = f64(1, 1, 2, 8, 20)
    w, sd = u / u.sum(), 4 / u
    g = math.sqrt(0.5) + sd * torch.randn(200_000, 5, dtype=torch.float64)
    h = w * g
    mean_sq, v2 = h.sum(1).square(), w.square().sum()
    ours = signal(mean_sq, h.square().sum(1), v2)
    usual = mean_sq - v2 / (1 - v2) * (w * (g - h.sum(1, keepdim=True)).square()).sum(1)
    assert abs(ours.mean() - 0.5) < 4 * ours.std() / math.sqrt(200_000)
    assert usual.mean() < -0.1


@pytest.mark.parametrize(
    ("g", "expected"),
    [([[1.0, 0], [1, 0]], 0.5), ([[1.0, 0], [0, 1]], 1.0), ([[1.0, 0], [-1, 0]], math.inf)],
    ids=["agree", "orthogonal", "cancel"],
)
def test_diversity_of_two_samples(g, expected):
    first, second, _ = sums(torch.tensor(g, dtype=torch.float64), equal(2))
    assert float(diversity(first, second)) == expected


def test_elementwise_variance_is_that_of_the_scaled_contributions(gradients):
    h = gradients / 7
    variance, _ = elementwise_moments(h.sum(0), h.square().sum(0), 1 / 7, 7)
    assert_close(variance, (7 * h).var(0), rtol=1e-12, atol=0)


def test_elementwise_moments_add_up_to_noise_and_signal(gradients):
    w = f64(1, 2, 3, 4, 5, 6, 7) / 28
    first, second, v2 = sums(gradients, w)
    h = w[:, None] * gradients
    variance, own = elementwise_moments(h.sum(0), h.square().sum(0), float(v2), 7)
    grad_sq = signal(first, second, v2)
    assert_close(own.sum(), grad_sq, rtol=1e-12, atol=0)
    assert_close(variance.sum(), trace_cov(first, grad_sq, torch.tensor(7.0)), rtol=1e-12, atol=0)


def test_elementwise_moments_keep_the_dtype_and_lose_no_digits_where_signal_dominates():
    g = 1000 + torch.randn(64, 3, dtype=torch.float64)
    h = g / 64
    variance, _ = elementwise_moments(h.sum(0), h.square().sum(0), 1 / 64, 64)
    assert_close(variance, g.var(0), rtol=1e-8, atol=0)
    single, _ = elementwise_moments(h.sum(0).float(), h.square().sum(0).float(), 1 / 64, 64)
    assert single.dtype == torch.float32


def test_elementwise_moments_of_one_sample_are_nan():
    variance, own = elementwise_moments(f64(1, 2), f64(1, 4), 1.0, 1)
    assert variance.isnan().all()
    assert own.isnan().all()


def test_gsnr_is_the_mean_over_elements_that_move():
    variance, own = f64(2, 4, 0), f64(1, -1, 0)
    assert gsnr(variance, own) == pytest.approx((0.5 - 0.25) / 2)
    assert gsnr_sum(variance, own) == (0.25, 2)


def test_gsnr_of_a_gradient_without_motion_is_nan():
    assert math.isnan(gsnr(f64(0, 0), f64(0, 0)))


def test_gsnr_where_all_samples_agree_is_infinite():
    assert gsnr(f64(0), f64(1)) == math.inf


def test_preconditioned_sums_weigh_each_element():
    assert preconditioned_sums(f64(1, 2), f64(3, -4), f64(10, 0.5)) == (11, 28)


def test_a_preconditioner_that_is_the_identity_gives_the_simple_noise_scale(gradients):
    h = gradients / 7
    variance, own = elementwise_moments(h.sum(0), h.square().sum(0), 1 / 7, 7)
    trace, quadratic = preconditioned_sums(variance, own, torch.ones(5))
    assert (trace, quadratic) == pytest.approx((float(variance.sum()), float(own.sum())), rel=1e-12)


def test_elements_that_never_moved_are_left_out_of_the_preconditioned_sums():
    assert preconditioned_sums(f64(1, 0), f64(1, 0), f64(1, math.inf)) == (1, 1)


def test_the_preconditioner_is_what_adam_multiplies_with():
    parameter = torch.nn.Parameter(f64(1, 2, 3))
    optimizer = torch.optim.Adam([parameter], lr=0.1, betas=(0.0, 0.99), eps=1e-3)
    for grad in (f64(1, -2, 0.1), f64(2, 1, 0.3)):
        before = parameter.detach().clone()
        parameter.grad = grad
        optimizer.step()
    found = adam_preconditioner(optimizer.state[parameter]["exp_avg_sq"], 2, 0.99, 1e-3)
    assert_close(before - parameter.detach(), 0.1 * found * grad, rtol=1e-10, atol=0)
