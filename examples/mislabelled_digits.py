"""Wrong labels in a data set, found by the size of their gradients.

Two per cent of the digits get a wrong label, and a small network is trained on all of them, wrong ones included. Then
one watched pass over the training set, without a step, gives each sample's gradient norm: a sample whose label
contradicts what the network has learned from the others pulls hard.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import gradscope

torch.manual_seed(0)
digits = load_digits()
images, labels = torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target)
planted = torch.randperm(len(labels))[: round(0.02 * len(labels))]
labels[planted] = (labels[planted] + torch.randint(1, 10, planted.shape)) % 10

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for _ in range(10):
    for chosen in torch.randperm(len(labels)).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
optimizer.zero_grad()

with gradscope.watch(model) as scope:
    for x, y in zip(images.split(256), labels.split(256), strict=True):
        loss = nn.functional.cross_entropy(model(x), y, reduction="sum") / len(labels)
        loss.backward()
    norms = scope.step().total.sample_norms

wrong = torch.zeros(len(labels), dtype=torch.bool)
wrong[planted] = True
largest = norms.argsort(descending=True)
print(f"{len(labels)} digits, {len(planted)} of them with a wrong label")
for looked_at in (len(planted), 2 * len(planted)):
    found = wrong[largest[:looked_at]].sum().item()
    print(f"among the {looked_at} largest per-sample gradients: {found} of the {len(planted)} wrong labels")
print(f"median norm of the wrong ones: {norms[wrong].median() / norms[~wrong].median():.0f} times that of the others")
