"""Every algorithm that can be chosen gives the same figures, whatever chose it, within the memory that it may use."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from kinds import KINDS, N
from torch import nn
from zoo import PROBLEMS, contributions, figures
from zoo.measured import train_window

import gradscope
from gradscope.contributions import (
    Convolution,
    Outer,
    Probe,
    convolution_costs,
    one_by_one,
    outer_norms,
    patches_one_by_one,
)
from gradscope.contributions import workspace as workspace_module
from gradscope.contributions.choice import Choice, Forced, Measured
from gradscope.contributions.fused import FusedConvolution
from gradscope.contributions.geometry import Geometry
from gradscope.contributions.gram import SharedBlocks
from gradscope.contributions.workspace import Workspace

#: Relative difference that rounding may make, as for the whole zoo.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}

OUTER, CONVOLUTION = ("Gram", "products"), ("shifted Gram", "patches", "native", "Winograd")
#: Of these each is tried where it can be used; without kernels their names stand for what the cost model chooses.
KERNELS = ("Gram kernel", "product kernel", "shifted Gram kernel", "depthwise kernel")
ALGORITHMS = (*OUTER, *CONVOLUTION, *KERNELS)

NAMES = (
    "Linear, one middle dimension", "Linear, two middle dimensions", "Linear, wide: Gram norms",
    "Linear, complex, middle dimension", "Conv1d", "Conv2d", "Conv3d", "Conv2d, groups", "Conv2d, stride and dilation",
    "Conv1d, stride that leaves inputs over", "Conv2d, reflect padding", "ConvTranspose1d", "ConvTranspose2d, everything",
    "ConvTranspose3d", "tied Linears, middle dimensions", "a weight used at two shapes", "attention", "turned inside",
    "folded into the batch", "LSTM, projected, both directions, from states", "GRU, two layers without biases, from states",
    "RNN, ReLU, both directions, from states", "LSTM, packed", "LSTMCell in a loop",
    "Conv2d, rows in fours",
)  # fmt: skip


@cache
def problem_named(name):
    return next(problem for problem in PROBLEMS if problem.name == name)


@cache
def truth(name):
    return {key: figures([h]) for key, h in contributions(problem_named(name)).items()}


def measure(name, dtype, choice, **watch):
    problem = problem_named(name)
    model = problem.model(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer, batch_dim=problem.batch_dim, **watch) as scope:
        scope._session.workspace.choice = choice
        train_window(problem, model, optimizer)
        return scope.last


@pytest.mark.parametrize("moments", [False, True], ids=["norms", "moments"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", NAMES)
def test_the_zoos_tolerances_hold_for_each_algorithm(name, algorithm, dtype, moments):
    report = measure(name, dtype, Forced(algorithm), moments=moments)
    for key, expected in truth(name).items():
        found = report.parameters[key]
        pairs = [(found.sample_norms, expected.sample_norms), (found.trace_cov, expected.trace_cov)]
        if moments and found.variance is not None:
            pairs.append((found.variance, expected.variance))
        for value, wanted in pairs:
            value, wanted = (torch.as_tensor(one, dtype=torch.float64).flatten() for one in (value, wanted))
            error = float((value - wanted).norm() / wanted.norm()) if bool(wanted.norm() > 0) else float(value.norm())
            assert error <= TOLERANCE[dtype], (key, report.coverage[key].rule, error)


def test_the_zoo_makes_use_of_every_algorithm(compiled):
    """Else the test above would say nothing."""
    used = {
        coverage.rule
        for name in NAMES
        for algorithm in ALGORITHMS
        for coverage in measure(name, torch.float64, Forced(algorithm)).coverage.values()
    }
    assert used >= {f"linear ({name})" for name in OUTER} | {f"convolution ({name})" for name in CONVOLUTION}
    if compiled:
        assert used >= {"linear (Gram kernel)", "linear (product kernel)"}
        assert used >= {f"convolution ({name})" for name in KERNELS[1:]}


@pytest.mark.parametrize("moments", [False, True], ids=["norms", "moments"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", list(KINDS))
def test_all_figures_at_once_are_the_figures_one_by_one(kind, algorithm, moments):
    torch.manual_seed(4)
    contribution, in_full = KINDS[kind]()
    in_full = in_full.reshape(N, *contribution.shape)
    probe = Probe.draw(in_full[0], torch.Generator().manual_seed(0))
    workspace = Workspace(Forced(algorithm))
    for _ in range(2):  # again, in memory that has been used
        found = contribution.figures(probe, moments=moments, workspace=workspace)
        torch.testing.assert_close(found.squares, in_full.reshape(N, -1).abs().square().sum(1), rtol=1e-11, atol=1e-12)
        expected = torch.stack([probe.of(one) for one in in_full]).to(found.probes.dtype)
        torch.testing.assert_close(found.probes, expected, rtol=1e-11, atol=1e-12)
        assert (found.second_moment is not None) == moments
        if moments:
            moment = found.second_moment.reshape(contribution.shape)
            torch.testing.assert_close(moment, in_full.abs().square().sum(0), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("single", [True, False], ids=["one direction", "two directions"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", list(KINDS))
def test_figures_of_some_samples_beside_probes_of_all(kind, algorithm, single):
    torch.manual_seed(4)
    contribution, in_full = KINDS[kind]()
    in_full = in_full.reshape(N, *contribution.shape)
    probe = Probe.draw(in_full[0], torch.Generator().manual_seed(0))
    probe = probe.parts[1] if single else probe
    workspace = Workspace(Forced(algorithm))
    expected = torch.stack([probe.of(one) for one in in_full])
    lengths = in_full.reshape(N, -1).abs().square().sum(1)
    for some in ([N - 1], [2, 0]):
        chosen, rest = torch.tensor(some), torch.ones(N, dtype=torch.bool)
        rest[some] = False
        for moments in (False, True):
            found = contribution.sampled(chosen, probe, moments=moments, workspace=workspace)
            torch.testing.assert_close(found.squares[chosen], lengths[chosen], rtol=1e-11, atol=1e-12)
            assert found.squares[rest].isnan().all()
            torch.testing.assert_close(found.probes, expected.to(found.probes.dtype), rtol=1e-11, atol=1e-12)
            assert (found.second_moment is not None) == moments
            if moments:
                moment = found.second_moment.reshape(contribution.shape)
                torch.testing.assert_close(moment, in_full[chosen].abs().square().sum(0), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("algorithm", [*OUTER, *CONVOLUTION, *KERNELS])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_chosen_samples_whose_positions_cancel_keep_their_digits(kind, algorithm):
    torch.manual_seed(0)
    x, grads = torch.ones(5, 12, 8, 8, dtype=torch.float64), torch.randn(5, 16, 6, 6, dtype=torch.float64)
    grads -= grads.mean((2, 3), keepdim=True)
    grads[2, :, 0, 0] += 1e-3
    if kind == "linear":
        contribution = Outer(
            x[:, None, 0, :6, :6].reshape(5, 1, 36, 1), grads.flatten(2).mT[:, None], torch.Size((16, 1))
        )
    else:
        contribution = Convolution(x, grads, torch.Size((16, 12, 3, 3)), Geometry((3, 3), (1, 1), (1, 1), 1))
    expected = contribution.dense()[2].square().sum()
    contribution.inputs, contribution.grads = contribution.inputs.float(), contribution.grads.float()
    found = contribution.sampled(torch.tensor([4, 2]), None, moments=False, workspace=Workspace(Forced(algorithm)))
    torch.testing.assert_close(found.squares[2], expected, rtol=2e-3, atol=0)
    assert found.squares[[0, 1, 3]].isnan().all()


def long_sequence(positions):
    torch.manual_seed(positions)
    inputs, grads = torch.randn(3, 1, positions, 5).double(), torch.randn(3, 1, positions, 7).double()
    return Outer(inputs, grads, torch.Size((7, 5)))


@pytest.mark.parametrize("positions", [2, 47, 48, 49, 127, 128, 131])
def test_a_triangle_of_any_size_is_the_whole_square(positions):
    outer = long_sequence(positions)
    expected = outer.dense().square().sum((1, 2))
    found = outer.figures(workspace=Workspace(Forced("Gram")))
    assert found.algorithm == "Gram"
    torch.testing.assert_close(found.squares, expected, rtol=1e-11, atol=0)


def image(size=12, channels=3, out=4, n=3, stride=1):
    torch.manual_seed(size)
    x = torch.randn(n, channels, size, size, dtype=torch.float64)
    positions = (size - 3) // stride + 1
    grads = torch.randn(n, out, positions, positions, dtype=torch.float64)
    return Convolution(x, grads, torch.Size((out, channels, 3, 3)), Geometry((3, 3), (stride, stride), (1, 1), 1))


@pytest.mark.parametrize("budget", [0, 1, 1000, 10_000, 1 << 30])
@pytest.mark.parametrize("algorithm", [None, *ALGORITHMS])
@pytest.mark.parametrize(
    "build", [lambda: long_sequence(131), image, lambda: image(stride=2)], ids=["linear", "conv", "strided"]
)
def test_a_budget_changes_the_size_of_the_pieces_and_no_figure(build, algorithm, budget):
    contribution = build()
    in_full = contribution.dense().reshape(3, *contribution.shape)
    probe = Probe.draw(in_full[0], torch.Generator().manual_seed(0))
    workspace = Workspace(Choice() if algorithm is None else Forced(algorithm), budget)
    for moments in (False, True):
        found = contribution.figures(probe, moments=moments, workspace=workspace)
        torch.testing.assert_close(found.squares, in_full.flatten(1).square().sum(1), rtol=1e-11, atol=0)
        torch.testing.assert_close(found.probes.sum(0), probe.of(in_full.sum(0)), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.second_moment, in_full.square().sum(0), rtol=1e-11, atol=1e-12)


def largest(contribution, workspace, **asked):
    """Elements of the largest tensor that any operator makes while figures are computed."""
    sizes = [0]

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            # Views of inputs take no memory.
            if isinstance(result, torch.Tensor) and not func.is_view:
                sizes.append(result.untyped_storage().nbytes() // result.element_size())
            return result

    with Watch():
        contribution.figures(workspace=workspace, **asked)
    return max(sizes)


def test_intermediate_results_stay_within_the_budget():
    """64 samples of a 40 × 30 weight at 20 positions: 77 thousand elements of products at once without a budget."""
    inputs, grads = torch.randn(64, 1, 20, 30).double(), torch.randn(64, 1, 20, 40).double()
    outer = Outer(inputs, grads, torch.Size((40, 30)))
    for algorithm in OUTER:
        assert largest(outer, Workspace(Forced(algorithm))) > 20_000
        assert largest(outer, Workspace(Forced(algorithm), budget=8 * 4000)) <= 4000
    assert largest(outer, Workspace(budget=8 * 4000), moments=True) <= 4000


def test_a_very_large_image_is_unfolded_in_bands():
    """One sample's patches would be 9 times the image."""
    convolution = image(size=100, channels=2, n=2)
    patches = 2 * 9 * 98 * 98
    workspace = Workspace(Forced("patches"), budget=8 * 9000)
    assert largest(convolution, Workspace(Forced("patches"))) >= patches
    assert largest(convolution, workspace) < patches / 2
    expected = convolution.dense().square().sum((1, 2, 3, 4))
    torch.testing.assert_close(convolution.figures(workspace=workspace).squares, expected, rtol=1e-11, atol=0)


