"""Keys and shapes of whole checkpoints, written down a second time from the architecture, and small files of them."""
from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import torch
from vqpack.vq_core.arch.families import FAMILIES, Family

DATA = Path(__file__).resolve().parents[1] / "data"
UNET = "model.diffusion_model."
FAMILY = {family.name: family for family in FAMILIES}
SMALL = Family("small", 16, (1, 2), (0, 1), (1, 2, 0, 0), 1, context_dim=40, adm_in_channels=24)
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
          "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "U8": torch.uint8, "I8": torch.int8}


def listed(name: str) -> dict[str, tuple[int, ...]]:
    """A key list of tests/data: "base", "vega" or "tiny"."""
    text = gzip.decompress((DATA / f"sdxl_{name}.keys.tsv.gz").read_bytes()).decode()
    rows = (line.partition("\t") for line in text.splitlines())
    return {key: tuple(int(n) for n in shape.split(",") if n) for key, _, shape in rows}


def unet_shapes(family: Family, prefix: str = UNET) -> dict[str, tuple[int, ...]]:
    """The UNet of a family under LDM names."""
    out, width, time = {}, family.model_channels, 4 * family.model_channels

    def conv(name, rows, cols, size):
        out.update({f"{prefix}{name}.weight": (rows, cols, size, size), f"{prefix}{name}.bias": (rows,)})

    def linear(name, rows, cols, bias=True):
        out.update({f"{prefix}{name}.weight": (rows, cols), **({f"{prefix}{name}.bias": (rows,)} if bias else {})})

    def norm(name, rows):
        out.update({f"{prefix}{name}.weight": (rows,), f"{prefix}{name}.bias": (rows,)})

    def resnet(name, rows, cols):
        norm(f"{name}.in_layers.0", cols)
        conv(f"{name}.in_layers.2", rows, cols, 3)
        linear(f"{name}.emb_layers.1", rows, time)
        norm(f"{name}.out_layers.0", rows)
        conv(f"{name}.out_layers.3", rows, rows, 3)
        if rows != cols:
            conv(f"{name}.skip_connection", rows, cols, 1)

    def transformer(name, rows, depth):
        norm(f"{name}.norm", rows)
        linear(f"{name}.proj_in", rows, rows)
        for n in range(depth):
            block = f"{name}.transformer_blocks.{n}"
            for attention, context in (("attn1", rows), ("attn2", family.context_dim)):
                for part, cols in (("to_q", rows), ("to_k", context), ("to_v", context)):
                    linear(f"{block}.{attention}.{part}", rows, cols, bias=False)
                linear(f"{block}.{attention}.to_out.0", rows, rows)
            linear(f"{block}.ff.net.0.proj", 8 * rows, rows)
            linear(f"{block}.ff.net.2", rows, 4 * rows)
            for i in (1, 2, 3):
                norm(f"{block}.norm{i}", rows)
        linear(f"{name}.proj_out", rows, rows)

    linear("time_embed.0", time, width)
    linear("time_embed.2", time, time)
    linear("label_emb.0.0", time, family.adm_in_channels)
    linear("label_emb.0.2", time, time)
    conv("input_blocks.0.0", width, family.in_channels, 3)
    levels, current, stack, index = len(family.channel_mult), width, [width], 1
    per_level = len(family.depth_in) // levels
    for level, mult in enumerate(family.channel_mult):
        for depth in family.depth_in[level * per_level:(level + 1) * per_level]:
            resnet(f"input_blocks.{index}.0", width * mult, current)
            current = width * mult
            if depth:
                transformer(f"input_blocks.{index}.1", current, depth)
            stack.append(current)
            index += 1
        if level < levels - 1:
            conv(f"input_blocks.{index}.0.op", current, current, 3)
            stack.append(current)
            index += 1
    if family.depth_middle is not None:
        resnet("middle_block.0", current, current)
        if family.depth_middle > 0:
            transformer("middle_block.1", current, family.depth_middle)
            resnet("middle_block.2", current, current)
    for index, depth in enumerate(family.depth_out):
        level = levels - 1 - index // (per_level + 1)
        rows = width * family.channel_mult[level]
        resnet(f"output_blocks.{index}.0", rows, current + stack.pop())
        current = rows
        if depth:
            transformer(f"output_blocks.{index}.1", current, depth)
        if index % (per_level + 1) == per_level and level:
            conv(f"output_blocks.{index}.{2 if depth else 1}.conv", current, current, 3)
    norm("out.0", width)
    conv("out.2", 4, width, 3)
    return out


