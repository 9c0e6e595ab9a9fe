"""What users do beside the loop: hooks, masks, penalties, threads, several optimizers, steps inside backward."""

import threading

import pytest
import torch
from models import N, assert_agrees, assert_all, mean_square, net, samples, statuses, train
from torch import nn

import gradscope

EXPECTED = ("0.weight", "0.bias", "2.weight", "2.bias")


def plain():
    return train(net(), samples())[-1]


# -- hooks of the user's own -----------------------------------------------------------------------------------------------


def halve_rows(grad):
    return grad * torch.tensor([1.0, 0.0] * 3, dtype=grad.dtype)[:, None]


@pytest.mark.parametrize("when", ["before watch", "after watch"])
def test_a_mask_on_a_parameter_is_named_and_costs_only_its_own_figures(when):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    if when == "before watch":
        model[0].weight.register_hook(halve_rows)
    with gradscope.watch(model, optimizer) as scope:
        if when == "after watch":
            model[0].weight.register_hook(halve_rows)
        for _ in range(2):
            mean_square(model(samples())).backward()
            optimizer.step()
            optimizer.zero_grad()
            report = scope.last
            assert statuses(report) == dict.fromkeys(EXPECTED, "exact") | {"0.weight": "not measured"}
            assert "hook of your own" in report.coverage["0.weight"].reason


def test_a_hook_that_only_looks_costs_nothing():
    model, seen = net(), []
    model[0].weight.register_hook(lambda grad: seen.append(float(grad.norm())))
    for report in train(model, samples()):
        assert_all(report)
        assert_agrees(report, plain())
    assert len(seen) == 2


@pytest.mark.parametrize("when", ["before watch", "after watch"])
def test_hooks_on_layers_that_change_inputs_and_outputs_are_part_of_the_model(when):
    class Scaled(nn.Sequential):
        def forward(self, x):
            return self[2](3 * self[1](2 * self[0](x)))

    expected = train(Scaled(*net()), samples())[-1]
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def hang():
        model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
        model[2].register_forward_pre_hook(lambda module, inputs: (3 * inputs[0],))
        model[0].register_full_backward_hook(lambda module, inputs, outputs: None)

    if when == "before watch":
        hang()
    with gradscope.watch(model, optimizer) as scope:
        if when == "after watch":
            hang()
        for _ in range(2):
            mean_square(model(samples())).backward()
            optimizer.step()
            optimizer.zero_grad()
            assert_all(scope.last)
            assert_agrees(scope.last, expected)


def look_at_outputs(model, seen):
    model[0].register_forward_hook(lambda module, inputs, output: output.register_hook(seen.append) and None)


def look_at_modules(model, seen):
    model[1].register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0]))


@pytest.mark.parametrize("second_pass", [False, True])
@pytest.mark.parametrize("look", [look_at_outputs, look_at_modules])
def test_backward_hooks_run_as_often_as_they_would(look, second_pass):
    """A list that grows by one a step stays one, also in windows that would look through the graph twice."""
    model, seen, counts = net(), [], []
    look(model, seen)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer, second_pass=second_pass) as scope:
        for _ in range(18):
            mean_square(model(samples())).backward()
            optimizer.step()
            optimizer.zero_grad()
            counts.append(len(seen))
            seen.clear()
            assert_all(scope.last)
            assert_agrees(scope.last, plain())
        report = scope.report()
    said = [text for text in report.warnings if "hook of your own" in text]
    if second_pass:
        # The first window, and one of sixteen, were guarded.
        assert counts[0] > 1
        assert counts.count(1) >= 14
        assert not said
    else:
        assert counts == [1] * 18
        assert len(said) == 1
        assert "second_pass=True" in said[0]


# -- losses ------------------------------------------------------------------------------------------------------------------


