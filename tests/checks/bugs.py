"""The catalogue of planted bugs: name -> (cause, kind of world, function that makes (step, loss_fn))."""

import torch
from torch import nn
from torch.nn import functional as F

from tests.checks.worlds import NOMINAL, norm_of

BUGS = {}


def bug(cause, kind="mean", also=()):
    def register(make):
        BUGS[make.__name__] = (cause, kind, make, also)
        return make

    return register


@bug("not divided")
def means_added_up(w):
    def step(model, micro_batches):
        for b in micro_batches:
            w.mean(model, b).backward()

    return step, w.mean


@bug("not divided")
def means_added_up_with_optimizer(w):
    optimizer = w.sgd(momentum=0.9)

    def step(model, micro_batches):
        for b in micro_batches:
            w.mean(model, b).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@bug("not divided")
def sums_added_up(w):
    def step(model, micro_batches):
        for b in micro_batches:
            w.sum(model, b).backward()

    return step, w.mean


@bug("not divided", "tokens")
def token_sums_added_up(w):
    def step(model, micro_batches):
        for b in micro_batches:
            w.sum(model, b).backward()

    return step, w.mean


@bug("not divided", "tokens")
def token_means_added_up(w):
    def step(model, micro_batches):
        for b in micro_batches:
            w.mean(model, b).backward()

    return step, w.mean


@bug("not divided", "dropout")
def means_added_up_under_dropout(w):
    return means_added_up(w)


@bug("not divided", "batchnorm")
def means_added_up_with_batchnorm(w):
    return means_added_up(w)


@bug("not divided", "one parameter")
def means_added_up_in_a_model_of_one_parameter(w):
    return means_added_up(w)


@bug("not divided")
def means_added_up_then_clipped(w):
    optimizer, limit = torch.optim.AdamW(w.model.parameters()), norm_of(w) / 3.3

    def step(model, micro_batches):
        optimizer.zero_grad()
        for b in micro_batches:
            w.mean(model, b).backward()
        nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()

    return step, w.mean


