"""Recovery by fine-tuning: the coded model learns to say what its teacher says (VQDM, arXiv 2409.00492, 3.4)."""