def test_a_gradient_penalty_is_named_and_has_no_figures():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer) as scope:
        for _ in range(2):
            x = samples().requires_grad_()
            output = model(x)
            (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
            (mean_square(output) + (slope.norm(dim=1) - 1).square().mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
            assert_all(scope.last, "not measured")
            assert all("gradient penalty" in coverage.reason for coverage in scope.last.coverage.values())
        mean_square(model(samples())).backward()
        optimizer.step()
        assert_all(scope.last)
        assert_agrees(scope.last, plain())


def test_a_backward_that_could_be_differentiated_and_is_not_changes_no_figure():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer) as scope:
        mean_square(model(samples())).backward(create_graph=True)
        optimizer.step()
        assert_all(scope.last)
        assert_agrees(scope.last, plain())
        optimizer.zero_grad()


@pytest.mark.parametrize("coefficient", [0.05, -3.0])
def test_an_l2_term_in_the_loss_is_named_with_its_coefficient_in_every_window(coefficient):
    model = net()

    def loss(output):
        return mean_square(output) + coefficient * sum(p.square().sum() for p in (model[0].weight, model[2].weight))

    for report in train(model, samples(), loss=loss, windows=3):
        for name in ("0.weight", "2.weight"):
            assert report.coverage[name].status == "mismatch"
            assert "L2 term" in report.coverage[name].reason
            assert f"{coefficient:.3g}·" in report.coverage[name].reason
        assert statuses(report)["0.bias"] == statuses(report)["2.bias"] == "exact"


# -- threads -----------------------------------------------------------------------------------------------------------------


def test_two_models_are_trained_and_watched_in_two_threads():
    found, expected = {}, plain()
    # Seeds are global: models that are made in two threads at once would not be the same.
    models, x = [net(), net()], samples()

    def work(number):
        found[number] = train(models[number], x, windows=20)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for reports in found.values():
        for report in reports:
            assert_all(report)
            assert_agrees(report, expected)


def test_a_backward_may_run_in_another_thread_than_its_forward():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer) as scope:
        for _ in range(2):
            thread = threading.Thread(target=mean_square(model(samples())).backward)
            thread.start()
            thread.join()
            optimizer.step()
            optimizer.zero_grad()
            assert_all(scope.last)
            assert_agrees(scope.last, plain())


# -- optimizers ----------------------------------------------------------------------------------------------------------------


class Gan(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator, self.critic = nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x, generate):
        return self.critic(self.generator(x) if generate else x)


def test_a_gan_that_steps_its_two_optimizers_in_turn_has_a_window_for_each():
    torch.manual_seed(0)
    model = Gan().double()
    first = torch.optim.SGD(model.critic.parameters(), lr=0.0)
    second = torch.optim.SGD(model.generator.parameters(), lr=0.0)
    real = torch.randn(N, 3, dtype=torch.float64)
    critics, generators = [], []
    with gradscope.watch(model, first, second) as scope:
        for _ in range(3):
            with torch.no_grad():
                fake = model.generator(samples())
            scores = model(torch.cat([fake, real]), generate=False)
            if scope.report().windows:
                generators.append(scope.last)
            nn.functional.softplus(torch.cat([scores[:N], -scores[N:]])).mean().backward()
            first.step()
            critics.append(scope.last)
            model.zero_grad()
            nn.functional.softplus(-model(samples(), generate=True)).mean().backward()
            second.step()
            model.zero_grad()
        assert scope.report().windows == 5
    for report in critics:
        assert statuses(report)["generator.weight"] == "no gradient"
        assert statuses(report)["critic.0.weight"] == "exact"
    for report in generators:
        # Known when the next forward begins: until then the other optimizer might have stepped too.
        assert statuses(report)["generator.weight"] == "exact"
        assert "did not step" in report.coverage["critic.0.weight"].reason


def test_optimizers_that_step_inside_backward_end_no_run():
    model, expected = net(), plain()
    optimizers = {p: torch.optim.SGD([p], lr=0.0) for p in model.parameters()}

    def step(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    with gradscope.watch(model) as scope:
        for _ in range(3):
            mean_square(model(samples())).backward()
            report = scope.step()
            assert_all(report)
            assert_agrees(report, expected)


# -- saving and functions of torch ---------------------------------------------------------------------------------------------


def test_saving_on_the_host_changes_no_figure():
    with torch.autograd.graph.save_on_cpu():
        for report in train(net(), samples()):
            assert_all(report)
            assert_agrees(report, plain())


class Functional(nn.Module):
    """Uses ``torch.func`` inside of the model."""

    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.how = nn.Linear(4, 6), nn.Linear(6, 2), how

    def forward(self, x):
        if self.how == "vmap":
            return self.b(torch.func.vmap(self.a)(x).tanh())
        if self.how == "functional_call":
            return torch.func.functional_call(self.b, dict(self.b.named_parameters()), (self.a(x).tanh(),))
        if self.how == "jvp":
            hidden = self.a(x).tanh()
            return sum(torch.func.jvp(self.b, (hidden,), (torch.zeros_like(hidden),)))
        if self.how == "grad":
            return self.b(torch.func.grad(lambda h: -h.cos().sum())(self.a(x)) * 0 + self.a(x).tanh())
        return self.b(self.a(x).tanh())


@pytest.mark.parametrize("how", ["vmap", "functional_call", "jvp", "grad"])
def test_functions_of_torch_func_inside_the_model_are_right_or_said(how):
    def build(how):
        torch.manual_seed(0)
        return Functional(how).double()

    expected = train(build("plain"), samples())[-1]
    for report in train(build(how), samples()):
        for name, coverage in report.coverage.items():
            assert coverage.status in ("exact", "estimated") or coverage.reason
            if coverage.status == "exact":
                norms = report.parameters[name].sample_norms
                torch.testing.assert_close(norms, expected.parameters[name].sample_norms)
