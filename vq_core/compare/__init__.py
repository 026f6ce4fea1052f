"""`vqpack compare`: checkpoints side by side on the same prompts and noise. The work is in run.py."""