def openclip_shapes(prefix: str = "conditioner.embedders.1.model.", width: int = 12, layers: int = 2,
                    vocabulary: int = 21, length: int = 7) -> dict[str, tuple[int, ...]]:
    """CLIP-G under OpenCLIP names."""
    out = {"token_embedding.weight": (vocabulary, width), "positional_embedding": (length, width), "logit_scale": (),
           "ln_final.weight": (width,), "ln_final.bias": (width,), "text_projection": (width, width)}
    for n in range(layers):
        block = f"transformer.resblocks.{n}."
        out.update({f"{block}attn.in_proj_weight": (3 * width, width), f"{block}attn.in_proj_bias": (3 * width,)})
        for name, rows, cols in (("attn.out_proj", width, width), ("mlp.c_fc", 4 * width, width),
                                 ("mlp.c_proj", width, 4 * width)):
            out.update({f"{block}{name}.weight": (rows, cols), f"{block}{name}.bias": (rows,)})
        for name in ("ln_1", "ln_2"):
            out.update({f"{block}{name}.weight": (width,), f"{block}{name}.bias": (width,)})
    return {prefix + key: shape for key, shape in out.items()}


def random_tensors(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float16, seed: int = 0
                   ) -> dict[str, torch.Tensor]:
    """Normal values times 0.1 for every key."""
    g = torch.Generator().manual_seed(seed)
    return {key: (0.1 * torch.randn(shape, generator=g)).to(dtype) for key, shape in shapes.items()}


def write_file(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    """An ordinary safetensors file, written by hand (any torch, any fp8)."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, end, data = {"__metadata__": metadata} if metadata else {}, 0, []
    for key, tensor in tensors.items():
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        header[key] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + len(raw)]}
        end += len(raw)
        data.append(raw)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))
    return path


def write_header(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "F16") -> Path:
    """A file of these shapes whose data is a hole: no disk, no memory, right size."""
    size = DTYPES[dtype].itemsize
    header, end = {}, 0
    for key, shape in shapes.items():
        count = size * torch.Size(shape).numel()
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + count]}
        end += count
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def uniform_blob(weight: torch.Tensor, dtype: torch.dtype, splits: tuple[int, ...] = ()) -> torch.Tensor:
    """A blob of 8-bit uniform codes, one part for each split; made here so that no encoder is needed."""
    from vqpack.kernels.packing import pack_codes
    from vqpack.kernels.parts import LutPart, Scales
    from vqpack.vq_core.record import build_blob

    parts, start, taps = [], 0, int(torch.Size(weight.shape[2:]).numel())
    for channels in splits or (weight.shape[1],):
        matrix = weight[:, start:start + channels].float()
        if weight.dim() == 4:
            matrix = matrix.permute(0, 2, 3, 1)
        matrix = matrix.reshape(len(weight), -1)
        row = (matrix.abs().amax(1) / 127).clamp_min(1e-6).half()
        codes = (matrix / row.float()[:, None]).round().clamp(-128, 127).int() + 128
        zeros = torch.full((len(weight),), 128, dtype=torch.uint8)
        part = LutPart(len(weight), channels, taps, 8, pack_codes(codes, 8), Scales(1.0, row), zero_points=zeros)
        parts.append((start, start + channels, "uniform", part))
        start += channels
    return build_blob(tuple(weight.shape), dtype, parts)


def pack(source, path: Path, components: tuple[str, ...] = ("unet", "te1", "te2", "vae", "other")) -> Path:
    """A vqpack file of a source, every layer that may be coded in 8 bits."""
    from vqpack.vq_core.arch import layers
    from vqpack.vq_core.container import Writer
    from vqpack.vq_core.keymap import KEYMAP_KEY
    from vqpack.vq_core.text_encoders import stored_items, stored_keymap

    with Writer(path) as writer:
        for item in stored_items(source, layers(source)):
            layer = item.layer
            if layer.component not in components:
                continue
            if layer.dense:
                writer.add(layer.key, item.load(source))
            else:
                blob = uniform_blob(item.load_float(source), source.dtype(item.source_key), layer.splits)
                writer.add_blob(layer.key, blob)
        own = {KEYMAP_KEY: stored_keymap(source).to_json()} if stored_keymap(source) else {}
        return writer.close({**source.metadata, **own})