@bug("not divided")
def means_added_up_in_a_closure(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        def closure():
            optimizer.zero_grad()
            losses = []
            for b in micro_batches:
                loss = w.mean(model, b)
                loss.backward()
                losses.append(loss.detach())
            return sum(losses)

        optimizer.step(closure)

    return step, w.mean


@bug("not divided")
def own_buffers_never_divided(w):
    def step(model, micro_batches):
        buffers = [torch.zeros_like(p) for p in model.parameters()]
        for b in micro_batches:
            model.zero_grad()
            w.mean(model, b).backward()
            for buffer, p in zip(buffers, model.parameters(), strict=True):
                buffer += p.grad
        for buffer, p in zip(buffers, model.parameters(), strict=True):
            p.grad = buffer

    return step, w.mean


@bug("not divided")
def with_a_scaler_not_divided(w):
    optimizer, scaler = w.sgd(), torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step(model, micro_batches):
        for b in micro_batches:
            scaler.scale(w.mean(model, b)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step, w.mean


@bug("not divided")
def under_autocast_not_divided(w):
    def step(model, micro_batches):
        for b in micro_batches:
            with torch.autocast("cpu", torch.bfloat16):
                loss = w.mean(model, b)
            loss.backward()

    return step, w.mean


@bug("divided twice")
def divided_by_the_framework_and_by_hand(w):
    def step(model, micro_batches):
        for b in micro_batches:
            (w.share(model, b, micro_batches) / len(micro_batches)).backward()

    return step, w.mean


@bug("divided twice")
def accelerate_and_by_hand(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        k = len(micro_batches)
        for b in micro_batches:
            loss = w.mean(model, b) / k
            (loss / k).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@bug("divided twice")
def divided_at_the_end_too(w):
    def step(model, micro_batches):
        for b in micro_batches:
            w.share(model, b, micro_batches).backward()
        for p in model.parameters():
            p.grad /= len(micro_batches)

    return step, w.mean


@bug("divided twice")
def a_mean_divided_by_samples_again(w):
    def step(model, micro_batches):
        for b in micro_batches:
            (w.share(model, b, micro_batches) / w.total(micro_batches)).backward()

    return step, w.mean


@bug("divided twice")
def a_sum_divided_by_the_count(w):
    def step(model, micro_batches):
        for b in micro_batches:
            (w.sum(model, b) / len(micro_batches)).backward()

    return step, w.sum


@bug("mean of means")
def mean_of_means(w):
    def step(model, micro_batches):
        for b in micro_batches:
            (w.mean(model, b) / len(micro_batches)).backward()

    return step, w.mean


@bug("mean of means", "tokens")
def token_means_averaged(w):
    optimizer = torch.optim.AdamW(w.model.parameters())

    def step(model, micro_batches):
        for b in micro_batches:
            (w.mean(model, b) / len(micro_batches)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@bug("mean of means", "tokens")
def token_means_weighted_by_samples(w):
    def step(model, micro_batches):
        n = sum(w.size(b) for b in micro_batches)
        for b in micro_batches:
            (w.mean(model, b) * (w.size(b) / n)).backward()

    return step, w.mean


@bug("mean of means")
def mean_of_means_in_own_buffers(w):
    def step(model, micro_batches):
        parameters = list(model.parameters())
        grads = [torch.autograd.grad(w.mean(model, b), parameters) for b in micro_batches]
        for p, *parts in zip(parameters, *grads, strict=True):
            p.grad = torch.stack(parts).mean(0)

    return step, w.mean


@bug("short window")
def always_divided_by_four(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        for b in micro_batches:
            (w.mean(model, b) / NOMINAL).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@bug("short window")
def sums_divided_by_the_nominal_batch(w):
    def step(model, micro_batches):
        for b in micro_batches:
            (w.sum(model, b) / 32).backward()

    return step, w.mean


@bug("zero_grad inside window")
def zero_grad_in_the_micro_loop(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        for b in micro_batches:
            optimizer.zero_grad()
            w.share(model, b, micro_batches).backward()
        optimizer.step()

    return step, w.mean


@bug("zero_grad inside window")
def zeros_in_the_micro_loop_without_optimizer(w):
    def step(model, micro_batches):
        for b in micro_batches:
            model.zero_grad(set_to_none=False)
            w.share(model, b, micro_batches).backward()

    return step, w.mean


@bug("zero_grad inside window")
def zero_grad_before_the_step(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        for b in micro_batches:
            w.share(model, b, micro_batches).backward()
        optimizer.zero_grad()
        optimizer.step()

    return step, w.mean


@bug("missing zero_grad")
def no_zero_grad(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        for b in micro_batches:
            w.share(model, b, micro_batches).backward()
        optimizer.step()

    return step, w.mean


@bug("missing zero_grad")
def no_zero_grad_with_adam_and_clipping(w):
    optimizer, limit = torch.optim.Adam(w.model.parameters()), norm_of(w) / 2.3

    def step(model, micro_batches):
        for b in micro_batches:
            w.share(model, b, micro_batches).backward()
        nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()

    return step, w.mean


@bug("missing zero_grad")
def only_one_of_two_optimizers_cleared(w):
    parameters = list(w.model.parameters())
    optimizers = [torch.optim.SGD(part, lr=1e-3 / w.scale) for part in (parameters[:2], parameters[2:])]

    def step(model, micro_batches):
        for b in micro_batches:
            w.share(model, b, micro_batches).backward()
        for optimizer in optimizers:
            optimizer.step()
        optimizers[0].zero_grad()

    return step, w.mean


@bug("missing zero_grad")
def own_buffers_never_cleared(w):
    optimizer, buffers = w.sgd(), [torch.zeros_like(p, dtype=torch.float64) for p in w.model.parameters()]
    before = [None]

    def step(model, micro_batches):
        for b in micro_batches:
            w.share(model, b, micro_batches).backward()
        optimizer.step()
        for p in model.parameters():
            p.grad = p.grad.clone()  # kept, as gradient accumulation plugins do

    del buffers, before
    return step, w.mean


@bug("stepped too early")
def steps_at_i_modulo_k_is_zero(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        k = len(micro_batches)
        for i, b in enumerate(micro_batches):
            w.share(model, b, micro_batches).backward()
            if i % k == 0:
                optimizer.step()
                optimizer.zero_grad()

    return step, w.mean


@bug("stepped too early")
def steps_before_the_last_micro_batch(w):
    optimizer = torch.optim.Adam(w.model.parameters())

    def step(model, micro_batches):
        optimizer.zero_grad()
        for i, b in enumerate(micro_batches):
            if i == len(micro_batches) - 1:
                optimizer.step()
            w.share(model, b, micro_batches).backward()

    return step, w.mean


@bug("parameters changed inside window")
def steps_at_every_micro_batch(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        for b in micro_batches:
            w.share(model, b, micro_batches).backward()
            optimizer.step()
            optimizer.zero_grad()

    return step, w.mean


@bug("parameters changed inside window")
def updates_by_hand_at_every_micro_batch(w):
    def step(model, micro_batches):
        for b in micro_batches:
            w.share(model, b, micro_batches).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 / w.scale * p.grad

    return step, w.mean


@bug("parameters changed inside window")
def weights_averaged_between_micro_batches(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        for b in micro_batches:
            w.share(model, b, micro_batches).backward()
            for p in model.parameters():
                p.data.mul_(0.9)
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


def l2(w, model):
    return 0.05 * w.scale * sum(p.square().sum() for p in model.parameters())


@bug("regularizer per micro-step")
def l2_at_every_micro_step(w):
    def step(model, micro_batches):
        for b in micro_batches:
            (w.share(model, b, micro_batches) + l2(w, model)).backward()

    return step, lambda model, batch: w.mean(model, batch) + l2(w, model)


@bug("regularizer per micro-step")
def l2_that_the_loss_does_not_have(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        for b in micro_batches:
            (w.share(model, b, micro_batches) + l2(w, model)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@bug("regularizer per micro-step")
def l1_at_every_micro_step(w):
    def l1(model):
        return 0.05 * w.scale * sum(p.abs().sum() for p in model.parameters())

    def step(model, micro_batches):
        for b in micro_batches:
            w.share(model, b, micro_batches).backward()
            l1(model).backward()

    return step, lambda model, batch: w.mean(model, batch) + l1(model)


@bug("micro-batch repeated")
def last_micro_batch_twice(w):
    def step(model, micro_batches):
        for b in [*micro_batches, micro_batches[-1]]:
            w.share(model, b, micro_batches).backward()

    return step, w.mean


@bug("micro-batch repeated", also=("micro-batch dropped",))
def iterator_not_advanced(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        for _ in micro_batches:
            w.share(model, micro_batches[0], micro_batches).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@bug("micro-batch dropped")
def last_micro_batch_left_out(w):
    def step(model, micro_batches):
        for b in micro_batches[: max(1, len(micro_batches) - 1)]:
            w.share(model, b, micro_batches).backward()

    return step, w.mean


@bug("micro-batch dropped", "tokens")
def first_micro_batch_left_out(w):
    optimizer = torch.optim.AdamW(w.model.parameters())

    def step(model, micro_batches):
        for i, b in enumerate(micro_batches):
            loss = w.share(model, b, micro_batches)
            if i > 0 or len(micro_batches) == 1:
                loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@bug("clipped per micro-step")
def clipped_at_every_micro_step(w):
    optimizer, limit = w.sgd(), norm_of(w) / 4.7

    def step(model, micro_batches):
        for b in micro_batches:
            w.share(model, b, micro_batches).backward()
            nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@bug("clipped per micro-step")
def values_clipped_at_every_micro_step(w):
    limit = norm_of(w) / 20

    def step(model, micro_batches):
        for b in micro_batches:
            w.share(model, b, micro_batches).backward()
            nn.utils.clip_grad_value_(model.parameters(), limit)

    return step, w.mean


@bug("clipped per micro-step")
def clipped_before_own_buffers(w):
    limit = norm_of(w) / 9.7

    def step(model, micro_batches):
        buffers = [torch.zeros_like(p) for p in model.parameters()]
        for b in micro_batches:
            model.zero_grad()
            w.share(model, b, micro_batches).backward()
            nn.utils.clip_grad_norm_(model.parameters(), limit)
            for buffer, p in zip(buffers, model.parameters(), strict=True):
                buffer += p.grad
        for buffer, p in zip(buffers, model.parameters(), strict=True):
            p.grad = buffer

    return step, w.mean


@bug("clipped before unscaling")
def clipped_before_the_scaler_unscales(w):
    optimizer, scaler = w.sgd(), torch.amp.GradScaler("cpu", init_scale=65536.0)
    limit = norm_of(w) * 3.1

    def step(model, micro_batches):
        for b in micro_batches:
            scaler.scale(w.share(model, b, micro_batches)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), limit)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step, w.mean


@bug("clipped before unscaling")
def clipped_before_unscaling_by_hand(w):
    limit = norm_of(w) * 3.1

    def step(model, micro_batches):
        for b in micro_batches:
            (128.0 * w.share(model, b, micro_batches)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), limit)
        for p in model.parameters():
            p.grad /= 128.0

    return step, w.mean


@bug("clipped before unscaling")
def values_clipped_before_division(w):
    limit = norm_of(w)

    def step(model, micro_batches):
        for b in micro_batches:
            w.sum(model, b).backward()
        nn.utils.clip_grad_value_(model.parameters(), limit)
        for p in model.parameters():
            p.grad = p.grad / w.total(micro_batches)

    return step, w.mean


@bug("never unscaled")
def optimizer_steps_instead_of_the_scaler(w):
    optimizer, scaler = w.sgd(), torch.amp.GradScaler("cpu", init_scale=256.0)

    def step(model, micro_batches):
        for b in micro_batches:
            scaler.scale(w.share(model, b, micro_batches)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@bug("never unscaled")
def scaled_by_hand_and_left_so(w):
    optimizer, limit = torch.optim.AdamW(w.model.parameters()), norm_of(w) / 1.7

    def step(model, micro_batches):
        for b in micro_batches:
            (1000.0 * w.share(model, b, micro_batches)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@bug("scale changed")
def scaler_updated_at_every_micro_step(w):
    optimizer = w.sgd()
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1)

    def step(model, micro_batches):
        for b in micro_batches:
            scaler.scale(w.share(model, b, micro_batches)).backward()
            scaler.unscale_(optimizer)
            scaler.update()
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@bug("scale changed")
def scale_doubled_inside_the_window(w):
    def step(model, micro_batches):
        scale = 16.0
        for b in micro_batches:
            scale *= 2
            (scale * w.share(model, b, micro_batches)).backward()
        for p in model.parameters():
            p.grad /= scale

    return step, w.mean


@bug("averaged over ranks twice")
def divided_by_the_world_size_too(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        for b in micro_batches:
            (w.share(model, b, micro_batches) / 8).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@bug("averaged over ranks twice")
def gradients_divided_by_the_world_size(w):
    def step(model, micro_batches):
        for b in micro_batches:
            w.share(model, b, micro_batches).backward()
        for p in model.parameters():
            p.grad.div_(2)

    return step, w.mean


@bug("samples interact", "batchnorm")
def batchnorm_in_training_mode(w):
    optimizer = w.sgd()

    def step(model, micro_batches):
        for b in micro_batches:
            w.share(model, b, micro_batches).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@bug("samples interact")
def contrastive_loss(w):
    def loss(model, batch):
        z = F.normalize(model(batch[0]).double(), dim=1)
        return w.scale * F.cross_entropy(z @ z.T * 5, torch.arange(len(z)))

    def step(model, micro_batches):
        for b in micro_batches:
            (loss(model, b) * (w.size(b) / sum(w.size(m) for m in micro_batches))).backward()

    return step, loss


@bug("random")
def inputs_augmented_with_noise(w):
    def step(model, micro_batches):
        for x, y in micro_batches:
            w.share(model, (x + 0.1 * torch.randn_like(x), y), micro_batches).backward()

    return step, w.mean


@bug("random")
def loss_with_noise(w):
    def loss(model, batch):
        x, y = batch
        return w.mean(model, (x + 0.1 * torch.randn_like(x), y))

    def step(model, micro_batches):
        for b in micro_batches:
            (loss(model, b) * (w.size(b) / sum(w.size(m) for m in micro_batches))).backward()

    return step, loss


@bug("scheduler per micro-step")
def scheduler_steps_with_every_micro_batch(w):
    optimizer = w.sgd()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)

    def step(model, micro_batches):
        for b in micro_batches:
            w.share(model, b, micro_batches).backward()
            scheduler.step()
        optimizer.step()
        optimizer.zero_grad()

    return step, w.mean


@bug("scheduler per micro-step")
def warmup_by_hand_with_every_micro_batch(w):
    optimizer = torch.optim.AdamW(w.model.parameters(), lr=1e-5)

    def step(model, micro_batches):
        optimizer.zero_grad()
        for b in micro_batches:
            w.share(model, b, micro_batches).backward()
            optimizer.param_groups[0]["lr"] *= 1.1
        optimizer.step()

    return step, w.mean
