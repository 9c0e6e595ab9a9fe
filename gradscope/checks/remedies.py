"""What to change for each cause, for someone who has never heard of gradscope."""

from __future__ import annotations

from gradscope.checks.diagnosis import Cause

REMEDIES: dict[Cause, str] = {
    "right": "",
    "not divided": """\
Divide each micro-batch's loss by the number of micro-batches before backward():
    loss = loss_fn(model, micro_batch) / len(micro_batches)
    loss.backward()
Where micro-batches differ in size, weigh each by its share instead: * samples_in_it / samples_in_window. Where the loss
is a sum, divide it by the number of samples (or tokens) in the whole window.""",
    "divided twice": """\
Divide once. Accelerate (accelerator.backward), Lightning (accumulate_grad_batches), transformers' Trainer and DeepSpeed
divide the loss already: leave out your own division, or a second mean over the samples. Where loss_fn is a sum, nothing
is divided at all.""",
    "mean of means": """\
The mean of the micro-batches' means is not the mean over all samples (or tokens) when the micro-batches differ in what
they hold. Add up sums, and divide once by what the whole window holds:
    loss = loss_sum(model, micro_batch) / total_in_window      # reduction="sum"; total of samples, or of tokens that count
    loss.backward()""",
    "short window": """\
Divide by what this window holds, not by a constant: the last window of an epoch is often shorter.
    loss = loss_fn(model, micro_batch) / len(micro_batches)    # of this window
Or drop the incomplete window.""",
    "zero_grad inside window": """\
Clear the gradient once per window, right after the optimizer's step, and nowhere between the micro-batches:
    for micro_batch in micro_batches:
        (loss_fn(model, micro_batch) / len(micro_batches)).backward()
    optimizer.step()
    optimizer.zero_grad()""",
    "missing zero_grad": """\
Call optimizer.zero_grad() (or model.zero_grad(), where the optimizer does not hold every parameter) after each
optimizer.step(), before the next window's first backward().""",
    "stepped too early": """\
Step after the window's last backward. With a counter that starts at 0, the test is (i + 1) % k == 0, not i % k == 0.""",
    "regularizer per micro-step": """\
A penalty on the weights belongs to the window once. Divide it with the loss by the number of micro-batches, add it in
one micro-step only, or use the optimizer's weight_decay.""",
    "micro-batch repeated": """\
Run each micro-batch of the window through forward and backward exactly once: look for an index or an iterator that is
not advanced, or for a second backward on the same loss.""",
    "micro-batch dropped": """\
Run each micro-batch of the window through forward and backward exactly once: look for a break, a slice or a `continue`
that skips one, or for a backward that is never called.""",
    "clipped per micro-step": """\
Clip once per window, after its last backward and before optimizer.step(); the accumulated gradient is what has a norm.""",
    "clipped before unscaling": """\
Unscale first, then clip:
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    scaler.step(optimizer)
    scaler.update()
Likewise divide a sum by its count before it is clipped.""",
    "scale changed": """\
Keep the loss scale fixed while a window accumulates: call scaler.unscale_() and scaler.update() once per window, after
its last backward.""",
    "never unscaled": """\
Divide the loss scale out before the step: scaler.step(optimizer) does it, optimizer.step() does not. A constant factor
on the loss that loss_fn does not have looks the same.""",
    "averaged over ranks twice": """\
DistributedDataParallel averages gradients over ranks. A loss that is divided by the number of samples of all ranks must
be multiplied by the number of ranks, or be a mean over this rank's samples. A constant divisor that loss_fn does not
have looks the same.""",
    "parameters changed inside window": """\
Nothing may change the parameters between a window's first forward and its last backward: call optimizer.step() (or
update an average, or write to .data) only after the last one.""",
    "samples interact": """\
With this model or loss, the gradient of a whole minibatch is not a sum over its parts, so no accumulation can give it
(BatchNorm in training mode uses each micro-batch's own statistics; contrastive losses compare samples with each other).
Use GroupNorm or LayerNorm, or BatchNorm in eval mode: model.eval() before this check judges the loop alone.""",
    "random": """\
The gradient changes with the random state beyond dropout modules, so it cannot be compared. Fix what is drawn for the
check: pass augmented data, seed inside the step and in loss_fn, or set noise to zero.""",
    "scheduler per micro-step": """\
Call scheduler.step() once per optimizer step, after it: inside the same `if` as optimizer.step().""",
    "low precision": """\
Accumulate in float32: keep the parameters (and so .grad) in float32 and use autocast for the forward, or add up the
micro-batches' gradients in float32 buffers. In float16, scale the loss with a GradScaler.""",
    "unknown": """\
Compare one micro-batch at a time: split=[n] runs the window as a single micro-batch, which should be right.""",
}  # fmt: skip
