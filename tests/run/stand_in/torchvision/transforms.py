"""Images [channels, height, width] of bytes to tensors."""

import torch


class ToTensor:
    def __call__(self, image):
        return torch.from_numpy(image).float() / 255


class Normalize:
    def __init__(self, mean, std):
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def __call__(self, image):
        return (image - self.mean) / self.std


class Compose:
    def __init__(self, steps):
        self.steps = steps

    def __call__(self, image):
        for step in self.steps:
            image = step(image)
        return image
