"""Small UNets that ComfyUI takes for members of the SDXL family, as lists of keys and shapes."""
from __future__ import annotations

import gzip
from pathlib import Path

UNET = "model.diffusion_model."


def vega_like(in_channels: int = 4) -> dict[str, tuple[int, ...]]:
    """Segmind-Vega's depths with attention in the middle and in one output block, all of 320 channels; 9 = inpaint."""
    return _unet(320, ((0, 0), (1, 1), (2, 2)), 1, {4: 1}, in_channels, context=2048, vector=2816)


def narrow() -> dict[str, tuple[int, ...]]:
    """Segmind-Vega's input depths and a middle as diffusers builds it, no attention after that, all of 320 channels."""
    return _unet(320, ((0, 0), (1, 1), (2, 2)), 2, {}, 4, context=2048, vector=2816)


def refiner_like() -> dict[str, tuple[int, ...]]:
    """The refiner's input depths, without attention elsewhere, all of 384 channels."""
    return _unet(384, ((0, 0), (4, 4), (4, 4), (0, 0)), 0, {}, 4, context=1280, vector=2560)


def _unet(width: int, depths, middle: int, depth_out: dict[int, int], in_channels: int, context: int, vector: int):
    out = {"time_embed.0.": (4 * width, width), "time_embed.2.": (4 * width, 4 * width),
           "label_emb.0.0.": (4 * width, vector), "label_emb.0.2.": (4 * width, 4 * width),
           "input_blocks.0.0.": (width, in_channels, 3, 3), "out.0.": (width,), "out.2.": (4, width, 3, 3)}
    index = 1
    for level, blocks in enumerate(depths):
        if level:
            out[f"input_blocks.{index}.0.op."] = (width, width, 3, 3)
            index += 1
        for depth in blocks:
            out |= _residual(f"input_blocks.{index}.0.", width, width)
            out |= _transformer(f"input_blocks.{index}.1.", width, depth, context)
            index += 1
    if middle:
        out |= {**_residual("middle_block.0.", width, width), **_residual("middle_block.2.", width, width),
                **_transformer("middle_block.1.", width, middle, context)}
    index = 0
    for level, blocks in reversed(list(enumerate(depths))):
        for place in range(len(blocks) + 1):
            depth = depth_out.get(index, 0)
            out |= _residual(f"output_blocks.{index}.0.", 2 * width, width)
            out |= _transformer(f"output_blocks.{index}.1.", width, depth, context)
            if level and place == len(blocks):
                out[f"output_blocks.{index}.{2 if depth else 1}.conv."] = (width, width, 3, 3)
            index += 1
    return _parameters(out)


def _residual(at: str, wide: int, width: int) -> dict[str, tuple[int, ...]]:
    out = {f"{at}in_layers.0.": (wide,), f"{at}in_layers.2.": (width, wide, 3, 3),
           f"{at}emb_layers.1.": (width, 4 * width), f"{at}out_layers.0.": (width,),
           f"{at}out_layers.3.": (width, width, 3, 3)}
    return {**out, f"{at}skip_connection.": (width, wide, 1, 1)} if wide != width else out


def _transformer(at: str, width: int, depth: int, context: int) -> dict[str, tuple[int, ...]]:
    square = (width, width)
    out = {f"{at}norm.": (width,), f"{at}proj_in.": square, f"{at}proj_out.": square} if depth else {}
    for number in range(depth):
        block = f"{at}transformer_blocks.{number}."
        out |= {f"{block}norm{i}.": (width,) for i in (1, 2, 3)}
        out |= {f"{block}ff.net.0.proj.": (8 * width, width), f"{block}ff.net.2.": (width, 4 * width)}
        for attention, source in (("attn1", width), ("attn2", context)):
            out |= {f"{block}{attention}.to_q.": square, f"{block}{attention}.to_out.0.": square,
                    f"{block}{attention}.to_k.": (width, source), f"{block}{attention}.to_v.": (width, source)}
    return out


def _parameters(layers: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Layer -> weight and bias under the names of a checkpoint."""
    no_bias = (".to_q.", ".to_k.", ".to_v.")
    weights = {f"{UNET}{name}weight": shape for name, shape in layers.items()}
    return weights | {f"{UNET}{name}bias": shape[:1] for name, shape in layers.items() if not name.endswith(no_bias)}


def vae() -> dict[str, tuple[int, ...]]:
    """The small VAE of the tiny checkpoint."""
    path = Path(__file__).resolve().parents[1] / "data" / "sdxl_tiny.keys.tsv.gz"
    lines = (line.partition("\t") for line in gzip.decompress(path.read_bytes()).decode().splitlines())
    return {key: tuple(int(n) for n in shape.split(",") if n) for key, _, shape in lines
            if key.startswith("first_stage_model.")}
