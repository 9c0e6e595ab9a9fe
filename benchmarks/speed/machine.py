"""Where and with what a result was measured."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import torch

DISTRIBUTIONS = (
    "torch", "torch-gradscope", "backpack-for-pytorch", "opacus", "gns-pytorch", "torchjd", "asdfghjkl", "transformers",
)  # fmt: skip


def machine(device: torch.device) -> dict[str, str]:
    """Processor or GPU, threads, and versions of what is installed."""
    found = {"device": _device_name(device), "python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _device_name(device: torch.device) -> str:
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name(device)
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {torch.get_num_threads()} threads"
