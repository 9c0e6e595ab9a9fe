"""The main job on real input: three small tasks, one plain PyTorch loop, the report at its end."""
