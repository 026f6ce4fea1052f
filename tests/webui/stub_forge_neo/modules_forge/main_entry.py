"""Forge-Neo's: one more argument, the preset whose choice is remembered, perhaps none."""
from modules import sd_models, shared

shared.opts.callbacks.clear()


def checkpoint_change(ckpt_name: str, preset: str, save=True, refresh=True) -> bool:
    new = sd_models.get_closet_checkpoint_match(ckpt_name)
    if new == sd_models.get_closet_checkpoint_match(getattr(shared.opts, "sd_model_checkpoint", "")):
        return False
    shared.opts.set("sd_model_checkpoint", ckpt_name)
    if preset is not None:
        shared.opts.set(f"forge_checkpoint_{preset}", ckpt_name)
    if save:
        shared.opts.save(shared.config_filename)
    if refresh:
        sd_models.loaded.append(new.filename)
    return True
