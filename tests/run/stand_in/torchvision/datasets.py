"""Real digits as 28 x 28 images, and made-up images."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset


class MNIST(Dataset):
    """The first 256 digits of scikit-learn's to train with, another 64 to test."""

    def __init__(self, root, train=True, download=False, transform=None):
        digits = load_digits()
        chosen = slice(0, 256) if train else slice(256, 320)
        images = np.kron(digits.images[chosen], np.ones((3, 3))) * (255 / 16)
        self.images = np.pad(images, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
        self.labels = digits.target[chosen]
        self.transform = transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(self.images[index][None]), int(self.labels[index])


class FakeData(Dataset):
    """Images of noise."""

    def __init__(self, image_size=(3, 64, 64), transform=None):
        self.image_size = image_size
        self.transform = transform

    def __len__(self):
        return 64

    def __getitem__(self, index):
        noise = torch.randint(256, self.image_size, generator=torch.Generator().manual_seed(index))
        return self.transform(noise.numpy().astype(np.uint8)), index % 10
