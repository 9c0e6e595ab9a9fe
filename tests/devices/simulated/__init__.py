"""A device that torch takes for an accelerator, simulated on the processor: its memory cannot be read from the host.

Whoever takes an address of its memory for the processor's own ends the process; what makes the host wait for it is counted;
it has random numbers of its own; and it can be told to know no float64, as Apple's GPUs do not.
"""

import contextlib
import types

import torch

from gradscope.wide import knows_float64

NAME = "simulated"


def start(library):
    """Make the device known to torch, as ``simulated``.

    Args:
        library: what ``build.py`` has compiled.
    """
    torch.ops.load_library(library)
    torch.ops.simulated.register_hooks()
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _module())
    torch.utils.generate_methods_for_privateuse1_backend()
    # Parameters stay the same objects, so that what is tied stays tied.
    torch.__future__.set_swap_module_params_on_conversion(True)


def _module():
    module = types.ModuleType(f"torch.{NAME}")
    ops = torch.ops.simulated
    module.is_available = lambda: True
    module.is_initialized = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.set_device = lambda device: None
    module.synchronize = lambda device=None: None
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    module._is_in_bad_fork = lambda: False
    module._lazy_init = lambda: None
    module.manual_seed = module.manual_seed_all = lambda seed: ops.seed(seed % 2**63)
    module.get_rng_state = lambda device=0: ops.random_state()
    module.set_rng_state = lambda state, device=0: ops.set_random_state(state)
    return module


def waits():
    """How often the host has waited for the device since it was asked last, and for what."""
    return torch.ops.simulated.count_waits(), torch.ops.simulated.name_waits()


@contextlib.contextmanager
def without_float64():
    """The device knows no float64 here, and whoever asks is told so."""
    torch.ops.simulated.refuse_wide(True)
    knows_float64.cache_clear()
    try:
        yield
    finally:
        torch.ops.simulated.refuse_wide(False)
        knows_float64.cache_clear()
