"""``gradscope demo``: train on real data, one line added, and read the report."""

from __future__ import annotations

import argparse
import inspect
import sys
from typing import TYPE_CHECKING

from gradscope.commands.arguments import positive
from gradscope.commands.command import Command
from gradscope.demo.tasks import TASKS
from gradscope.errors import InvalidArgumentError

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor
    from torch.utils.data import DataLoader

    from gradscope.demo.task import Problem


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "tasks (default: digits)\n" + "\n".join(
        f"  {name:<9} {task.about} ({task.steps} steps of {task.accumulate} x {task.micro_batch})"
        for name, task in TASKS.items()
    )
    parser.add_argument("--task", choices=tuple(TASKS), default="digits", help="what to train (see below)")
    parser.add_argument("--steps", type=positive, metavar="N", help="optimizer steps")
    parser.add_argument("--micro-batch", type=positive, metavar="N", help="samples in one forward and backward")
    parser.add_argument("--accumulate", type=positive, metavar="N", help="micro-steps before each optimizer step")
    parser.add_argument("--seed", type=int, default=0, help="of the model, of the split and of the order (default: 0)")
    parser.add_argument("--log", metavar="FILE", help="write one JSON line per window, for `gradscope report FILE`")
    parser.add_argument("--show-code", action="store_true", help="show the training loop that is run, and stop")


def _run(arguments: argparse.Namespace) -> int:
    # Here and not above: `gradscope --help` must not wait for torch.
    import torch
    from rich.console import Console

    from gradscope.demo.loop import train
    from gradscope.demo.progress import progress

    console = Console()
    if arguments.show_code:
        _show(inspect.getsource(train), console)
        return 0
    task = TASKS[arguments.task]
    steps, micro_batch, accumulate = (
        getattr(arguments, size) or getattr(task, size) for size in ("steps", "micro_batch", "accumulate")
    )
    torch.set_num_threads(1)  # models this small are many times slower on more
    torch.manual_seed(arguments.seed)
    problem = task.problem()
    loader = _loader(problem, steps, micro_batch, accumulate)
    sizes = f"steps {steps}, accumulate {accumulate}, micro-batch {micro_batch}: effective minibatch {accumulate * micro_batch}"
    for line in (task.about, sizes):
        console.print(line, highlight=False, markup=False)
    with progress(steps) as show:
        scope = train(problem.model, problem.optimizer, problem.criterion, loader, accumulate, arguments.log, show)
    report = scope.report()
    scope.close()
    console.print(problem.score(problem.model), highlight=False, markup=False)
    console.print()
    console.print(report)
    return 0


def _loader(problem: Problem, steps: int, micro_batch: int, accumulate: int) -> DataLoader[tuple[Tensor, ...]]:
    """Just enough micro-batches for ``steps``; the samples are reshuffled each time they are used up."""
    from torch.utils.data import DataLoader, RandomSampler

    samples, window = problem.samples, micro_batch * accumulate
    if window > len(samples):
        raise InvalidArgumentError(
            f"demo: {accumulate} micro-steps of {micro_batch} are {window} samples, but there are only "
            f"{len(samples)} to draw from; repeated ones would make the noise look too small. Choose a smaller "
            "--micro-batch or --accumulate."
        )
    return DataLoader(samples, micro_batch, sampler=RandomSampler(samples, num_samples=steps * window))


def _show(code: str, console: Console) -> None:
    from rich.syntax import Syntax

    if console.is_terminal:
        console.print(Syntax(code, "python", background_color="default"))
    else:
        sys.stdout.write(code)  # as it is in the file: rich would pad its lines


DEMO = Command("train a small model on real data and print the report", _add_arguments, _run)
