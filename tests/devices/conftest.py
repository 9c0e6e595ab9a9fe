"""Tests of another device than the processor: ``make test-devices``, on the simulated one or, where there is one, a real one."""

import contextlib
import os

import pytest
import simulated
import torch

#: ``cuda``, ``mps``, or the library of the simulated device.
GIVEN = os.environ.get("GRADSCOPE_DEVICE", "")
collect_ignore_glob = [] if GIVEN else ["test_*.py"]

IS_SIMULATED = GIVEN.endswith(".so")
if IS_SIMULATED:
    simulated.start(GIVEN)


@pytest.fixture(scope="session")
def device():
    return torch.device(simulated.NAME if IS_SIMULATED else GIVEN)


#: What models are in: float32 on the simulated device is that of one that knows no more.
DTYPES = ["float32"] if GIVEN == "mps" else ["float64", "float32"]


@pytest.fixture(params=DTYPES)
def dtype(request):
    narrow = IS_SIMULATED and request.param == "float32"
    with simulated.without_float64() if narrow else contextlib.nullcontext():
        yield getattr(torch, request.param)


@pytest.fixture
def waits():
    """How often the host has waited for the device since the last call, and for what."""
    if not IS_SIMULATED:
        pytest.skip("only the simulated device counts")
    simulated.waits()
    return simulated.waits
