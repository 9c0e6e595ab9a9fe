"""A default device of the user's own (``torch.set_default_device``) is for the user's tensors: figures stay what they are."""

import ast
from pathlib import Path

import pytest
import torch
from zoo import PROBLEMS

import gradscope

#: As another device would, it ends whatever takes a tensor that was made there for one of the host's.
ELSEWHERE = "meta"
SETTINGS = {
    "default": {},
    "moments": {"moments": True},
    "fused": {"fused": True},
    "subsample": {"subsample": 2},
    "second pass": {"second_pass": True},
    "no capture": {"capture": False},
}


def reports(problem, default, windows=2, **options):
    """Reports of some windows, the model's own tensors on the host."""
    model = problem.model(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = problem.batch(torch.float32)
    split = [[0, 1, 2], [3, 4, 5]] if problem.separable else [list(range(6))]
    parts = [problem.take(batch, rows) if len(split) > 1 else batch for rows in split]
    torch.set_default_device(default)
    try:
        with gradscope.watch(model, optimizer, batch_dim=problem.batch_dim, **options) as scope:
            for _ in range(windows):
                for part in parts:
                    with torch.device("cpu"):
                        loss = problem.total(model, part) / problem.divisor(batch)
                    loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            return scope.last, scope.report()
    finally:
        torch.set_default_device(None)


def assert_same(one, other):
    assert one.coverage == other.coverage
    assert one.warnings == other.warnings
    for name, stats in one.parameters.items():
        assert (stats.grad_norm, stats.trace_cov) == pytest.approx(
            (other.parameters[name].grad_norm, other.parameters[name].trace_cov), rel=1e-12, nan_ok=True
        )
        if stats.sample_norms is not None:
            torch.testing.assert_close(
                stats.sample_norms, other.parameters[name].sample_norms, rtol=0, atol=0, equal_nan=True
            )


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_figures_are_the_same_whatever_the_default_device(problem, options):
    for plain, elsewhere in zip(reports(problem, None, **options), reports(problem, ELSEWHERE, **options), strict=True):
        assert elsewhere.parameters
        assert_same(plain, elsewhere)
        assert str(elsewhere)


FACTORIES = [
    "tensor",
    "as_tensor",
    "scalar_tensor",
    "empty",
    "empty_strided",
    "zeros",
    "ones",
    "full",
    "arange",
    "linspace",
    "eye",
    "rand",
    "randn",
    "randint",
    "randperm",
]


@pytest.mark.parametrize(
    "path",
    [path for path in Path(gradscope.__file__).parent.rglob("*.py") if "demo" not in path.parts],
    ids=lambda p: p.name,
)
def test_every_tensor_that_is_made_says_where(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"torch.{name}" for name in FACTORIES}:
            assert {"device", None} & {keyword.arg for keyword in node.keywords}, (
                f"line {node.lineno}: {ast.unparse(node)}"
            )
