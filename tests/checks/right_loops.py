"""Loops that are right, each in a way that could look wrong."""

import copy

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.checks.worlds import norm_of

RIGHT = {}


def right(kind="mean"):
    def register(make):
        RIGHT[make.__name__] = (kind, make)
        return make

    return register


def accumulate(w, model, micro_batches):
    for b in micro_batches:
        w.share(model, b, micro_batches).backward()


def plain(w, optimizer):
    def step(model, micro_batches):
        accumulate(w, model, micro_batches)
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@right()
def shares_without_an_optimizer(w):
    return (lambda model, micro_batches: accumulate(w, model, micro_batches)), w.mean


@right()
def sgd_with_momentum(w):
    return plain(w, w.sgd(momentum=0.9, nesterov=True, weight_decay=0.1))


@right()
def adamw(w):
    return plain(w, torch.optim.AdamW(w.model.parameters(), lr=1e-2))


@right()
def adam_foreach(w):
    return plain(w, torch.optim.Adam(w.model.parameters(), lr=1e-2, foreach=True, amsgrad=True))


@right()
def adam_fused(w):
    return plain(w, torch.optim.Adam(w.model.parameters(), lr=1e-2, fused=True))


@right("tokens")
def tokens_divided_by_all_tokens(w):
    return plain(w, torch.optim.AdamW(w.model.parameters()))


@right("tokens")
def token_sums(w):
    def step(model, micro_batches):
        for b in micro_batches:
            w.sum(model, b).backward()

    return step, w.sum


