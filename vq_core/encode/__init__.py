"""Encoders: a matrix and a spec in, a coded part out."""
