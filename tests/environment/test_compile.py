"""``torch.compile`` around a watched model: measured, or said why not; the user's script never ends."""

import contextlib

import pytest
import torch
from models import Block, N, assert_agrees, assert_all, mean_square, samples, statuses, train
from torch import nn

import gradscope


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def block():
    torch.manual_seed(0)
    return Block().double()


def compiled(model, **how):
    return torch.compile(model, backend="aot_eager", **how)


@pytest.mark.parametrize("when", ["before", "before, and run", "after"])
@pytest.mark.parametrize("every", [1, 2])
def test_a_compiled_model_has_the_figures_of_the_plain_one(when, every):
    expected = train(block(), samples())[-1]
    model = block()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    run = compiled(model) if when != "after" else None
    if when == "before, and run":
        mean_square(run(samples())).backward()
        optimizer.zero_grad()
    with gradscope.watch(model if run is None else run, optimizer, every=every) as scope:
        run = compiled(model) if run is None else run
        for _ in range(4):
            mean_square(run(samples())).backward()
            optimizer.step()
            optimizer.zero_grad()
            assert_all(scope.last)
            assert_agrees(scope.last, expected)
        assert scope.report().windows == 4 // every
    mean_square(run(samples())).backward()


def test_a_module_that_compiles_itself_is_measured():
    expected = train(block(), samples())[-1]
    model = block()
    model.compile(backend="aot_eager")
    for report in train(model, samples()):
        assert_all(report)
        assert_agrees(report, expected)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_whole_graph_is_estimated_from_its_output_and_the_report_says_why_it_is_not_exact(when):
    model = block()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    run = compiled(model, fullgraph=True) if when == "before" else None
    with gradscope.watch(model if run is None else run, optimizer) as scope:
        run = compiled(model, fullgraph=True) if run is None else run
        for _ in range(2):
            mean_square(run(samples())).backward()
            assert all(parameter.grad is not None for parameter in model.parameters())
            optimizer.step()
            optimizer.zero_grad()
            assert_all(scope.last, "estimated")
            assert all("fullgraph" in coverage.reason for coverage in scope.last.coverage.values())
            assert "fullgraph" in str(scope.report())


def test_a_part_that_is_one_graph_is_estimated_and_the_rest_is_exact():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), compiled(Block(), fullgraph=True), nn.Linear(4, 2)).double()
    for report in train(model, samples()):
        for name, coverage in report.coverage.items():
            assert "_orig_mod" not in name
            assert coverage.status == ("estimated" if name.startswith("1.") else "exact")
            assert ("compiled graph" in coverage.reason) == name.startswith("1.")
        assert report.samples == N


def test_names_are_the_users_own():
    torch.manual_seed(0)
    model = nn.Sequential(compiled(Block()), nn.Linear(4, 2)).double()
    report = train(model, samples(), ignore=["0.n"])[-1]
    assert set(report.coverage) == {f"0.{n}" for n, _ in Block().named_parameters()} | {"1.weight", "1.bias"}
    assert statuses(report)["0.n.weight"] == "not measured"
    assert statuses(report)["0.a.weight"] == "exact"


@pytest.mark.parametrize("capture", [True, False])
def test_where_backwards_are_compiled_the_report_says_that_nothing_can_be_measured(capture):
    compiler = torch.compile(backend="aot_eager")
    ends = []
    for watched in (True, False):
        model = block()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scope = gradscope.watch(model, optimizer, capture=capture) if watched else None
        for step in range(5):
            # The last two steps are ordinary ones.
            with torch._dynamo.compiled_autograd._enable(compiler) if step < 3 else contextlib.nullcontext():
                for _ in range(2):
                    mean_square(model(samples())).backward()
            optimizer.step()
            optimizer.zero_grad()
            if scope is not None and step == 2:
                report = scope.report()
                assert report.windows == 0
                assert [text for text in report.warnings if "compiled_autograd off" in text]
                assert not any("failed" in text for text in report.warnings)
        ends.append([parameter.detach().clone() for parameter in model.parameters()])
        if scope is not None:
            assert scope.report().windows == 2
            status = "exact" if capture else "estimated"
            assert {one.status for one in scope.last.coverage.values()} == {status}
            scope.close()
    for with_scope, without in zip(*ends, strict=True):
        torch.testing.assert_close(with_scope, without, rtol=1e-12, atol=1e-14)
