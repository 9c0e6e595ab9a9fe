"""What gradscope costs in other people's loops: median step and peak memory, watched against alone, as a table.

    python benchmarks/trainers_cost.py lightning transformers accelerate [--memory]

A Llama of 4 layers, 256 wide, sequences of 64 characters of real text, 4 at once. Fits with and without gradscope take turns in
one process; a step is what lies between two steps of the optimizer, the trainer's own work and its logging included. Memory is
the peak of the resident set above the built model, each in a process of its own.
"""

import argparse
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pydoc_data.topics import topics

import torch

STEPS, TURNS, N, T = 19, 2, 4, 64

#: Name → options of the callback; None is a fit without gradscope.
SETTINGS = {
    "alone": None,
    "as it comes": {},
    "every 16th window": {"every": 16},
    "moments, logged at each step": {"moments": True, "log_every": 1},
}


def build():
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        vocab_size=128,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)


def sequences(steps):
    text = "".join(topics[name] for name in sorted(topics))
    codes = torch.tensor([min(ord(letter), 127) for letter in text]).unfold(0, T, T)
    return codes[torch.arange(steps * N) % len(codes)]


class Clock:
    """Times at which an optimizer has stepped."""

    def __init__(self, optimizer):
        self.times = []
        optimizer.register_step_post_hook(lambda *args: self.times.append(time.perf_counter()))

    def steps(self):
        """Seconds between steps; the first two are warm-up, and the first has a guard in it."""
        return [after - before for before, after in zip(self.times[1:], self.times[2:], strict=False)]


def lightning(model, options, folder, steps):
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import TensorBoardLogger

    from gradscope.integrations.lightning import GradscopeCallback

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model

        def training_step(self, letters, i):
            loss = self.model(input_ids=letters, labels=letters).loss
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-4)
            self.clock = Clock(optimizer)
            return optimizer

    module = Module()
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=TensorBoardLogger(folder), log_every_n_steps=10,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[] if options is None else [GradscopeCallback(**options)],
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(sequences(steps), batch_size=N, shuffle=True)
    return lambda: (trainer.fit(module, loader), module.clock.steps())[1]


def transformers(model, options, folder, steps):
    import transformers as hf

    from gradscope.integrations.transformers import GradscopeCallback

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    clock = Clock(optimizer)
    args = hf.TrainingArguments(
        output_dir=folder, use_cpu=True, report_to=["tensorboard"], per_device_train_batch_size=N, num_train_epochs=1,
        logging_steps=10, disable_tqdm=True, save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in sequences(steps)]
    callbacks = [] if options is None else [GradscopeCallback(**options)]
    trainer = hf.Trainer(model=model, args=args, train_dataset=data, optimizers=(optimizer, None), callbacks=callbacks)
    trainer.remove_callback(hf.PrinterCallback)
    return lambda: (trainer.train(), clock.steps())[1]


def accelerate(model, options, folder, steps):
    from accelerate import Accelerator

    from gradscope.integrations.accelerate import watch

    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=folder)
    accelerator.init_trackers("run")
    bare = torch.optim.AdamW(model.parameters(), lr=1e-4)
    clock = Clock(bare)
    loader = torch.utils.data.DataLoader(sequences(steps), batch_size=N, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, bare, loader)

    def run():
        scope = None if options is None else watch(accelerator, model, optimizer, **options)
        for i, letters in enumerate(loader):
            with accelerator.accumulate(model):
                loss = model(input_ids=letters, labels=letters).loss
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            if i % 10 == 9:
                accelerator.log({"loss": loss.item()}, step=i)
        if scope is not None:
            scope.close()
        accelerator.end_training()
        return clock.steps()

    return run


TRAINERS = {"lightning": lightning, "transformers": transformers, "accelerate": accelerate}


def timed(trainer):
    """Setting → seconds of all steps, fits taking turns."""
    found = {name: [] for name in SETTINGS}
    for turn in range(TURNS + 1):
        for name, options in SETTINGS.items():
            with tempfile.TemporaryDirectory() as folder:
                # The first turn warms up.
                steps = TRAINERS[trainer](build(), options, folder, STEPS if turn else 3)()
            found[name] += steps if turn else []
    return found


def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(key))


def peak(trainer, name):
    """Megabytes above the built model, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        run = TRAINERS[trainer](build(), SETTINGS[name], folder, 4)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before = status("VmRSS")
        run()
        return status("VmHWM") - before


def speed(trainer):
    times = timed(trainer)
    alone = times["alone"]
    for name, steps in times.items():
        median = statistics.median(steps)
        ratios = median / statistics.median(alone), statistics.mean(steps) / statistics.mean(alone)
        yield f"| {trainer} | {name} | {1000 * median:.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} |"


def memory(trainer):
    for name in SETTINGS:
        command = [sys.executable, __file__, trainer, "--peak", name]
        megabytes = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
        yield f"| {trainer} | {name} | {megabytes:.0f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trainers", nargs="+", choices=TRAINERS)
    parser.add_argument("--peak", choices=SETTINGS, help="peak memory of one setting alone")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if asked.peak:
        print(peak(asked.trainers[0], asked.peak))
        return
    columns = ["peak, MB"] if asked.memory else ["median step, ms", "ratio", "ratio of means"]
    print("| trainer | gradscope |", " | ".join(columns), "|")
    print("|---" * (2 + len(columns)) + "|")
    for trainer in asked.trainers:
        for line in memory(trainer) if asked.memory else speed(trainer):
            print(line, flush=True)


if __name__ == "__main__":
    main()