def test_the_cost_model_depends_on_shapes_alone():
    first, second = long_sequence(40), long_sequence(40)
    second = Outer(100 * second.inputs, second.grads, second.shape)
    assert first.figures(workspace=Workspace()).algorithm == second.figures(workspace=Workspace()).algorithm


@pytest.mark.parametrize(
    ("contribution", "expected"),
    [
        (Outer(torch.randn(2, 1, 8, 256), torch.randn(2, 1, 8, 256), torch.Size((256, 256))), "Gram"),
        (Outer(torch.randn(2, 1, 256, 16), torch.randn(2, 1, 256, 16), torch.Size((16, 16))), "products"),
    ],
    ids=["few positions", "many positions"],
)
def test_sequences_shorter_than_layers_are_wide_go_by_gram(contribution, expected, compiled):
    kernels = {"Gram": "Gram kernel", "products": "product kernel"}
    assert contribution.figures(workspace=Workspace()).algorithm == (kernels[expected] if compiled else expected)


def test_small_maps_of_many_channels_go_by_gram_and_large_ones_by_patches(compiled):
    small, large = ("shifted Gram kernel", "product kernel") if compiled else ("shifted Gram", "patches")
    for size, channels, expected in ((6, 512, small), (34, 8, large), (34, 64, large)):
        assert image(size, channels, channels, n=2).figures(workspace=Workspace()).algorithm == expected


