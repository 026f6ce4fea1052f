"""The node that draws with two models from the same noise and says how far apart they are: Compare (VQ)."""
from __future__ import annotations

from comfy_api.latest import io, ui

from . import host
from .node_progress import NodeProgress
from .schema import make_schema

_NO_VAE = "Compare (VQ) has no pictures: connect a VAE to it, or decode its latents"


class VQCompare(io.ComfyNode):
    """Two models and the same prompt in; pictures of both, words and latents out."""

    @classmethod
    def define_schema(cls):
        """Frozen: ids and order of inputs and outputs are only ever added to."""
        return make_schema(
            node_id="VQCompare", display_name="Compare (VQ)", category="vqpack/compare",
            description="Draws with two models from the same noise, LoRA, control nets and patches as they are "
                        "connected, and says how far apart the pictures are. Connect both pictures to a node that "
                        "lays images over each other, or open the report of B where B is a VQ file.",
            search_aliases=["compare models", "A/B test", "model difference", "PSNR", "SSIM", "quality"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model_a", tooltip="The reference, e.g. the original checkpoint."),
                io.Model.Input("model_b", tooltip="What is measured, e.g. its VQ file."),
                io.Conditioning.Input("positive", tooltip="What both draw."),
                io.Conditioning.Input("negative", tooltip="What both avoid."),
                io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff, control_after_generate=True,
                             tooltip="Of the noise, the same for both."),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="As in KSampler."),
                io.Float.Input("cfg", default=5.0, min=0.0, max=100.0, step=0.1, round=0.01,
                               tooltip="As in KSampler; distilled models want 1."),
                io.Combo.Input("sampler_name", options=host.samplers(), default="euler", tooltip="As in KSampler."),
                io.Combo.Input("scheduler", options=host.schedulers(), default="normal", tooltip="As in KSampler."),
                io.Int.Input("width", default=1024, min=64, max=16384, step=8, tooltip="Pixels."),
                io.Int.Input("height", default=1024, min=64, max=16384, step=8, tooltip="Pixels."),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Pictures each; all are measured."),
                io.Vae.Input("vae", optional=True,
                             tooltip="Decodes both, so that only the models differ. Without it latents are measured."),
                io.Conditioning.Input("positive_b", optional=True,
                                      tooltip="For B, e.g. of its own text encoders. Open: the same as for A."),
                io.Conditioning.Input("negative_b", optional=True,
                                      tooltip="For B, e.g. of its own text encoders. Open: the same as for A."),
            ],
            outputs=[io.Image.Output(display_name="pictures A", tooltip="Of the reference."),
                     io.Image.Output(display_name="pictures B", tooltip="Of the model that is measured."),
                     io.String.Output(display_name="text", tooltip="How far apart they are, in words."),
                     io.Latent.Output(display_name="latents A", tooltip="Of the reference."),
                     io.Latent.Output(display_name="latents B", tooltip="Of the model that is measured.")],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def execute(cls, model_a, model_b, positive, negative, seed, steps, cfg, sampler_name, scheduler, width, height,
                batch_size, vae=None, positive_b=None, negative_b=None) -> io.NodeOutput:
        """-> pictures A and B [n, height, width, 3], text, latents A and B"""
        from ..vq_core.progress import Progress
        from . import comparing, gallery

        comparing.check_models(model_a, model_b)
        settings = comparing.Settings(seed, steps, cfg, sampler_name, scheduler, width, height, batch_size)
        shown = NodeProgress(cls.hidden.unique_id)
        progress = Progress(shown, host.interrupted)
        b = (positive if positive_b is None else positive_b, negative if negative_b is None else negative_b)
        with host.as_interruption():
            progress.start("drawing", 2 * steps)
            ways = [comparing.draw(model, letter, *prompt, settings, progress) for model, letter, prompt in
                    ((model_a, "A", (positive, negative)), (model_b, "B", b))]
            pictures = None if vae is None else tuple(comparing.decode(vae, way.latents) for way in ways)
            values = comparing.measure(*ways, pictures)
            text = comparing.describe(*ways, values, settings)
            if pictures is not None and values:
                gallery.keep(model_a, model_b, settings, values, pictures)
            progress.finish()
        shown.say(text)
        images = (host.missing(_NO_VAE),) * 2 if pictures is None else pictures
        return io.NodeOutput(*images, text, *({"samples": way.latents} for way in ways),
                             ui={**ui.PreviewText(text).as_dict(), **gallery.about(model_b)})
