"""What a script finds of SIGTERM."""

import signal

import torch

assert torch
print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
