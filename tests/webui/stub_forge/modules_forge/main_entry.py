"""Forge names checkpoints without their hash and loads a model with the next picture."""
from modules import sd_models, shared

shared.opts.callbacks.clear()


def checkpoint_change(ckpt_name: str, save=True, refresh=True):
    new = sd_models.get_closet_checkpoint_match(ckpt_name)
    if new == sd_models.get_closet_checkpoint_match(shared.opts.data.get("sd_model_checkpoint", "")):
        return False
    shared.opts.set("sd_model_checkpoint", ckpt_name)
    if save:
        shared.opts.save(shared.config_filename)
    if refresh:
        sd_models.loaded.append(new.filename)
    return True
