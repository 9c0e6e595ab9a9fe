"""What reaches a parameter is read from ``.grad`` when the backward is over, and seen before only where that would not do."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import gradscope
from gradscope.reference import per_sample_gradients


class Net(nn.Module):
    """Rows, a vector of its own, and a parameter that only some losses read."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 7), nn.Linear(7, 3)
        self.scale, self.aside = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.last(torch.relu(self.first(x))) * self.scale


def loss_fn(model, x):
    return model(x).square().mean()


@pytest.fixture
def model():
    return Net().double()


def batches(count=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(count)]


def agrees(report, truth, names=("first.weight", "first.bias", "last.weight", "last.bias", "scale")):
    for name in names:
        assert report.coverage[name].status == "exact", report.coverage[name]
        torch.testing.assert_close(
            report.parameters[name].sample_norms, truth[name].flatten(1).norm(dim=1), rtol=1e-9, atol=1e-12
        )
        total = float(truth[name].mean(0).norm())
        assert report.parameters[name].grad_norm == pytest.approx(total, rel=1e-9)


def followed(scope):
    return [leaf.info.name for leaf in scope._session.recorder.leaves if leaf.followed]


def test_nothing_is_hung_before_gradients_that_are_cleared_in_each_window(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer) as scope:
        for x in batches():
            truth = per_sample_gradients(copy.deepcopy(model), loss_fn, x)
            loss_fn(model, x).backward()
            optimizer.step()
            optimizer.zero_grad()
            agrees(scope.last, truth)
        assert not followed(scope)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_the_second_micro_step_of_a_window_is_seen_as_it_comes(model, set_to_none):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer) as scope:
        for _ in range(3):
            both = batches(2)
            truth = per_sample_gradients(copy.deepcopy(model), loss_fn, torch.cat(both))
            for x in both:
                (loss_fn(model, x) / 2).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
            assert (scope.last.micro_steps, scope.last.samples) == (2, 12)
            agrees(scope.last, truth)
        assert set(followed(scope)) >= {"first.weight", "scale"}


def test_a_penalty_with_a_backward_of_its_own_is_noticed_before_and_after(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer) as scope:
        for window, x in enumerate(batches(6)):
            if window in (1, 4):
                (0.1 * model.first.weight.square().sum()).backward()
            loss_fn(model, x).backward()
            if window == 3:
                (0.1 * model.first.weight.square().sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
            penalised = window in (1, 3, 4)
            assert scope.last.coverage["first.weight"].status == ("not measured" if penalised else "exact"), window
            assert scope.last.coverage["last.weight"].status == "exact"


def test_a_parameter_that_only_the_loss_reads_is_no_sample_s(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer) as scope:
        for x in batches(3):
            truth = per_sample_gradients(copy.deepcopy(model), loss_fn, x)
            (model.aside.square().sum() + loss_fn(model, x)).backward()
            optimizer.step()
            optimizer.zero_grad()
            assert scope.last.coverage["aside"].status == "not measured"
            agrees(scope.last, truth)


def test_a_hook_that_comes_later_is_seen_from_that_backward_on(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer) as scope:
        for window, x in enumerate(batches(4)):
            if window == 1:
                model.first.weight.register_hook(lambda grad: grad * (torch.arange(5) > 1))
            loss_fn(model, x).backward()
            optimizer.step()
            optimizer.zero_grad()
            assert scope.last.coverage["first.weight"].status == ("not measured" if window else "exact")
            assert scope.last.coverage["last.weight"].status == "exact"


def test_a_gradient_that_its_own_optimizer_takes_away_is_read_as_it_comes_from_then_on(model):
    optimizer = torch.optim.SGD([p for name, p in model.named_parameters() if name != "first.weight"], lr=0.1)

    def at_once(parameter):
        parameter.grad = None

    model.first.weight.register_post_accumulate_grad_hook(at_once)
    with gradscope.watch(model, optimizer) as scope:
        for x in batches(3):
            truth = per_sample_gradients(copy.deepcopy(model), loss_fn, x)
            loss_fn(model, x).backward()
            optimizer.step()
            optimizer.zero_grad()
            agrees(scope.last, truth, ["first.weight", "first.bias", "last.weight"])


@pytest.mark.parametrize("moments", [False, True])
def test_a_single_sample_and_a_kept_graph_are_seen_as_they_come(model, moments):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer, moments=moments) as scope:
        x = batches(1)[0]
        loss_fn(model, x).backward()
        optimizer.step()
        optimizer.zero_grad()
        truth = per_sample_gradients(copy.deepcopy(model), loss_fn, x)
        loss = loss_fn(model, x)
        (0.25 * loss).backward(retain_graph=True)
        (0.75 * loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        agrees(scope.last, truth)
        truth = per_sample_gradients(copy.deepcopy(model), loss_fn, x)
        for one in x:
            (loss_fn(model, one.unsqueeze(0)) / 6).backward()
        optimizer.step()
        agrees(scope.last, truth)


def test_a_backward_inside_the_model_s_own_forward_finds_the_layers_that_have_run():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(5, 7), nn.Linear(7, 3)

        def forward(self, x):
            out = self.last(torch.tanh(self.first(x)))
            out.square().mean().backward()
            return out.detach()

    model = Inner().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer) as scope:
        for x in batches(3):
            plain = copy.deepcopy(model)
            plain(x)
            model(x)
            for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
                assert torch.equal(ours.grad, theirs.grad)
            optimizer.step()
            optimizer.zero_grad()
            assert not any("failed" in warning for warning in scope.report().warnings)


@pytest.mark.parametrize("then", ["evaluate", "train", "close"])
def test_a_forward_that_fails_on_its_way_leaves_nothing_behind(then):
    class Failing(Net):
        fails = False

        def forward(self, x):
            read = torch.relu(self.first(x))
            if self.fails:
                read.retain_grad()
                self.left = weakref.ref(read)
                self.last(read)
                raise ValueError("on its way")
            return self.last(read) * self.scale

    model = Failing().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer) as scope:
        for x in batches(3):
            loss_fn(model, x).backward()
            optimizer.step()
            optimizer.zero_grad()
        model.fails = True
        with pytest.raises(ValueError, match="on its way"):
            model(x)
        model.fails = False
        if then == "evaluate":
            with torch.no_grad():
                model(x)
        elif then == "train":
            loss_fn(model, x).backward()
        else:
            scope.close()
        gc.collect()
        assert model.left() is None


def test_a_parameter_without_elements_costs_nobody_else_their_figures():
    class Empty(Net):
        def __init__(self):
            super().__init__()
            self.none = nn.Parameter(torch.zeros(0, 5))

        def forward(self, x):
            return super().forward(x) + (x @ self.none.T).sum(1, keepdim=True)

    model = Empty().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer) as scope:
        for x in batches(3):
            truth = per_sample_gradients(copy.deepcopy(model), loss_fn, x)
            loss_fn(model, x).backward()
            optimizer.step()
            optimizer.zero_grad()
            agrees(scope.last, truth)
