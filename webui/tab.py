"""The tab VQ, by the Gradio of the host (3.41 of A1111, 4.40 of Forge): lists, buttons, one text."""
from __future__ import annotations

from . import host, work

BITS = ("1", "1.5", "2", "2.5", "3", "3.5", "4", "5", "6")
METHODS = ("trellis", "additive", "product", "palette", "uniform")
TEXT_ENCODER_BITS = ("6", "4", "8", "16")
DTYPES = ("as in the source", "fp16", "bf16", "fp32")
LIMIT_GB = 30                              # about four decompressed SDXL checkpoints
COMPRESSED = {
    "A1111": "A1111 has no place where an extension could hand it coded weights",
    "Forge": "Forge's loader takes ordinary weights and GGUF's only",
    "Forge-Neo": "Forge-Neo has the tensor class that our weights use in ComfyUI, but its loader knows a fixed list of "
                 "formats and no coded convolutions, so they could only come in by changing the program itself",
}
ABOUT = """VQ files hold a checkpoint in a quarter of its size or less. Put those you get into `{folder}`.

**Decompress and select** makes one the chosen checkpoint in one click: an ordinary copy is written into
`vq-decompressed` beside your checkpoints and deleted again when the copies need more room than you allow. Disk and
download are saved, GPU memory is not: {why}. ComfyUI draws from the compressed file itself."""


def make_tabs() -> list[tuple]:
    """-> [(Gradio blocks, title, id)], as the host wants it."""
    import gradio as gr

    with gr.Blocks(analytics_enabled=False) as blocks:
        gr.Markdown(ABOUT.format(folder=host.vq_folder(), why=COMPRESSED[host.kind()]))
        with gr.Row():
            name = gr.Dropdown(list(work.vq_files()), label="VQ file", elem_id="vqpack_file")
            limit = gr.Number(LIMIT_GB, label="Decompressed copies may take (GB)", elem_id="vqpack_limit")
            dtype = gr.Dropdown(list(DTYPES), value=DTYPES[0], label="Numbers of 'Decompress'", elem_id="vqpack_dtype")
        with gr.Row():
            choose = gr.Button("Decompress and select", variant="primary", elem_id="vqpack_select")
            unpack = gr.Button("Decompress", elem_id="vqpack_decompress")
            look = gr.Button("Inspect", elem_id="vqpack_inspect")
        with gr.Row():
            source = gr.Dropdown(list(work.sources()), label="Checkpoint to quantize", elem_id="vqpack_source")
            bits = gr.Dropdown(list(BITS), value="3", label="Bits a weight", elem_id="vqpack_bits")
            method = gr.Dropdown(list(METHODS), value=METHODS[0], label="Method", elem_id="vqpack_method")
            text_bits = gr.Dropdown(list(TEXT_ENCODER_BITS), value="6", label="Bits of text encoders",
                                    elem_id="vqpack_text_bits")
        with gr.Row():
            make = gr.Button("Quantize", elem_id="vqpack_quantize")
            refresh = gr.Button("Refresh lists", elem_id="vqpack_refresh")
            stop = gr.Button("Stop", elem_id="vqpack_stop")
        said = gr.Textbox(label="Result", lines=16, interactive=False, elem_id="vqpack_result")
        choose.click(_job(gr, work.decompress_and_select, 2), [name, limit], said)
        unpack.click(_job(gr, _decompress, 2), [name, dtype], said)
        look.click(_job(gr, lambda file, progress: work.inspect(file), 1), [name], said)
        make.click(_job(gr, work.quantize, 4), [source, bits, method, text_bits], said)
        refresh.click(lambda: (gr.update(choices=list(work.vq_files(look_into_checkpoints=True))),
                               gr.update(choices=list(work.sources()))), [], [name, source],
                      queue=False)
        stop.click(work.STOP.set, [], [], queue=False)             # must not wait behind the job that it stops
    return [(blocks, "VQ", "vqpack")]


def _decompress(name: str, dtype: str, progress) -> str:
    return work.decompress(name, None if dtype == DTYPES[0] else dtype, progress)


def _job(gr, action, inputs: int):
    """A handler for Gradio: values of the inputs -> text, with its progress bar. Gradio counts named parameters."""
    def one(*values, progress):
        def tell(stage, done, total, detail, seconds_left):
            progress(done / total if total else 1.0, desc=f"{stage} {detail[-60:]}")
        return work.run(lambda own: action(*values, own), tell)

    bar = gr.Progress()
    return {1: lambda a, progress=bar: one(a, progress=progress),
            2: lambda a, b, progress=bar: one(a, b, progress=progress),
            4: lambda a, b, c, d, progress=bar: one(a, b, c, d, progress=progress)}[inputs]
