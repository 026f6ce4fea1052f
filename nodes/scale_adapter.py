"""The node that puts a scale adapter on a MODEL: VQ Scale Adapter."""
from __future__ import annotations

from comfy_api.latest import io

from . import kept_files
from .schema import make_schema


class VQScaleAdapter(io.ComfyNode):
    """MODEL and an adapter's file in, MODEL out."""

    @classmethod
    def define_schema(cls):
        """Frozen: ids and order of inputs and outputs are only ever added to."""
        return make_schema(
            node_id="VQScaleAdapter", display_name="VQ Scale Adapter", category="loaders/vqpack",
            description="Puts a scale adapter of Personalize (VQ), `vqpack personalize` or `vqpack tune --adapter` on "
                        "a VQ model. Several of them, and LoRA, work together; nothing is loaded again when it "
                        "changes.",
            search_aliases=["personalize", "dreambooth", "TuneQDM", "scale LoRA", "quantized adapter"],
            inputs=[
                io.Model.Input("model", tooltip="Of Load Checkpoint (VQ) or Load Diffusion Model (VQ): the file the "
                                                "adapter was trained on."),
                io.Combo.Input("adapter", options=kept_files.adapters(), default=kept_files.NONE,
                               tooltip="Files are found in the folder vqpack."),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05, round=0.001,
                               tooltip="0: the model as it is. 1: as trained."),
                io.String.Input("adapter_name", optional=True, force_input=True,
                                tooltip="The adapter by link, from Personalize (VQ). Where it is linked, 'adapter' is "
                                        "not used."),
            ],
            outputs=[io.Model.Output(tooltip="The UNet with the adapter.")])

    @classmethod
    def fingerprint_inputs(cls, adapter=None, adapter_name=None, strength=1.0, **others):
        """Run again when the file changed."""
        return [kept_files.stamp(adapter_name or adapter, "adapter"), strength]

    @classmethod
    def execute(cls, model, adapter, strength, adapter_name=None) -> io.NodeOutput:
        """-> MODEL"""
        from ..vq_core.adapters.file import check_base, load_adapter
        from .scales import base_of, with_adapter

        path, base = kept_files.kept_path(adapter, adapter_name, "adapter"), base_of(model)
        if path is None or strength == 0:
            return io.NodeOutput(model)
        found = load_adapter(path)
        check_base(found, base, path.name, model.model.vq_name)
        return io.NodeOutput(with_adapter(model, found, strength))
