"""The whole grid of planted bugs and right loops: what is missed, misnamed, or falsely alarmed, by name.

    python benchmarks/checks_grid.py            # all, about 25 minutes on one core
    python benchmarks/checks_grid.py 7          # every seventh case

Every bug and every right loop of tests/checks, at five gradient scales, in float32 and bfloat16, on the default splits (even
and uneven) and on one uneven split that the user gives; the loops that fit every model also on a zoo of others.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from gradscope.checks import diagnose
from tests.checks.bugs import BUGS
from tests.checks.right_loops import RIGHT
from tests.checks.worlds import ZOO, World

SCALES = (1e-8, 1e-4, 1.0, 1e3, 1e6)
DTYPES = (torch.float32, torch.bfloat16)
SPLITS = (None, [3, 5, 2])
#: Loops that reach into no particular layer.
GENERAL_RIGHT = (
    "shares_without_an_optimizer", "sgd_with_momentum", "adamw", "sums_divided_at_the_end", "cleared_to_zeros",
    "clipped_at_the_end", "grad_scaler_unscaled_and_clipped", "closure_of_sgd", "own_buffers_in_float64",
    "autograd_grad_and_assignment",
)  # fmt: skip
GENERAL_BUGS = (
    "means_added_up_with_optimizer", "accelerate_and_by_hand", "mean_of_means", "always_divided_by_four",
    "zero_grad_in_the_micro_loop", "no_zero_grad", "steps_at_i_modulo_k_is_zero", "l2_at_every_micro_step",
    "last_micro_batch_twice", "last_micro_batch_left_out", "clipped_at_every_micro_step",
    "clipped_before_the_scaler_unscales", "optimizer_steps_instead_of_the_scaler", "divided_by_the_world_size_too",
    "scheduler_steps_with_every_micro_batch",
)  # fmt: skip


def loops():
    """(name, cause, also, kind of world, maker): cause "right" for right loops."""
    for name, (cause, kind, make, also) in BUGS.items():
        yield name, cause, also, kind, make
    for name, (kind, make) in RIGHT.items():
        yield name, "right", (), kind, make
    for kind in ZOO:
        for name in GENERAL_BUGS:
            yield f"{name} ({kind})", BUGS[name][0], (), kind, BUGS[name][2]
        for name in GENERAL_RIGHT:
            yield f"{name} ({kind})", "right", (), kind, RIGHT[name][1]


def main() -> int:
    """Run the grid, or every n-th case of it, and print the counts and every miss."""
    stride, number = int(sys.argv[1]) if len(sys.argv) > 1 else 1, 0
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    counts, distinct, notes, start = Counter(), Counter(), [], time.time()
    for name, cause, _also, kind, make in loops():
        distinct["right loops" if cause == "right" else "planted bugs"] += 1
        for scale in SCALES:
            for dtype in DTYPES:
                for split in SPLITS:
                    number += 1
                    if number % stride:
                        continue
                    world = World(scale=scale, dtype=dtype, kind=kind)
                    step, loss_fn = make(world)
                    found = diagnose(step, world.model, loss_fn, world.batch, split=split)
                    where = f"{name}, scale {scale:g}, {str(dtype)[6:]}, split {split or 'default'}"
                    if cause == "right":
                        counts["right, no alarm" if found.right else "right, FALSE ALARM"] += 1
                        notes += [] if found.right else [f"false alarm ({found.cause}): {where}"]
                        continue
                    named = found.cause == cause or cause in found.also
                    kind_of = "named" if found.cause == cause else "named second" if named else "caught, misnamed"
                    kind_of = "MISSED" if found.right else kind_of
                    counts[f"bug, {kind_of}"] += 1
                    notes += [] if found.cause == cause else [f"{kind_of} ({cause} -> {found.cause}): {where}"]
    print(
        f"{distinct['planted bugs']} planted bugs, {distinct['right loops']} right loops, {time.time() - start:.0f} s"
    )
    for what, count in sorted(counts.items()):
        print(f"{count:6} {what}")
    print("\n".join(notes))
    return int(any("MISSED" in what or "ALARM" in what for what in counts))


if __name__ == "__main__":
    sys.exit(main())
