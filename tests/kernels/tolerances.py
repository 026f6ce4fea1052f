"""How far a result may be from the float32 reference, relative to its largest entry. Decoding is exact, no line here.

A fused product rounds x after its rotation and column scales (and books' sums) to the dtype once more than F.linear
with a decoded weight does, so each bound is a few of the dtype's half steps: 2**-11 for float16, 2**-8 for bfloat16.
"""
import torch

FUSED = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
