"""In ordinary windows the host waits for the device where a plain step does, and nowhere else; a report costs a few transfers."""

import pytest
import torch
from elsewhere import Elsewhere
from zoo import PROBLEMS

SETTINGS = {"default": {}, "moments": {"moments": True}, "fused": {"fused": True}, "no capture": {"capture": False}}
#: Whose rows are whose depends on numbers that are on the device, in each window anew.
LAYOUTS = {
    "EmbeddingBag, flat with offsets", "EmbeddingBag, last offset included", "EmbeddingBag, ragged",
    "Embedding, scaled by frequency", "returns its loss", "routed tokens", "LSTM, packed", "GRU, packed",
}  # fmt: skip
#: Norms of what is tied are the sum of three, unless these cancel.
TIED = {"tied table and head", "mean over tokens"}


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.name not in LAYOUTS | TIED], ids=str)
def test_an_ordinary_window_waits_for_nothing(problem, options, device, waits):
    here = Elsewhere(problem, torch.float32, device)
    here.require()
    waits()
    here.window()
    plain = waits()
    here.optimizer.zero_grad()
    with here.watch(**options) as scope:
        for _ in range(3):
            here.window()
            here.optimizer.zero_grad()
        waits()
        for _ in range(3):
            here.window()
            count, names = waits()
            # Without capture a window is closed at once: one transfer.
            assert count == plain[0] + (options.get("capture") is False), names
            here.optimizer.zero_grad()
        scope.report()
        count, names = waits()
        # As many however many windows there are, and however many parameters: numbers come together.
        assert count <= 3 or "moments" in options, names


@pytest.mark.parametrize("windows", [1, 5])
def test_a_report_brings_all_windows_at_once(windows, device, waits):
    problem = next(p for p in PROBLEMS if p.name == "attention")
    here = Elsewhere(problem, torch.float32, device)
    with here.watch() as scope:
        for _ in range(3):
            here.window()
            here.optimizer.zero_grad()
        scope.report()
        for _ in range(windows):
            here.window()
            here.optimizer.zero_grad()
        waits()
        scope.report()
        count, names = waits()
    assert count <= 2, names
