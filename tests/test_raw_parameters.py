"""Parameters that no layer owns, where their use is easily mistaken: figures that are right, or none."""

from math import isnan

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradscope

N = 4


class Raw(nn.Module):
    def __init__(self, use):
        super().__init__()
        self.scale, self.use, self.head = nn.Parameter(torch.rand(4) + 0.5), use, nn.Linear(4, 2)
        self.register_buffer("base", torch.randn(4, 4))

    def forward(self, x):
        return self.head(self.use(self, x))


def centred(model, x):
    h = (x * model.scale).tanh()
    return h - h.mean(0)


def normalised(model, x):
    return F.batch_norm(x, None, None, model.scale, None, True)


def against_a_buffer(model, x):
    # A product with as many rows as there are samples, none of which is a sample.
    return x @ (model.base @ torch.diag(model.scale)).tanh()


def against_itself(model, x):
    return x * (model.scale / (model.scale @ model.scale).sqrt())


def watched(use, windows, **watch):
    torch.manual_seed(1)
    model = Raw(use).double()
    x = torch.randn(N, 4, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer, **watch) as scope:
        for _ in range(windows):
            model(x).sin().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        report = scope.last
    losses = model(x).sin().sum(1)
    norms = [N * torch.autograd.grad(one, model.scale, retain_graph=True)[0].norm() for one in losses]
    return report, torch.stack(norms)


@pytest.mark.parametrize("second_pass", [False, True])
@pytest.mark.parametrize("use", [centred, normalised])
def test_where_samples_interact_there_is_no_number_although_no_layer_saw_it(use, second_pass):
    report, _ = watched(use, 3, second_pass=second_pass)
    assert report.coverage["scale"].status in ("not measured", "mismatch"), report.coverage["scale"]
    stats = report.parameters.get("scale")
    assert stats is None or (stats.sample_norms is None and isnan(stats.trace_cov))
    assert report.coverage["head.weight"].status == "exact"


def test_batch_normalisation_outside_of_a_layer_is_named():
    report, _ = watched(normalised, 1)
    assert "batch normalisation in training mode" in report.coverage["scale"].reason


@pytest.mark.parametrize(("use", "windows"), [(against_a_buffer, 2), (against_itself, 1)])
def test_what_is_computed_from_parameters_and_buffers_is_climbed_past(use, windows):
    report, norms = watched(use, windows)
    assert report.coverage["scale"].status == "exact", report.coverage["scale"]
    torch.testing.assert_close(report.parameters["scale"].sample_norms, norms)
