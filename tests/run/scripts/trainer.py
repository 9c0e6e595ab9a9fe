"""transformers' Trainer: 18 samples in batches of 2, four micro-steps a window, a short last one, clipping."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

torch.manual_seed(0)
torch.set_num_threads(1)
config = GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(config)
rows = torch.randint(32, (18, 8), generator=torch.Generator().manual_seed(0))
samples = [{"input_ids": row, "labels": row} for row in rows]


class Printing(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            print(state.global_step, logs["loss"], logs["grad_norm"])


arguments = TrainingArguments(
    output_dir="trained", per_device_train_batch_size=2, gradient_accumulation_steps=4, num_train_epochs=2,
    logging_steps=1, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True, max_grad_norm=0.5,
)  # fmt: skip
Trainer(model, arguments, train_dataset=samples, callbacks=[Printing()]).train()
print(sum(parameter.double().sum().item() for parameter in model.parameters()).hex())
