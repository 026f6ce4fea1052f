"""Forge-Neo's own runtime."""
