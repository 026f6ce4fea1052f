"""It shares comfy-kitchen's tensor class with ComfyUI."""
