"""Every test runs on one thread: the models are tiny, and two threads are many times slower on them."""

import pytest
import torch

from gradscope.kernels import ABSENT, loaded

#: Where figures are computed: tests in these folders run with the compiled kernels, and with torch's operators alone.
BOTH_WAYS = {"contributions", "fused", "rules"}


def pytest_generate_tests(metafunc):
    if metafunc.definition.path.parent.name in BOTH_WAYS:
        metafunc.parametrize("compiled", [True, False], ids=["kernels", "torch"], indirect=True)


@pytest.fixture(autouse=True)
def compiled(request, monkeypatch):
    """Whether kernels are used in this test."""
    wanted = getattr(request, "param", not ABSENT)
    if wanted and ABSENT:
        pytest.skip(ABSENT)
    if not wanted:
        monkeypatch.setattr(loaded, "VECTOR", 0)
    return wanted


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
