"""SDXL as data: which tensors exist, what each is for, how foreign names map to ours."""
