"""The compiled walk over an autograd graph, against the one in Python."""

import gc
import weakref

import pytest
import torch
from torch import nn

from gradscope.capture.graph import Graph
from gradscope.kernels import loaded, walk

pytestmark = pytest.mark.skipif(not loaded.VECTOR, reason="no kernels here")


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def of_layers():
    return [nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))(torch.randn(5, 3))]


def of_attention():
    return [nn.TransformerEncoderLayer(8, 2, 16)(torch.randn(5, 3, 8))]


def of_many_paths():
    x = torch.randn(5, 4, requires_grad=True)
    for _ in range(60):
        x = x + x * x
    return [x, x.sum(), x[1:3]]


def of_moved_rows():
    x = torch.randn(5, 4, requires_grad=True)
    return [x[torch.tensor([2, 1, 0])].flip(0).transpose(0, 1)[:, :2].roll(1)]


def of_a_custom_function():
    return [Doubled.apply(nn.Linear(3, 4)(torch.randn(5, 3)))]


def of_nothing():
    return [torch.randn(3)]


@pytest.mark.parametrize(
    "make", [of_layers, of_attention, of_many_paths, of_moved_rows, of_a_custom_function, of_nothing]
)
def test_both_walks_find_the_same(make, monkeypatch):
    # In older releases of torch a custom function's node is gone with its output.
    outputs = make()
    starts = [tensor.grad_fn for tensor in outputs]
    # The first walk learns the types of nodes.
    Graph(starts, 0, 5)
    compiled = Graph(starts, 0, 5)
    monkeypatch.setattr(loaded, "VECTOR", 0)
    slow = Graph(starts, 0, 5)
    assert list(compiled.nodes) == list(slow.nodes)
    assert (compiled.kind, compiled.foreign, compiled._movers) == (slow.kind, slow.foreign, slow._movers)


def test_a_type_without_a_name_is_left_to_python():
    (output,) = of_layers()
    assert walk([output.grad_fn], {}) is None
    assert walk([output.grad_fn], {type(output.grad_fn): "one"}) is None


def test_what_is_not_a_node_is_refused():
    with pytest.raises(AttributeError, match="next_functions"):
        walk([3], {int: "number"})


def test_nothing_of_a_graph_is_held():
    x = torch.randn(5, 4, requires_grad=True)
    end = (x * x).sum()
    token = type("Token", (), {})()
    gone = weakref.ref(token)
    end.grad_fn.metadata["token"] = token
    for _ in range(3):
        found = Graph([end.grad_fn], 0, 5)
    del found, end, token
    gc.collect()
    assert gone() is None
