"""Models of many parameters: their gradients are read when a backward is over, and layers share what they read alike."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradscope
from gradscope.contributions.gram import SharedBlocks
from gradscope.kernels import loaded
from gradscope.reference import per_sample_gradients

WIDTH, LENGTH = 8, 64


class Block(nn.Module):
    """Queries, keys and values read one tensor, as a gate and what it lets through do."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.gate, self.up, self.down = (
            nn.Linear(WIDTH, 2 * WIDTH),
            nn.Linear(WIDTH, 2 * WIDTH),
            nn.Linear(2 * WIDTH, WIDTH),
        )

    def forward(self, x):
        read = self.norm(x)
        x = x + F.scaled_dot_product_attention(self.query(read), self.key(read), self.value(read))
        return x + self.down(torch.sigmoid(self.gate(x)) * self.up(x))


class Model(nn.Module):
    def __init__(self, *, reentrant=False, scaled=False):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.wide = nn.Linear(WIDTH, 1024)
        self.head = nn.Linear(1024, 3)
        self.reentrant, self.scaled = reentrant, scaled

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=True) if self.reentrant else block(x)
        first = torch.tanh(self.wide(x)).mean(1)
        for factor in (1.0, 1.5, 2.0) if self.scaled else ():
            # Each reads another tensor, which may lie where the last one lay.
            self.wide(x + factor)
            first = first + torch.tanh(self.wide(x * factor)).mean(1)
        return self.head(first)


def loss_fn(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def batches(count, samples=3):
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        x = torch.randn(samples, LENGTH, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
        yield x, torch.randint(3, (samples,), generator=generator)


def made(**options):
    torch.manual_seed(0)
    model = Model(**options).double()
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def assert_right(window, model, batch):
    truth = per_sample_gradients(model, loss_fn, tuple(part.detach() for part in batch))
    for name, grads in truth.items():
        sums = window.parameters[name]
        torch.testing.assert_close(sums.sample_norms, grads.flatten(1).norm(dim=1), rtol=1e-9, atol=1e-12)
        assert sums.grad_norm == pytest.approx(float(grads.mean(0).norm()), rel=1e-9, abs=1e-12)
        if sums.variance is not None:
            torch.testing.assert_close(sums.variance, grads.var(0), rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"moments": True}, {"moments": True, "fused": True}])
@pytest.mark.parametrize("reentrant", [False, True])
def test_figures_of_every_window_are_those_of_single_samples(options, reentrant):
    model, optimizer = made(reentrant=reentrant)
    with gradscope.watch(model, optimizer, **options) as scope:
        for batch in batches(4):
            before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
            window = scope.last
            assert {one.status for one in window.coverage.values()} == {"exact"}
            plain, _ = made(reentrant=False)
            plain.load_state_dict(before)
            assert_right(window, plain, batch)


def test_tensors_that_come_and_go_are_not_taken_for_each_other():
    model, optimizer = made(scaled=True)
    with gradscope.watch(model, optimizer) as scope:
        for batch in batches(3):
            plain, _ = made(scaled=True)
            plain.load_state_dict(model.state_dict())
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
            assert_right(scope.last, plain, batch)


def test_micro_steps_add_up():
    model, optimizer = made()
    with gradscope.watch(model, optimizer, moments=True) as scope:
        for first, second in zip(batches(4, 2), batches(4, 3), strict=True):
            whole = torch.cat([first[0], second[0]]).detach(), torch.cat([first[1], second[1]])
            plain, _ = made()
            plain.load_state_dict(model.state_dict())
            optimizer.zero_grad()
            (loss_fn(model, first) * 0.4).backward()
            (loss_fn(model, second) * 0.6).backward()
            optimizer.step()
            assert_right(scope.last, plain, whole)


def test_a_gradient_that_is_gone_when_backward_ends_is_said_once_and_measured_from_then_on():
    model, optimizer = made()
    taken = []

    def take(module, grad_input, grad_output):
        # Not a hook on the parameter: nothing shows beforehand that its gradient will not stay.
        taken.append(model.head.weight.grad)
        model.head.weight.grad = None

    model.blocks[0].norm.register_full_backward_hook(take)
    with gradscope.watch(model, optimizer) as scope:
        for number, batch in enumerate(batches(4)):
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
            found = scope.last.coverage["head.weight"]
            assert found.status == ("exact" if number else "not measured"), found
            assert number or "gone when backward ended" in found.reason
            assert scope.last.coverage["head.bias"].status == "exact"
    assert all(grad is not None for grad in taken)


def test_a_gradient_that_is_only_asked_for_belongs_to_no_window():
    model, optimizer = made()
    with gradscope.watch(model, optimizer) as scope:
        for batch in batches(3):
            plain, _ = made()
            plain.load_state_dict(model.state_dict())
            optimizer.zero_grad()
            torch.autograd.grad(loss_fn(model, batch), list(model.parameters()))
            loss_fn(model, batch).backward()
            optimizer.step()
            assert scope.last.samples == 3
            assert_right(scope.last, plain, batch)


def test_elementwise_figures_in_somebodys_hands_stay_what_they_are():
    model, optimizer = made()
    held = []
    with gradscope.watch(model, optimizer, moments=True) as scope:
        for batch in batches(5):
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
            sums = scope.last.parameters["wide.weight"]
            held.append((sums.variance, sums.variance.clone()))
    for variance, then in held:
        assert torch.equal(variance, then)


class Heads(nn.Module):
    """Three layers that read one tensor, by Gram matrices; the last of them has been given another one of the same size."""

    def __init__(self, *, apart):
        super().__init__()
        self.first, self.apart = nn.Linear(5, 256), apart
        self.query, self.key, self.value = (nn.Linear(256, 256) for _ in range(3))

    def forward(self, x):
        read = torch.tanh(self.first(x))
        return (self.query(read) * self.key(read) * self.value(read + 1.0 if self.apart else read)).sum(1)[:, :3]


@pytest.mark.parametrize("options", [{}, {"subsample": 2}])
@pytest.mark.parametrize(("apart", "hits"), [(False, 2), (True, 1)])
def test_layers_that_read_one_tensor_share_its_gram_matrix_and_have_the_figures_of_single_samples(
    monkeypatch, apart, hits, options
):
    found: list[bool] = []
    find = SharedBlocks.find

    def counted(self, place):
        block = find(self, place)
        found.append(block is not None)
        return block

    monkeypatch.setattr(SharedBlocks, "find", counted)
    # The kernel writes no Gram matrix that could be shared.
    monkeypatch.setattr(loaded, "VECTOR", 0)
    torch.manual_seed(0)
    model = Heads(apart=apart).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer, **options) as scope:
        for _ in range(3):
            batch = torch.randn(4, 8, 5, dtype=torch.float64), torch.randint(3, (4,))
            truth = per_sample_gradients(copy.deepcopy(model), loss_fn, batch)
            found.clear()
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
            assert scope.last.coverage["key.weight"].rule == "linear (Gram)"
            assert sum(found) == (0 if options else hits)
            for name, grads in truth.items():
                norms = scope.last.parameters[name].sample_norms
                chosen = ~norms.isnan()
                torch.testing.assert_close(norms[chosen], grads.flatten(1).norm(dim=1)[chosen], rtol=1e-9, atol=1e-12)
