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


@pytest.fixture(params=["float64", "float32", "float32 at most"])
def dtype(request):
    """What a model is in; the third of a device that knows no float64."""
    if request.param != "float64":
        knows_more = GIVEN != "mps"
        if (request.param == "float32") != knows_more and not IS_SIMULATED:
            pytest.skip("the device is of the other kind")
    elif GIVEN == "mps":
        pytest.skip("the device knows no float64")
    narrow = request.param == "float32 at most" and IS_SIMULATED
    with simulated.without_float64() if narrow else contextlib.nullcontext():
        yield torch.float64 if request.param == "float64" else torch.float32


@pytest.fixture
def waits():
    """How often the host has waited for the device since the last call, and for what."""
    if not IS_SIMULATED:
        pytest.skip("only the simulated device counts")
    simulated.waits()
    return simulated.waits
