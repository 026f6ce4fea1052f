"""Bits and tensors: packing, decoding, Viterbi. One plain reference per operation, fast paths beside it."""
