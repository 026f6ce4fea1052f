"""A reader of vqpack files written from docs/format.md alone: numpy and the standard library, nothing of this project.

    python tests/format/independent_reader.py FILE        prints what each tensor of the source was

Kept small to show what a reader takes. It trusts the records: vq_core/head.py has the checks of section 2.
"""
from __future__ import annotations

import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np

RECORD, PART, SECTION, TABLE = (struct.Struct("<" + fields) for fields in
                                ("8sHHHBB4IQ", "BBBBIIfIBBBBIIII", "HHBBHQQ", "8sHBBBBI"))
CODES, ROW_SCALES, COL_SCALES, ZERO_POINTS, CODEBOOKS, GROUP_SCALES, _, DOWN, UP = range(1, 10)
KINDS = {CODES: "u1", ROW_SCALES: "<f2", COL_SCALES: "<f2", ZERO_POINTS: "u1", CODEBOOKS: "<i2", GROUP_SCALES: "<f2",
         DOWN: "<f2", UP: "<f2"}
LUT, ADDITIVE, TRELLIS = 1, 2, 3
UNIFORM = 2


def read_file(path) -> tuple[dict, dict]:
    """-> (metadata, key -> (dtype, shape, bytes)); ValueError where a checksum of section 6 is wrong."""
    data = Path(path).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__")
    if metadata.get("vqpack.version", "1") != "1":
        raise ValueError(f"this reader knows version 1, the file has {metadata['vqpack.version']}")
    tensors = {key: (e["dtype"], e["shape"], data[start + e["data_offsets"][0]:start + e["data_offsets"][1]])
               for key, e in header.items()}
    order = sorted(header, key=lambda key: (*header[key]["data_offsets"], key))
    if metadata.get("vqpack.crc32") != "".join(f"{zlib.crc32(tensors[key][2]):08x}" for key in order):
        raise ValueError("the data is damaged")
    stated = metadata.pop("vqpack.header_crc32", None)
    text = json.dumps({**header, "__metadata__": metadata}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    if stated != f"{zlib.crc32(text.encode()):08x}":
        raise ValueError("the header was edited")
    return metadata, tensors


def tables_of(tensors) -> dict[int, tuple[int, np.ndarray]]:
    """Table id -> int8 [2^L, V]"""
    found = {}
    for key, (_, _, data) in tensors.items():
        if key.startswith("vq.tables."):
            vector = TABLE.unpack_from(data)[4]
            found[int(key[-8:], 16)] = np.frombuffer(data, np.int8, offset=64).reshape(-1, vector)
    return found


def decode(blob: bytes, tables) -> np.ndarray:
    """One coded weight -> float32 [out, in] or [out, in, kh, kw]"""
    _, _, num_parts, num_sections, dims, _, out, width, kh, kw, _ = RECORD.unpack_from(blob)
    sections = {}
    for index in range(num_sections):
        kind, part, _, _, _, offset, length = SECTION.unpack_from(blob, 64 + 64 * num_parts + 32 * index)
        sections[part, kind] = np.frombuffer(blob[offset:offset + length], KINDS.get(kind, "u1"))
    weight = np.zeros((out, kh * kw, width), np.float32)
    for index in range(num_parts):
        part = PART.unpack_from(blob, 64 + 64 * index)
        own = {kind: data for (number, kind), data in sections.items() if number == index}
        matrix = decode_part(part, own, out, kh * kw, tables)
        weight[:, :, part[4]:part[5]] = matrix.reshape(out, kh * kw, -1)
    if (65535, UP) in sections:
        up, down = (sections[65535, kind].astype(np.float32) for kind in (UP, DOWN))
        rank = up.size // out
        weight += (up.reshape(out, rank) @ down.reshape(rank, -1)).reshape(weight.shape)
    return weight.transpose(0, 2, 1).reshape((out, width, kh, kw)[:dims])


def decode_part(part, sections, out, taps, tables) -> np.ndarray:
    """Section 4 -> float32 [out, taps * channels], columns (tap, channel)"""
    family, spec, order, rotation, start, stop, gain, seed, *fields = part
    channels, scale_group = stop - start, fields[4] if family == LUT else 0
    cols = taps * channels
    integers = {LUT: lut, ADDITIVE: additive, TRELLIS: trellis}[family](spec, fields, sections, out, cols, tables)
    if order == 1:
        integers = integers.reshape(out, channels, taps).transpose(0, 2, 1).reshape(out, cols)
    if rotation:
        integers = rotate(integers.reshape(-1, 1 << rotation), 1 << rotation).reshape(out, taps, channels)
        integers = (integers * signs(seed, channels)).reshape(out, cols)
    if GROUP_SCALES in sections:
        scales = sections[GROUP_SCALES].reshape(out, -1)[:, np.arange(cols) // scale_group]
    else:
        scales = sections[ROW_SCALES][:, None]
    matrix = integers.astype(np.float32) * (scales.astype(np.float32) * np.float32(gain))
    if COL_SCALES in sections:
        matrix *= np.tile(sections[COL_SCALES].astype(np.float32), taps)
    return matrix


def unpack(codes, out, count, bits) -> np.ndarray:
    """-> int64 [out, count]; eight codes in `bits` little-endian bytes are one stream of bits, the lowest first."""
    stream = np.unpackbits(codes.reshape(out, -1), axis=1, bitorder="little")[:, :count * bits]
    return stream.reshape(out, count, bits) @ (1 << np.arange(bits, dtype=np.int64))


def lut(spec, fields, sections, out, cols, tables) -> np.ndarray:
    codes, scale_group = unpack(sections[CODES], out, cols, fields[0]), fields[4]
    if spec != UNIFORM:
        return sections[CODEBOOKS].astype(np.int64)[codes]
    zeros = sections[ZERO_POINTS].reshape(out, -1).astype(np.int64)
    return codes - (zeros[:, np.arange(cols) // scale_group] if GROUP_SCALES in sections else zeros)


def additive(spec, fields, sections, out, cols, tables) -> np.ndarray:
    bits, _, _, num_books, group, blocks, size, _ = fields
    groups = -(-cols // group)
    codes = unpack(sections[CODES], out, groups * num_books, bits).reshape(out, groups, num_books)
    books = sections[CODEBOOKS].reshape(blocks, num_books, size, group).astype(np.int64)
    block = np.arange(groups) * blocks // groups
    return sum(books[block, m, codes[:, :, m]] for m in range(num_books)).reshape(out, -1)[:, :cols]


def trellis(spec, fields, sections, out, cols, tables) -> np.ndarray:
    step_bits, window, vector, _, chain, _, _, table = fields
    steps = -(-out // vector)
    words = sections[CODES].view("<u4").reshape(-1, step_bits, cols)                # [units, words, columns]
    places = np.arange(32 * len(words))[:, None] * step_bits + step_bits + np.arange(window)
    integers = np.empty((steps * vector, cols), np.int64)
    for first in range(0, cols, chain):
        before = np.zeros(window, np.int64)
        for col in range(first, min(first + chain, cols)):
            bits = np.unpackbits(words[:, :, col].astype(">u4").reshape(-1).view("u1")).astype(np.int64)
            bits = np.concatenate([before, bits])
            states = bits[places] @ (1 << np.arange(window)[::-1])                  # [steps, padding included]
            integers[:, col], before = tables[table][states[:steps]].reshape(-1), bits[-window:]
    return integers[:out]


def rotate(blocks, size) -> np.ndarray:
    index = np.arange(size)
    odd = np.array([bin(n).count("1") & 1 for n in (index[:, None] & index).reshape(-1)]).reshape(size, size)
    return blocks @ (1 - 2 * odd)


def signs(seed, channels) -> np.ndarray:
    """-1 or 1 for each channel of the part, counted from its first."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed << 32) + np.arange(channels, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return 1 - 2 * ((z ^ z >> np.uint64(31)) >> np.uint64(63)).astype(np.int64)


def is_coded(tensor) -> bool:
    """Whether a tensor of read_file is a blob: told by its first eight bytes, so metadata may be lost."""
    return tensor[0] == "U8" and tensor[2][:8] == b"VQWEIGHT"


def source_names(metadata, keys) -> dict[str, tuple[list[str], bool]]:
    """Section 6.1 -> source key: (stored keys whose rows are joined, whether the result is transposed)"""
    keymap, keys = json.loads(metadata.get("vqpack.keymap", "{}")), [k for k in keys if not k.startswith("vq.")]
    made = {key: (stored, False) for key, stored in keymap.get("concat", {}).items()}
    made |= {key: ([stored], True) for key, stored in keymap.get("transpose", {}).items()}
    made = {key: item for key, item in made.items() if set(item[0]) <= set(keys)}
    for key in sorted(set(keys).difference(*(stored for stored, _ in made.values()))):
        prefixes = [pair for pair in keymap.get("rename", []) if key.startswith(pair[0])]
        stored, source = max(prefixes, key=lambda pair: len(pair[0]), default=("", ""))
        made[source + key[len(stored):]] = [key], False
    return made


if __name__ == "__main__":
    about, content = read_file(sys.argv[1])
    shared = tables_of(content)
    for name, (parts, turned) in source_names(about, content).items():
        for one in (content[part] for part in parts):
            print(name, *(("coded", decode(one[2], shared).shape) if is_coded(one) else one[:2]), turned)
