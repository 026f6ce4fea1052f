"""Judging and training on the testbed's drawn scenes: attribute classifier, alignment score, training scripts."""
