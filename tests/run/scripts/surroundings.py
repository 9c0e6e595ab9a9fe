"""What a script finds around itself, and processes that it starts."""

import multiprocessing
import os
import pickle
import sys

LIGHT = "torch" not in sys.modules

import torch  # noqa: E402
from torch import nn  # noqa: E402

torch.manual_seed(0)
torch.set_num_threads(1)


class Samples(torch.utils.data.Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return torch.randn(6, generator=generator), index % 3


def work(queue):
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    hooks = len(model._forward_hooks) + len(model._forward_pre_hooks)
    queue.put((hooks, nn.Module.__call__.__name__, "gradscope.running" in sys.modules))


if __name__ == "__main__":
    main = sys.modules["__main__"]
    print(__file__, __name__, sys.argv, os.path.realpath(sys.path[0]), main.__dict__ is globals())
    print(__spec__ and __spec__.name, __package__, type(__builtins__).__name__, __doc__)
    print(pickle.loads(pickle.dumps(Samples())).__class__ is Samples)
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for way in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(Samples(), batch_size=8, num_workers=1, multiprocessing_context=way)
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            print(loss.item().hex())
        context = multiprocessing.get_context(way)
        queue = context.Queue()
        child = context.Process(target=work, args=(queue,))
        child.start()
        print(way, queue.get()[0])
        child.join()
    if "light" in sys.argv:
        print("light", LIGHT)
