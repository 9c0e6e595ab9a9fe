"""Faults as they would come about: a wrong rule, a wrong square, a use that is never seen."""

from __future__ import annotations

import torch
from torch import nn

from gradscope.contributions.contribution import Contribution
from gradscope.contributions.precision import row_squares
from gradscope.rules.linear import LINEAR

N = 8


class Linear(nn.Linear):
    """A layer of the user's own that does what ``nn.Linear`` does; each fault is a rule of a fresh subclass."""

    def forward(self, x):
        return x @ self.weight.T + self.bias


def own_linear():
    """A fresh layer type: rules are registered once."""
    return type("OwnLinear", (Linear,), {"forward": Linear.forward})


def right(module, inputs, grad):
    """The contributions as they are."""
    return dict(LINEAR.describe(module, inputs, grad))


class Wrapped(Contribution):
    """A contribution that answers one question wrongly."""

    def __init__(self, inner):
        self.inner = inner
        self.shape = inner.shape

    @property
    def samples(self):
        return self.inner.samples

    @property
    def nbytes(self):
        return self.inner.nbytes

    def squared_norms(self):
        return self.inner.squared_norms()

    def probe(self, probe):
        return self.inner.probe(probe)

    def dense(self):
        return self.inner.dense()

    def select(self, index):
        return type(self)(self.inner.select(index))

    def regroup(self, sample_of_row, samples):
        return type(self)(self.inner.regroup(sample_of_row, samples))


class SquaredPerToken(Wrapped):
    """Sums the squares of tokens instead of squaring their sum."""

    def squared_norms(self):
        inputs, grads = self.inner.inputs, self.inner.grads
        n, groups, tokens = inputs.shape[:3]
        squares = row_squares(inputs.reshape(n * groups * tokens, -1)) * row_squares(
            grads.reshape(n * groups * tokens, -1)
        )
        return squares.reshape(n, -1).sum(1)


class Norms(Wrapped):
    """Gives norms where their squares were asked for."""

    def squared_norms(self):
        return self.inner.squared_norms().sqrt()


def changed(change):
    """A rule whose weight contributions, built in full, are changed."""

    def rule(module, inputs, grad):
        found = right(module, inputs, grad)
        found["weight"] = change(found["weight"].dense())
        return found

    return rule


def mixed(h):
    """Every sample gets a part of its neighbours'."""
    return 0.9 * h + 0.1 * h.roll(1, 0)


def swapped(h):
    """Two of the samples change places."""
    order = list(range(len(h)))
    order[0], order[1] = 1, 0
    return h[order]


def nan_in_one(h):
    h = h.clone()
    h[3] = torch.nan
    return h


def lost_in_one(h):
    h = h.clone()
    h[3] = 0
    return h
