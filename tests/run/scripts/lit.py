"""Lightning: nine batches, four micro-steps a window, a short last one, clipping, and a validation first."""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
torch.set_num_threads(1)


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        print(loss.item().hex())
        return loss

    def validation_step(self, batch, index):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


loader = DataLoader(TensorDataset(torch.randn(18, 6), torch.randint(3, (18,))), batch_size=2)
trainer = lightning.Trainer(
    max_epochs=2, accumulate_grad_batches=4, gradient_clip_val=0.5, accelerator="cpu", logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip
trainer.fit(Classifier(), loader, loader)
