"""The oracle against hand computation and against its own contract."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradscope.errors import InvalidArgumentError, MixedSamplesError
from gradscope.reference import per_sample_gradients


def mse(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def gradients(model, loss_fn, batch):
    model.zero_grad()
    loss_fn(model, batch).backward()
    result = {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in model.named_parameters()}
    model.zero_grad()
    return result


def assert_contract(model, loss_fn, batch):
    state = torch.get_rng_state()
    g = per_sample_gradients(model, loss_fn, batch)
    assert torch.equal(state, torch.get_rng_state())
    for name, grad in gradients(model, loss_fn, batch).items():
        torch.testing.assert_close(g[name].mean(0), grad, rtol=1e-10, atol=1e-13)
    return g


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.embedding(ids).tanh())


class ScalarLoss(nn.Module):
    def __init__(self, reduction="mean"):
        super().__init__()
        self.linear = nn.Linear(6, 3).double()
        self.reduction = reduction

    def forward(self, x, y):
        return F.cross_entropy(self.linear(x), y, ignore_index=-100, reduction=self.reduction)


def test_linear_regression_is_two_times_error_times_input():
    model = nn.Linear(2, 1).double()
    x, y = torch.randn(5, 2).double(), torch.randn(5, 1).double()
    g = per_sample_gradients(model, mse, (x, y))
    error = model(x).detach() - y
    torch.testing.assert_close(g["weight"], (2 * error * x).unsqueeze(1))
    torch.testing.assert_close(g["bias"], 2 * error)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_mean_is_the_gradient_for_any_reduction(reduction):
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    batch = {"x": torch.randn(6, 4).double(), "y": torch.randint(3, (6,))}
    assert_contract(model, lambda m, b: F.cross_entropy(m(b["x"]), b["y"], reduction=reduction), batch)


def test_token_mean_loss_gives_each_sample_its_share_of_the_tokens():
    model = Tied().double()
    ids = torch.randint(7, (4, 5))
    target = ids.clone()
    target[1, 1:] = -100

    def loss(m, b):
        return F.cross_entropy(m(b[0]).flatten(0, 1), b[1].flatten(), ignore_index=-100)

    g = assert_contract(model, loss, (ids, target))
    assert list(g) == ["embedding.weight"]
    alone = gradients(model, loss, (ids[1:2], target[1:2]))["embedding.weight"]
    torch.testing.assert_close(g["embedding.weight"][1], alone * 4 * 1 / 16)


def test_dropout_uses_the_random_state_of_the_call():
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 1)).double()
    batch = (torch.randn(6, 4).double(), torch.randn(6, 1).double())
    torch.manual_seed(3)
    g = per_sample_gradients(model, mse, batch)
    torch.testing.assert_close(g["0.weight"].mean(0), gradients(model, mse, batch)["0.weight"])


def test_a_recurrent_model_called_twice_and_on_its_own_output():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double()
    batch = (torch.randn(4, 3).double(), torch.randn(4, 3).double())
    g = assert_contract(model, lambda m, b: F.mse_loss(m(m(b[0])), b[1]) + m(b[1]).square().mean(), batch)
    alone = gradients(
        model, lambda m, b: F.mse_loss(m(m(b[0])), b[1]) + m(b[1]).square().mean(), tuple(b[2:3] for b in batch)
    )
    torch.testing.assert_close(g["0.weight"][2], alone["0.weight"])


def test_lstm_and_multihead_attention():
    lstm = nn.LSTM(3, 4, batch_first=True, bidirectional=True).double()
    assert_contract(lstm, lambda m, b: m(b)[0].square().mean(), torch.randn(4, 5, 3).double())
    attention = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).double()
    assert_contract(attention, lambda m, b: (m(b)[:, 0] ** 3).mean(), torch.randn(4, 5, 4).double())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_model_that_returns_its_loss(reduction):
    model = ScalarLoss(reduction)
    y = torch.randint(3, (5,))
    batch = (torch.randn(5, 6).double(), y)
    g = assert_contract(model, lambda m, b: m(*b), batch)
    assert torch.linalg.matrix_rank(g["linear.weight"].flatten(1)) == 5


def test_a_regularizer_in_the_loss_is_shared_equally():
    model = nn.Linear(3, 1).double()
    batch = (torch.randn(4, 3).double(), torch.randn(4, 1).double())
    plain = per_sample_gradients(model, mse, batch)
    g = assert_contract(model, lambda m, b: mse(m, b) + 0.1 * m.weight.square().sum(), batch)
    torch.testing.assert_close(g["weight"], plain["weight"] + 0.2 * model.weight.detach())


def test_batch_norm_mixes_samples_in_training_mode_only():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    batch = (torch.randn(5, 3).double(), torch.randn(5, 1).double())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(MixedSamplesError, match="mixes the samples"):
        per_sample_gradients(model, mse, batch)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert_contract(model.eval(), mse, batch)


def test_a_frozen_parameter_has_no_entry_and_an_unused_one_is_zero():
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "unused": nn.Linear(2, 1), "frozen": nn.Linear(2, 2)})
    model.double()["frozen"].requires_grad_(False)
    model.forward = lambda x: model["used"](model["frozen"](x))
    g = per_sample_gradients(model, mse, (torch.randn(3, 2).double(), torch.randn(3, 1).double()))
    assert set(g) == {"used.weight", "used.bias", "unused.weight", "unused.bias"}
    assert not g["unused.weight"].any()


def test_grad_is_left_alone_and_user_hooks_do_not_fire():
    model = nn.Linear(2, 1)
    model.weight.register_hook(lambda grad: pytest.fail("fired"))
    model.bias.grad = torch.ones(1)
    per_sample_gradients(model, mse, (torch.randn(3, 2), torch.randn(3, 1)))
    assert model.weight.grad is None
    assert model.bias.grad.item() == 1


def test_unequal_sizes_and_a_loss_that_is_no_scalar_are_refused():
    model = nn.Linear(2, 1)
    with pytest.raises(InvalidArgumentError, match=r"sizes \[3, 4\]"):
        per_sample_gradients(model, mse, (torch.randn(3, 2), torch.randn(4, 1)))
    with pytest.raises(InvalidArgumentError, match="one number"):
        per_sample_gradients(model, lambda m, b: m(b), torch.randn(3, 2))
