"""A plain loop with accumulation and a short last window; ends as its arguments say."""

import sys

import torch
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(6, 8)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.drop(torch.relu(self.hidden(x))))


def fail():
    raise ValueError("as asked")


def main(ending):
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(13):
        x, y = torch.randn(4 + step % 3, 6), torch.randint(3, (4 + step % 3,))
        loss = nn.functional.cross_entropy(net(x), y) / 2
        loss.backward()
        if step % 2 or step == 12:
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
        print(loss.item().hex(), flush=True)
    print(torch.rand(()).item().hex(), flush=True)
    if ending == "fail":
        fail()
    if ending == "exit":
        sys.exit(3)
    if ending == "word":
        sys.exit("a last word")
    if ending == "wait":
        import time

        time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[-1])
