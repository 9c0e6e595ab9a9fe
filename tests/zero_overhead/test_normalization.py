"""capture="normalization": the samples in normalisation layers alone, and never passed off as the model's."""

import pytest
import torch
from torch import nn

import gradscope
from gradscope.coverage import NORMALIZATION_ONLY


class ScaleNorm(nn.Module):
    """A layer of one's own, as model libraries have them."""

    def __init__(self, features):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x):
        return self.weight * x / x.square().mean(-1, keepdim=True).add(1e-6).sqrt()


class NormedMLP(nn.Module):
    """Its name says norm, and it owns a matrix."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, 6) / 3)

    def forward(self, x):
        return torch.tanh(x @ self.matrix)


def net():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(4, 6),
        nn.LayerNorm(6),
        NormedMLP(),
        ScaleNorm(6),
        nn.Linear(6, 6),
        nn.GroupNorm(2, 6),
        nn.Linear(6, 2),
    ).double()


NORMS = ["1.weight", "1.bias", "3.weight", "5.weight", "5.bias"]


def train(model, windows=1, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    generator = torch.Generator().manual_seed(5)
    with gradscope.watch(model, optimizer, **options) as scope:
        for _ in range(windows):
            x = 0.5 + torch.randn(6, 4, dtype=torch.float64, generator=generator)
            (model(x) + x[:, :2]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        hooked = [name for name, layer in model.named_children() if layer._forward_hooks]
    return scope.report(), hooked


def test_their_figures_are_those_of_a_full_capture():
    found, _ = train(net(), 3, capture="normalization")
    truth, _ = train(net(), 3)
    assert list(found.parameters) == NORMS
    for name in NORMS:
        assert found.coverage[name].status == "exact"
        for figure in ("grad_norm", "trace_cov", "grad_sq"):
            assert getattr(found.parameters[name], figure) == pytest.approx(
                getattr(truth.parameters[name], figure), rel=1e-9
            )
    assert found.total.trace_cov == pytest.approx(sum(truth.parameters[name].trace_cov for name in NORMS), rel=1e-9)
    assert found.total.numel == sum(truth.parameters[name].numel for name in NORMS)


def test_no_other_layer_and_no_other_parameter_is_hooked():
    model = net()
    with gradscope.watch(model, capture="normalization"):
        assert [name for name, layer in model.named_children() if layer._forward_hooks] == ["1", "3", "5"]
        assert [name for name, p in model.named_parameters() if p._post_accumulate_grad_hooks] == NORMS


def test_it_is_said_everywhere_that_the_model_was_not_measured():
    report, _ = train(net(), 6, capture="normalization")
    others = {name: one for name, one in report.coverage.items() if name not in NORMS}
    assert {(one.status, one.reason) for one in others.values()} == {("not measured", NORMALIZATION_ONLY)}
    assert report.verdict.startswith("predicted from normalisation layers (")
    text = report.render(120)
    assert "norm layers" in text
    assert "all layers" not in text
    assert "predicted_from=normalization" in gradscope.reporter.log_line(report)
    assert "norm layers" in report._repr_html_()
    assert report.to_dict()["verdict"] == report.verdict


def test_a_full_report_says_nothing_of_it():
    report, _ = train(net(), 6)
    assert "normalisation" not in report.render(120)
    assert "predicted_from" not in gradscope.reporter.log_line(report)


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(gradscope.InvalidArgumentError, match="has none"):
        gradscope.watch(nn.Linear(2, 2), capture="normalization")


def test_batch_norm_in_training_mode_is_withheld():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)).double()
    report, _ = train(model, capture="normalization")
    assert report.coverage["1.weight"].status == "not measured"
    assert "BatchNorm1d" in report.coverage["1.weight"].reason
    assert not report.parameters
