"""`vqpack bench`: what this machine does with SDXL's layers, in numbers others can compare."""