def rectangle(kernel, positions, dilation=1, n=3, channels=3, out=5):
    """Positions in whole tiles of four rows, columns of any number."""
    torch.manual_seed(kernel)
    width = positions[1] + (kernel - 1) * dilation
    x = torch.randn(n, channels, positions[0] + 2, width, dtype=torch.float64)
    grads = torch.randn(n, out, *positions, dtype=torch.float64)
    return Convolution(
        x, grads, torch.Size((out, channels, 3, kernel)), Geometry((3, kernel), (1, 1), (1, dilation), 1)
    )


@pytest.mark.parametrize("budget", [None, 4000])
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (2, 3)])
@pytest.mark.parametrize("positions", [(4, 1), (8, 7), (12, 4)])
def test_winograds_tiles_give_the_gradients(positions, kernel, dilation, budget):
    convolution = rectangle(kernel, positions, dilation)
    in_full = convolution.dense().reshape(3, *convolution.shape)
    workspace = Workspace(Forced("Winograd"), budget)
    probe = Probe.draw(in_full[0], torch.Generator().manual_seed(0))
    for _ in range(2):  # again, in memory that has been used
        found = convolution.figures(probe, moments=True, workspace=workspace)
        assert budget is not None or found.algorithm == "Winograd"
        expected = torch.stack([probe.of(one) for one in in_full])
        torch.testing.assert_close(found.probes, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.squares, in_full.flatten(1).square().sum(1), rtol=1e-11, atol=0)
        torch.testing.assert_close(found.second_moment, in_full.square().sum(0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("moments", [False, True])
def test_what_winograds_sums_would_drown_is_computed_again_from_patches(moments):
    """Rows whose output gradient is nearly zero hold inputs that are millions of times larger."""
    convolution = rectangle(3, (8, 8))
    inputs, grads = convolution.inputs.float(), convolution.grads.float()
    inputs[1, :, 5] *= 1e8
    grads[1, :, 3:6] = 0
    given = Convolution(inputs, grads, convolution.shape, convolution.geometry)
    expected = Convolution(inputs.double(), grads.double(), convolution.shape, convolution.geometry).dense()
    found = given.figures(moments=moments, workspace=Workspace(Forced("Winograd")))
    torch.testing.assert_close(found.squares, expected.flatten(1).square().sum(1), rtol=1e-4, atol=0)
    if moments:
        second = expected.square().sum(0).reshape(convolution.shape)
        torch.testing.assert_close(found.second_moment.double(), second, rtol=1e-3, atol=1e-6)


def walks():
    """Kernels, strides, dilations and paddings in one to three dimensions, padding wider than the kernel among them."""
    for padding in (0, 1, 3):
        yield (3,), (2,), (1,), (padding,)
        yield (1, 1), (2, 2), (1, 1), (padding, 0)
        yield (3, 2), (1, 1), (1, 2), (padding, 1)
        yield (2, 3), (3, 2), (2, 1), (1, padding)
        yield (2, 2, 3), (1, 2, 1), (1, 1, 1), (0, 1, padding)


@pytest.mark.parametrize("room", [None, 40])
@pytest.mark.parametrize("walk", list(walks()), ids=str)
def test_padding_that_is_still_to_come_changes_no_figure(monkeypatch, walk, room):
    if room is not None:
        monkeypatch.setitem(workspace_module.CHUNK, "cpu", room)
    kernel, stride, dilation, zeros = walk
    torch.manual_seed(0)
    run = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[len(kernel) - 1]
    x = torch.randn(3, 10, *(9, 8, 7)[: len(kernel)], dtype=torch.float64)
    weight = torch.randn(4, 10, *kernel, dtype=torch.float64, requires_grad=True)
    outputs = run(x, weight, stride=stride, dilation=dilation, padding=zeros)
    grads = torch.randn_like(outputs)
    products = (outputs * grads).flatten(1).sum(1)
    in_full = torch.stack([torch.autograd.grad(one, weight, retain_graph=True)[0] for one in products])
    convolution = Convolution(x, grads, weight.shape, Geometry(kernel, stride, dilation, 1, zeros))
    probe = Probe.draw(weight.detach(), torch.Generator().manual_seed(0))
    index = torch.tensor([2, 0])
    torch.testing.assert_close(convolution.one(1), in_full[1], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(convolution.dense().reshape(in_full.shape), in_full, rtol=1e-11, atol=1e-11)
    for algorithm in CONVOLUTION:
        workspace = Workspace(Forced(algorithm))
        for given, rows in ((convolution, in_full), (convolution.borrow(index, workspace), in_full[index])):
            found = given.figures(probe, moments=True, workspace=workspace)
            torch.testing.assert_close(found.squares, rows.flatten(1).square().sum(1), rtol=1e-11, atol=0)
            torch.testing.assert_close(found.second_moment, rows.square().sum(0), rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(found.probes, torch.stack([probe.of(one) for one in rows]), rtol=1e-9, atol=1e-9)
            squares = given.figures(workspace=workspace).squares
            torch.testing.assert_close(squares, rows.flatten(1).square().sum(1), rtol=1e-11, atol=0)


def test_a_sample_whose_gradient_is_zero_has_no_length():
    convolution = rectangle(3, (8, 8))
    convolution.grads[1] = 0
    for algorithm in CONVOLUTION:
        assert convolution.figures(workspace=Workspace(Forced(algorithm))).squares[1] == 0


@pytest.mark.parametrize("alone", [0, 1 << 30], ids=["one by one", "in batches"])
@pytest.mark.parametrize("stride", [1, 2])
def test_large_gradients_are_built_one_by_one_and_are_the_same(monkeypatch, stride, alone):
    monkeypatch.setattr(patches_one_by_one, "SMALL", 0)
    monkeypatch.setattr(one_by_one, "ALONE", alone)
    monkeypatch.setattr(one_by_one, "WIDE", alone)
    monkeypatch.setattr(one_by_one, "THIN", 8)
    convolution = image(size=11, n=5, stride=stride)
    in_full = convolution.dense().reshape(5, *convolution.shape)
    probe = Probe.draw(in_full[0], torch.Generator().manual_seed(0))
    for budget in (None, 8 * 1500):
        found = convolution.figures(probe, moments=True, workspace=Workspace(Forced("patches"), budget))
        torch.testing.assert_close(found.squares, in_full.flatten(1).square().sum(1), rtol=1e-11, atol=0)
        torch.testing.assert_close(found.second_moment, in_full.square().sum(0), rtol=1e-11, atol=1e-12)
        expected = torch.stack([probe.of(one) for one in in_full])
        torch.testing.assert_close(found.probes, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("short", [0, 1 << 30], ids=["positions innermost", "channels innermost"])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_larger_than_the_cache_are_built_some_channels_at_a_time(monkeypatch, stride, short):
    monkeypatch.setattr(patches_one_by_one, "SMALL", 0)
    monkeypatch.setattr(patches_one_by_one, "SHORT", short)
    monkeypatch.setitem(workspace_module.CHUNK, "cpu", 100)
    convolution = image(size=11, n=5, stride=stride)
    in_full = convolution.dense().reshape(5, *convolution.shape)
    probe = Probe.draw(in_full[0], torch.Generator().manual_seed(0))
    workspace, fused = Workspace(Forced("patches")), FusedConvolution(convolution)
    for _ in range(2):  # again, in memory that has been used
        for contribution in (convolution, fused):
            found = contribution.figures(probe, moments=True, workspace=workspace)
            torch.testing.assert_close(found.squares, in_full.flatten(1).square().sum(1), rtol=1e-11, atol=0)
            torch.testing.assert_close(found.second_moment, in_full.square().sum(0), rtol=1e-11, atol=1e-12)
            expected = torch.stack([probe.of(one) for one in in_full])
            torch.testing.assert_close(found.probes, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(fused.summed.reshape(convolution.shape), in_full.sum(0), rtol=1e-11, atol=1e-12)


def test_a_kernel_that_leaves_threads_idle_is_reckoned_to_take_longer(compiled):
    if not compiled:
        pytest.skip("without kernels nobody asks")
    outer = Outer(torch.randn(2, 1, 32, 512), torch.randn(2, 1, 32, 512), torch.Size((512, 512)))
    convolution = image(10, 64, 64, n=2)
    found = []
    for threads in (2, 8):
        torch.set_num_threads(threads)
        linear = outer_norms.costs(outer.inputs, outer.grads, Workspace())["Gram kernel"]
        own = convolution.padded()
        costs = convolution_costs.costs(own.inputs, own.grads, own.geometry, Workspace(), moments=False)
        found.append((linear, costs["shifted Gram kernel"]))
    torch.set_num_threads(1)
    for few, many in zip(*found, strict=True):
        # The calls take what they take.
        assert 2 * few < many <= 4 * few


@pytest.mark.parametrize("way", KERNELS)
def test_what_a_kernel_cannot_read_goes_another_way(way):
    """Of the same shapes as what it was chosen for: numbers whose signs are turned lazily."""
    torch.manual_seed(0)
    for build in (lambda: long_sequence(20), image):
        contribution = build()
        expected = contribution.dense().square().flatten(1).sum(1)
        workspace = Workspace(Forced(way))
        torch.testing.assert_close(contribution.figures(workspace=workspace).squares, expected)
        contribution.inputs = torch._neg_view(contribution.inputs.neg())
        torch.testing.assert_close(contribution.figures(workspace=workspace).squares, expected)


def test_second_moments_need_the_gradients_themselves(compiled):
    ways = ("product kernel",) if compiled else ("products", "patches", "native")
    for build in (lambda: long_sequence(20), image):
        assert build().figures(moments=True, workspace=Workspace()).algorithm in ways


# -- measured choices --------------------------------------------------------------------------------------------------


def test_measuring_tries_what_may_be_fastest_once_for_each_case():
    tried = []
    choice = Measured()

    def run(name):
        tried.append(name)
        return torch.zeros(())

    costs = {"a": 1.0, "b": 2.0, "hopeless": 1000.0}
    first = choice(("case", 1), lambda: costs, run)
    assert first in ("a", "b")
    assert set(tried) == {"a", "b"}
    tried.clear()
    assert choice(("case", 1), lambda: costs, run) == first
    assert not tried
    assert choice.found == {"case 1": first}


def test_what_was_measured_is_taken_over_and_what_cannot_be_used_is_measured_again():
    choice = Measured()
    choice.restore({"case 1": "b", "case 2": "gone"})
    assert choice(("case", 1), lambda: {"a": 1.0, "b": 2.0}, lambda name: 1 / 0) == "b"
    assert choice(("case", 2), lambda: {"a": 1.0}, lambda name: torch.zeros(())) == "a"


def tokens_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def windows(scope, model, optimizer, count):
    torch.manual_seed(1)
    for _ in range(count):
        model(torch.randn(4, 5, 6)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_measured_choices_are_saved_with_the_state_and_restored(compiled):
    model, optimizer = tokens_model()
    with gradscope.watch(model, optimizer, tune=True) as scope:
        windows(scope, model, optimizer, 2)
        state = scope.state_dict()
    assert len(state["algorithms"]) == 2
    assert set(state["algorithms"].values()) <= {*OUTER, *(KERNELS if compiled else ())}
    swapped = {case: "products" if name == "Gram" else "Gram" for case, name in state["algorithms"].items()}
    model, optimizer = tokens_model()
    with gradscope.watch(model, optimizer, tune=True) as scope:
        scope.load_state_dict({**state, "algorithms": swapped})
        windows(scope, model, optimizer, 1)
        rules = {scope.last.coverage[name].rule for name in ("0.weight", "2.weight")}
    assert rules == {f"linear ({name})" for name in swapped.values()}


def test_without_tuning_nothing_is_timed_and_a_tuned_state_is_read_all_the_same():
    model, optimizer = tokens_model()
    with gradscope.watch(model, optimizer) as scope:
        windows(scope, model, optimizer, 1)
        state = scope.state_dict()
        assert state["algorithms"] == {}
        scope.load_state_dict({**state, "algorithms": {"outer": "Gram"}})
        without = {key: value for key, value in state.items() if key != "algorithms"}
        scope.load_state_dict(without)  # as written before there were any


def test_algorithms_that_are_no_mapping_are_refused():
    model, optimizer = tokens_model()
    with gradscope.watch(model, optimizer) as scope:
        windows(scope, model, optimizer, 1)
        with pytest.raises(gradscope.errors.StateMismatchError):
            scope.load_state_dict({**scope.state_dict(), "algorithms": 3})


def test_two_runs_by_the_cost_model_give_the_same_bits():
    found = []
    for _ in range(2):
        model, optimizer = tokens_model()
        with gradscope.watch(model, optimizer, moments=True) as scope:
            windows(scope, model, optimizer, 2)
            found.append(scope.last)
    for name, stats in found[0].parameters.items():
        assert torch.equal(stats.sample_norms, found[1].parameters[name].sample_norms)
        assert torch.equal(stats.variance, found[1].parameters[name].variance)


@pytest.mark.parametrize(("samples", "positions"), [(3, 5), (130, 131), (2, 60)])
def test_weights_that_share_a_factor_have_the_figures_of_weights_alone(samples, positions):
    """The shared Gram blocks are in pieces of samples and strips of rows, and not all of them are kept."""
    torch.manual_seed(2)
    grads = torch.randn(samples, 1, positions, 7)
    shared = SharedBlocks()
    for width in (6, 5, 4):
        inputs = torch.randn(samples, 1, positions, width)
        workspace = Workspace(Forced("Gram"))
        found = Outer(inputs, grads, torch.Size((7, width)), shared).figures(workspace=workspace)
        alone = Outer(inputs, grads, torch.Size((7, width))).figures(workspace=workspace)
        assert found.algorithm == "Gram"
        assert torch.equal(found.squares, alone.squares)


def test_blocks_are_shared_by_factors_that_are_what_was_read_and_by_no_others():
    read, shared = torch.randn(2, 6, 6), SharedBlocks()
    assert shared.serves(read.reshape(2, 1, 6, 6), read)
    assert shared.serves(read.detach().unsqueeze(1), read)
    assert not shared.serves(read.mT.unsqueeze(1), read)
    assert not shared.serves((read * 2).unsqueeze(1), read)
    assert not shared.serves(read[:1].unsqueeze(1), read)
    assert not shared.serves(read.view(2, 2, 3, 6), read)
