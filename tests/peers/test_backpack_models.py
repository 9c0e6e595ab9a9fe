"""Models of BackPACK's first-order tests."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from peers.compared import compare


def rand(*shape):
    return lambda: torch.rand(*shape, dtype=torch.float64)


def ids(*shape, below):
    return lambda: torch.randint(below, shape)


def classes(count, *more):
    """Cross entropy of each sample over random classes."""

    def losses(output):
        target = torch.arange(output.shape[0] * max(1, torch.Size(more).numel())) % count
        each = F.cross_entropy(output, target.reshape(output.shape[0], *more), reduction="none")
        return each.reshape(output.shape[0], -1).sum(1)

    return losses


def squares(output):
    """Squared distance of each sample from a regular pattern."""
    flat = output.flatten(1)
    return (flat - torch.arange(flat.shape[1]) / 7).square().sum(1)


def convolution(shape, kind, *settings):
    """Convolution, ReLU and a frozen linear layer."""

    def build():
        front = nn.Sequential(kind(*settings), nn.ReLU(), nn.Flatten())
        head = nn.Linear(front(torch.rand(shape)).shape[1], 5).requires_grad_(False)
        return nn.Sequential(front, head)

    name = f"{kind.__name__}{settings} on {shape}"
    return pytest.param(build, rand(*shape), classes(5), id=name)


def linear(*widths, between=nn.Identity, flat=False):
    def build():
        layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
        return nn.Sequential(layers[0], between(), *layers[1:], nn.Flatten() if flat else nn.Identity())

    return build


class Picked(nn.Module):
    """One item of what a module returns, perhaps permuted."""

    def __init__(self, inner, permuted=False):
        super().__init__()
        self.inner, self.permuted = inner, permuted

    def forward(self, x):
        output = self.inner(x)[0]
        return output.transpose(1, 2) if self.permuted else output


def evaluated(*layers):
    def build():
        model = nn.Sequential(*[layer() for layer in layers]).eval()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        return model

    return build


LINEAR = [
    pytest.param(linear(10, 5), rand(3, 10), classes(5), id="one layer"),
    pytest.param(linear(10, 7, 5), rand(3, 10), classes(5), id="two layers"),
    pytest.param(linear(10, 7, 5, between=nn.ReLU), rand(3, 10), classes(5), id="ReLU"),
    pytest.param(linear(10, 7, 5, between=nn.Sigmoid), rand(3, 10), squares, id="sigmoid"),
    pytest.param(linear(5, 3, 2), rand(3, 4, 5), squares, id="one additional"),
    pytest.param(linear(5, 3, 2, between=nn.Sigmoid), rand(3, 4, 2, 5), squares, id="two additional"),
    pytest.param(linear(5, 3, 2), rand(3, 4, 2, 3, 5), squares, id="three additional"),
    pytest.param(linear(5, 3, 2, flat=True), rand(3, 4, 5), classes(8), id="one additional, classes"),
    pytest.param(linear(5, 3, 2, between=nn.Sigmoid, flat=True), rand(3, 4, 2, 5), classes(16), id="two, classes"),
    pytest.param(linear(5, 3, 2, between=nn.ReLU, flat=True), rand(3, 4, 2, 3, 5), classes(48), id="three, classes"),
]
CONVOLUTION = [
    convolution((3, 3, 7), nn.Conv1d, 3, 2, 2),
    convolution((3, 2, 7), nn.Conv1d, 2, 3, 2, 2, 0, 2),
    convolution((3, 3, 7), nn.Conv1d, 3, 2, 2, 2, 1),
    convolution((3, 3, 8), nn.Conv1d, 3, 6, 2, 4, 2, 3),
    convolution((3, 3, 7), nn.Conv1d, 3, 2, 2, 4, 2, 1, 1, False),
    convolution((3, 3, 7, 7), nn.Conv2d, 3, 2, 2),
    convolution((3, 2, 7, 7), nn.Conv2d, 2, 3, 2, 2, 0, 2),
    convolution((3, 3, 7, 7), nn.Conv2d, 3, 2, 2, 2, 1),
    convolution((3, 3, 8, 8), nn.Conv2d, 3, 6, 2, 4, 2, 3),
    convolution((3, 3, 7, 7), nn.Conv2d, 3, 2, 2, 4, 2, 1, 1, False),
    convolution((3, 3, 2, 7, 7), nn.Conv3d, 3, 2, 2),
    convolution((3, 2, 3, 7, 7), nn.Conv3d, 2, 3, 2, 2, 0, 2),
    convolution((3, 3, 2, 7, 7), nn.Conv3d, 3, 2, 2, 3, 2),
    convolution((3, 3, 4, 8, 8), nn.Conv3d, 3, 6, 2, 4, 2, 3),
    convolution((3, 3, 2, 7, 7), nn.Conv3d, 3, 2, 2, 4, 2, 1, 1, False),
    convolution((3, 3, 7), nn.ConvTranspose1d, 3, 2, 2),
    convolution((3, 2, 7), nn.ConvTranspose1d, 2, 3, 2, 2, 0, 0, 1, True, 2),
    convolution((3, 3, 7), nn.ConvTranspose1d, 3, 2, 2, 2, 1),
    convolution((3, 3, 8), nn.ConvTranspose1d, 3, 6, 2, 4, 2, 0, 1, True, 3),
    convolution((3, 3, 7), nn.ConvTranspose1d, 3, 2, 2, 4, 2, 0, 1, False),
    convolution((3, 3, 7, 7), nn.ConvTranspose2d, 3, 2, 2),
    convolution((3, 2, 9, 9), nn.ConvTranspose2d, 2, 4, 2, 1, 0, 0, 1, True, 2),
    convolution((3, 3, 7, 7), nn.ConvTranspose2d, 3, 2, 2, 2, 1),
    convolution((3, 3, 7, 7), nn.ConvTranspose2d, 3, 2, 2, 4, 2, 0, 1, False),
    convolution((3, 3, 2, 7, 7), nn.ConvTranspose3d, 3, 2, 2),
    convolution((3, 2, 3, 5, 5), nn.ConvTranspose3d, 2, 3, 2, 2, 2, 0, 1, True, 2),
    convolution((3, 3, 2, 7, 7), nn.ConvTranspose3d, 3, 2, 2, 4, 2, 0, 1, False),
]
BATCH_NORM = [
    pytest.param(evaluated(lambda: nn.BatchNorm1d(3)), rand(2, 3, 4), classes(3, 4), id="1d"),
    pytest.param(evaluated(lambda: nn.BatchNorm2d(2)), rand(3, 2, 4, 3), classes(2, 4, 3), id="2d"),
    pytest.param(evaluated(lambda: nn.BatchNorm3d(3)), rand(3, 3, 4, 1, 2), classes(3, 4, 1, 2), id="3d"),
    pytest.param(
        evaluated(
            lambda: nn.BatchNorm3d(3),
            lambda: nn.Linear(2, 3),
            lambda: nn.BatchNorm3d(3),
            nn.ReLU,
            lambda: nn.BatchNorm3d(3),
        ),
        rand(3, 3, 4, 1, 2),
        classes(3, 4, 1, 3),
        id="several",
    ),
]
RECURRENT = [
    pytest.param(lambda: Picked(nn.RNN(6, 3, batch_first=True), True), rand(8, 5, 6), classes(3, 5), id="RNN"),
    pytest.param(lambda: Picked(nn.RNN(6, 3, batch_first=True), True), rand(8, 5, 6), squares, id="RNN, squares"),
    pytest.param(
        lambda: nn.Sequential(Picked(nn.LSTM(3, 4, batch_first=True)), nn.Flatten()),
        rand(4, 5, 3),
        classes(20),
        id="LSTM",
    ),
]
EMBEDDING = [
    pytest.param(
        lambda: nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 4)), ids(6, below=5), classes(4), id="one id each"
    ),
    pytest.param(
        lambda: nn.Sequential(nn.Embedding(3, 5), nn.Flatten()), ids(4, 2, 2, below=3), classes(10), id="grid"
    ),
]


class Residual(nn.Module):
    """A small residual network in eval mode, in the place of the one from torchvision."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        self.one, self.two = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.inner, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        x = F.max_pool2d(self.norm(self.stem(x)).relu(), 3, 2, 1)
        x = (x + self.two(self.inner(self.one(x)).relu())).relu()
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


RESIDUAL = [pytest.param(evaluated(Residual), rand(2, 3, 7, 7), squares, id="residual network")]


@pytest.mark.parametrize(
    ("build", "inputs", "losses"), [*LINEAR, *CONVOLUTION, *BATCH_NORM, *RECURRENT, *EMBEDDING, *RESIDUAL]
)
def test_first_order(build, inputs, losses):
    compare(build(), (inputs(),), losses=losses)
