"""A script that knows nothing of gradscope, under ``torchrun``."""

import re
import subprocess
import sys
from pathlib import Path

from tests.ranks.processes import SECONDS

SCRIPT = """
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 3)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
torch.manual_seed(dist.get_rank())
for _ in range(6):
    x, y = torch.randn(8, 20), torch.randint(3, (8,))
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
sys.stdout.write(f"trained {dist.get_rank()}\\n")  # in one piece, beside what the other rank writes
dist.destroy_process_group()
"""


def test_an_unmodified_script_gets_one_report_of_all_ranks_samples(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = subprocess.run(
        [*launcher, "-m", "gradscope", "run", str(script)], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    output = found.stdout + found.stderr
    assert found.returncode == 0, output
    assert sorted(re.findall(r"trained \d", found.stdout)) == ["trained 0", "trained 1"]
    assert len(re.findall(r"n = 16 \(2 micro-steps\)", output)) == 1, output
    assert "4/4 parameters" in output