@right()
def sums_divided_at_the_end(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        for b in micro_batches:
            w.sum(model, b).backward()
        for p in model.parameters():
            p.grad /= w.total(micro_batches)
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@right("tokens")
def token_sums_divided_at_the_end_by_assignment_then_clipped(w):
    optimizer, limit = w.sgd(), norm_of(w) / 2.9

    def step(model, micro_batches):
        optimizer.zero_grad()
        for b in micro_batches:
            w.sum(model, b).backward()
        for p in model.parameters():
            p.grad = p.grad / w.total(micro_batches)
        nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()

    return step, w.mean


@right()
def cleared_at_the_start(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        optimizer.zero_grad()
        accumulate(w, model, micro_batches)
        optimizer.step()

    return step, w.mean


@right()
def cleared_to_zeros(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        optimizer.zero_grad(set_to_none=False)
        accumulate(w, model, micro_batches)
        optimizer.step()

    return step, w.mean


@right()
def cleared_at_the_first_micro_batch(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        for i, b in enumerate(micro_batches):
            if i % len(micro_batches) == 0:
                optimizer.zero_grad()
            w.share(model, b, micro_batches).backward()
            if (i + 1) % len(micro_batches) == 0:
                optimizer.step()

    return step, w.mean


@right()
def clipped_at_the_end(w):
    optimizer, limit = w.sgd(), norm_of(w) / 3.3

    def step(model, micro_batches):
        accumulate(w, model, micro_batches)
        nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@right()
def clipped_by_value_at_the_end(w):
    limit = norm_of(w) / 20

    def step(model, micro_batches):
        accumulate(w, model, micro_batches)
        nn.utils.clip_grad_value_(model.parameters(), limit)

    return step, w.mean


@right()
def each_parameter_clipped_at_the_end(w):
    limit = norm_of(w) / 9

    def step(model, micro_batches):
        accumulate(w, model, micro_batches)
        for p in model.parameters():
            nn.utils.clip_grad_norm_([p], limit)

    return step, w.mean


@right()
def normalized_at_the_end(w):
    def step(model, micro_batches):
        accumulate(w, model, micro_batches)
        norm = nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
        for p in model.parameters():
            p.grad.mul_(0.37 / norm)

    return step, w.mean


@right()
def a_limit_that_is_never_reached(w):
    optimizer, limit = w.sgd(), norm_of(w) * 1000

    def step(model, micro_batches):
        for b in micro_batches:
            w.share(model, b, micro_batches).backward()
            nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@right()
def norm_read_for_a_log(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        for b in micro_batches:
            w.share(model, b, micro_batches).backward()
            torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@right()
def grad_scaler_unscaled_and_clipped(w):
    optimizer, scaler = w.sgd(), torch.amp.GradScaler("cpu", init_scale=2.0**12)
    limit = norm_of(w) / 2.3

    def step(model, micro_batches):
        for b in micro_batches:
            scaler.scale(w.share(model, b, micro_batches)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), limit)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step, w.mean


@right()
def grad_scaler_plain(w):
    optimizer, scaler = w.sgd(), torch.amp.GradScaler("cpu", init_scale=1000.0, growth_interval=1)

    def step(model, micro_batches):
        for b in micro_batches:
            scaler.scale(w.share(model, b, micro_batches)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step, w.mean


@right()
def grad_scaler_made_inside_the_step(w):
    def step(model, micro_batches):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        optimizer.zero_grad()
        for b in micro_batches:
            scaler.scale(w.share(model, b, micro_batches)).backward()
        scaler.step(optimizer)
        scaler.update()

    return step, w.mean


@right()
def grad_scaler_with_a_fused_optimizer(w):
    optimizer = torch.optim.AdamW(w.model.parameters(), fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)

    def step(model, micro_batches):
        for b in micro_batches:
            scaler.scale(w.share(model, b, micro_batches)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step, w.mean


@right()
def scaled_by_hand_and_unscaled(w):
    def step(model, micro_batches):
        for b in micro_batches:
            (w.share(model, b, micro_batches) * 300.0).backward()
        for p in model.parameters():
            p.grad.div_(300.0)

    return step, w.mean


@right()
def autocast_forward(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        for b in micro_batches:
            with torch.autocast("cpu", torch.bfloat16):
                loss = w.share(model, b, micro_batches)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@right()
def closure_of_sgd(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        def closure():
            optimizer.zero_grad()
            accumulate(w, model, micro_batches)
            return 0.0

        optimizer.step(closure)

    return step, w.mean


@right()
def closure_of_lbfgs(w):
    optimizer = torch.optim.LBFGS(w.model.parameters(), lr=1e-3, max_iter=4)

    def step(model, micro_batches):
        def closure():
            optimizer.zero_grad()
            losses = []
            for b in micro_batches:
                loss = w.share(model, b, micro_batches)
                loss.backward()
                losses.append(float(loss))
            return sum(losses)

        optimizer.step(closure)

    return step, w.mean


@right()
def own_buffers_in_float64(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        buffers = [torch.zeros_like(p, dtype=torch.float64) for p in model.parameters()]
        for b in micro_batches:
            model.zero_grad()
            w.share(model, b, micro_batches).backward()
            for buffer, p in zip(buffers, model.parameters(), strict=True):
                buffer += p.grad
        for buffer, p in zip(buffers, model.parameters(), strict=True):
            p.grad = buffer.to(p.dtype)
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@right()
def autograd_grad_and_assignment(w):
    optimizer = torch.optim.Adam(w.model.parameters())

    def step(model, micro_batches):
        parameters = list(model.parameters())
        parts = [torch.autograd.grad(w.share(model, b, micro_batches), parameters) for b in micro_batches]
        for p, *grads in zip(parameters, *parts, strict=True):
            p.grad = torch.stack(grads).sum(0)
        optimizer.step()

    return step, w.mean


@right()
def losses_added_and_one_backward(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        sum(w.share(model, b, micro_batches) for b in micro_batches).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@right()
def two_losses_two_backwards(w):
    def loss(model, batch, total):
        out = model(batch[0])
        return w.scale * (out - batch[1]).square().sum() / total, w.scale * out.abs().sum() / total

    def step(model, micro_batches):
        n = sum(len(b[0]) for b in micro_batches)
        for b in micro_batches:
            first, second = loss(model, b, n)
            first.backward(retain_graph=True)
            second.backward()

    return step, lambda model, batch: sum(loss(model, batch, len(batch[0])))


@right()
def micro_batches_cut_further(w):
    def step(model, micro_batches):
        for x, y in micro_batches:
            for a, b in zip(x.split(2), y.split(2), strict=True):
                w.share(model, (a, b), micro_batches).backward()

    return step, w.mean


@right()
def one_concatenated_batch(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        x, y = (torch.cat(part) for part in zip(*micro_batches, strict=True))
        w.mean(model, (x, y)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@right()
def micro_batches_in_reverse(w):
    return plain_reversed(w)


def plain_reversed(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        for b in reversed(micro_batches):
            w.share(model, b, micro_batches).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@right()
def evaluation_between_micro_batches(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        for b in micro_batches:
            w.share(model, b, micro_batches).backward()
            model.eval()
            with torch.no_grad():
                w.mean(model, w.batch if w.batch[0].dtype == next(model.parameters()).dtype else b)
            model.train()
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@right()
def saliency_between_micro_batches(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        for b in micro_batches:
            w.share(model, b, micro_batches).backward()
            x = b[0].clone().requires_grad_()
            torch.autograd.grad(model(x).sum(), x)
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@right("dropout")
def dropout_in_training_mode(w):
    return plain(w, w.sgd())


@right("dropout")
def dropout_and_model_train_in_the_step(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        model.train()
        accumulate(w, model, micro_batches)
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@right("batchnorm")
def batchnorm_in_eval_mode(w):
    w.model.eval()
    return plain(w, w.sgd())


@right("one parameter")
def one_parameter(w):
    return plain(w, w.sgd())


@right()
def l2_divided_like_the_loss(w):
    def l2(model):
        return 0.05 * w.scale * sum(p.square().sum() for p in model.parameters())

    def step(model, micro_batches):
        for b in micro_batches:
            (w.share(model, b, micro_batches) + l2(model) / len(micro_batches)).backward()

    return step, lambda model, batch: w.mean(model, batch) + l2(model)


@right()
def l1_in_the_last_micro_step(w):
    def l1(model):
        return 0.05 * w.scale * sum(p.abs().sum() for p in model.parameters())

    def step(model, micro_batches):
        accumulate(w, model, micro_batches)
        l1(model).backward()

    return step, lambda model, batch: w.mean(model, batch) + l1(model)


@right()
def scheduler_per_step(w):
    optimizer = w.sgd()
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100)

    def step(model, micro_batches):
        accumulate(w, model, micro_batches)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    return step, w.mean


@right()
def warmup_at_the_start(w):
    optimizer = torch.optim.AdamW(w.model.parameters())

    def step(model, micro_batches):
        optimizer.param_groups[0]["lr"] *= 1.1
        accumulate(w, model, micro_batches)
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@right()
def two_optimizers(w):
    parameters = list(w.model.parameters())
    optimizers = [torch.optim.SGD(parameters[:2], lr=1e-3), torch.optim.Adam(parameters[2:])]

    def step(model, micro_batches):
        accumulate(w, model, micro_batches)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step, w.mean


@right()
def only_the_head_is_optimized(w):
    optimizer = torch.optim.SGD(list(w.model.parameters())[2:], lr=1e-3)
    return plain(w, optimizer)


@right()
def frozen_parameters(w):
    for p in list(w.model.parameters())[:2]:
        p.requires_grad_(False)
    return plain(w, w.sgd())


@right()
def an_unused_layer(w):
    w.model.unused = nn.Linear(3, 3).to(w.dtype)
    w.model.forward = lambda x: w.model[2](w.model[1](w.model[0](x)))
    return plain(w, w.sgd())


@right()
def moving_average_after_the_step(w):
    optimizer, average = w.sgd(), copy.deepcopy(w.model)

    def step(model, micro_batches):
        accumulate(w, model, micro_batches)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for a, p in zip(average.parameters(), model.parameters(), strict=True):
                a.lerp_(p.to(a.dtype), 0.1)

    return step, w.mean


@right()
def update_by_hand_at_the_end(w):
    def step(model, micro_batches):
        accumulate(w, model, micro_batches)
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.01 / w.scale * p.grad
                p.grad = None

    return step, w.mean


@right()
def noise_added_at_the_end(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        accumulate(w, model, micro_batches)
        for p in model.parameters():
            p.grad += 0.01 * p.grad.norm() * torch.randn_like(p)
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@right()
def masked_at_the_end(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        accumulate(w, model, micro_batches)
        next(iter(model.parameters())).grad[0] = 0
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@right()
def two_calls_of_the_model_per_micro_batch(w):
    def loss(model, batch, total):
        return w.scale * (model(batch[0]) - model(batch[0].flip(1))).square().sum() / total

    def step(model, micro_batches):
        n = sum(len(b[0]) for b in micro_batches)
        for b in micro_batches:
            loss(model, b, n).backward()

    return step, lambda model, batch: loss(model, batch, len(batch[0]))


@right()
def checkpointed(w):
    def loss(model, batch, total):
        out = checkpoint(model, batch[0], use_reentrant=False)
        return w.scale * F.mse_loss(out, batch[1], reduction="sum") / total

    def step(model, micro_batches):
        n = sum(len(b[0]) for b in micro_batches)
        for b in micro_batches:
            loss(model, b, n).backward()

    return step, lambda model, batch: loss(model, batch, len(batch[0]))


@right()
def checkpointed_reentrant(w):
    def loss(model, batch, total):
        out = checkpoint(model, batch[0].clone().requires_grad_(), use_reentrant=True)
        return w.scale * F.mse_loss(out, batch[1], reduction="sum") / total

    def step(model, micro_batches):
        n = sum(len(b[0]) for b in micro_batches)
        for b in micro_batches:
            loss(model, b, n).backward()

    return step, lambda model, batch: loss(model, batch, len(batch[0]))


@right()
def parts_of_the_model_called(w):
    def loss(model, batch, total):
        hidden = model[1](model[0](batch[0]))
        return w.scale * F.mse_loss(model[2](hidden), batch[1], reduction="sum") / total

    def step(model, micro_batches):
        n = sum(len(b[0]) for b in micro_batches)
        for b in micro_batches:
            loss(model, b, n).backward()

    return step, lambda model, batch: loss(model, batch, len(batch[0]))
