"""Seeded damage to a small file and what the program makes of it, for test_fuzz.py and benchmarks/fuzz_format.py."""
from __future__ import annotations

import json
import random
import struct
import zlib

from vqpack.vq_core.container import Reader
from vqpack.vq_core.errors import VQError
from vqpack.vq_core.safetensors_io import Entry, dump_header, frame_header, parse_header
from vqpack.vq_core.verify import verify_file

CASES = ("palette_groups", "uniform", "additive", "product", "trellis_half", "trellis_split")   # in the fuzzed file
EDGES = (0, 1, 2, 3, 7, 8, 63, 64, 65, 127, 128, 255, 256, 65535, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53,
         2**63 - 1, 2**63, 2**64 - 1)


def mutate(data: bytes, seed: int) -> tuple[str, bytes]:
    """-> (kind of damage, bytes that differ from `data`), the same for the same seed."""
    rng = random.Random(seed)
    while True:
        kind = rng.choice(list(KINDS))
        changed = KINDS[kind](data, rng)
        if changed != data:
            return kind, changed


def outcome(path, original: dict[str, bytes]) -> str:
    """"refused" or "reported"; AssertionError for silence, any other exception is a crash.

    original: key -> bytes of the undamaged file; what differs and still loads is decoded, to see that nothing breaks.
    """
    problems = verify_file(path)
    assert problems, "damage passed verify"
    assert all(problem and "\n" not in problem for problem in problems), problems
    try:
        with Reader(path) as reader:
            touch(reader, original)
    except VQError as error:
        assert str(error) and "\n" not in str(error)
        return "refused"
    return "reported"


def touch(reader: Reader, original: dict[str, bytes]) -> int:
    """Load what differs from the original, whatever its checksum -> weights decoded."""
    decoded = 0
    for key in reader.keys():
        try:
            if bytes(reader.raw(key).numpy()) == original.get(key):
                continue
            if key in reader.coded_keys():
                decoded += reader.weight(key).decode().numel()
            else:
                reader.tensor(key)
        except VQError as error:
            assert str(error) and "\n" not in str(error)
    return decoded


def _flip(data: bytes, rng: random.Random, count: int = 1) -> bytes:
    out = bytearray(data)
    for _ in range(count):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _flip_many(data: bytes, rng: random.Random) -> bytes:
    return _flip(data, rng, rng.choice((2, 8, 100)))


def _flip_header(data: bytes, rng: random.Random) -> bytes:
    end = 8 + struct.unpack_from("<Q", data)[0]
    return _flip(data[:end], rng) + data[end:]


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[:rng.choice((0, 7, 8, 9, rng.randrange(len(data)), len(data) - rng.randrange(1, 65)))]


def _append(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.choice((1, 8, 64, 1000)))


def _header_length(data: bytes, rng: random.Random) -> bytes:
    length = struct.unpack_from("<Q", data)[0]
    return struct.pack("<Q", rng.choice((*EDGES, length - 64, length + 64, length + 1, rng.getrandbits(64)))) + data[8:]


def _region(data: bytes, rng: random.Random) -> bytes:
    size = rng.choice((1, 4, 64, 512))
    a, b = rng.randrange(len(data) - size), rng.randrange(len(data) - size)
    filling = rng.choice((b"\0" * size, b"\xff" * size, rng.randbytes(size), data[b:b + size]))
    return data[:a] + filling + data[a + size:]


def _header_json(data: bytes, rng: random.Random) -> bytes:
    """One change to the parsed header, spelled and framed as we do it, checksums left alone."""
    end = 8 + struct.unpack_from("<Q", data)[0]
    table = json.loads(data[8:end])
    key = rng.choice([k for k in table if k != "__metadata__"])
    entry, metadata = table[key], table["__metadata__"]
    edge, name = rng.choice((*EDGES, -1, 1.5, "7", None, True)), rng.choice(list(metadata))
    changes = [
        lambda: entry["data_offsets"].__setitem__(rng.randrange(2), edge), lambda: entry["shape"].append(edge),
        lambda: entry.__setitem__("shape", [edge] * 3),
        lambda: entry.__setitem__("dtype", rng.choice(("F16", "I4", 3))),
        lambda: table.pop(key), lambda: table.__setitem__("new", entry), lambda: table.__setitem__("x", table.pop(key)),
        lambda: metadata.pop(name), lambda: metadata.__setitem__(name, metadata[name][:-1] + "~"),
        lambda: metadata.__setitem__("title", "edited"), lambda: metadata.__setitem__(name, edge),
        lambda: table.pop("__metadata__"), lambda: table.__setitem__("__metadata__", []),
        lambda: metadata.__setitem__("vqpack.version", rng.choice(("0", "2", "1 ", "", "999"))),
    ]
    rng.choice(changes)()
    text = json.dumps(table, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text = rng.choice((text, text, text, text[:-1] + b',"a":[[[' + b"[" * 5000, text[:-1] + b"," + text[1:]))
    return frame_header(text) + data[end:]


def _record(data: bytes, rng: random.Random) -> bytes:
    """A field of some record, part or section entry set to an edge value."""
    starts = [i for i in range(0, len(data), 64) if data[i:i + 8] == b"VQWEIGHT"]
    start, width = rng.choice(starts), rng.choice((1, 2, 4, 8))
    offset = start + rng.randrange(0, 320, width)
    value = rng.choice((*EDGES, rng.getrandbits(64))) % (1 << 8 * width)
    return data[:offset] + value.to_bytes(width, "little") + data[offset + width:]


KINDS = {"one bit": _flip, "many bits": _flip_many, "header bit": _flip_header, "truncated": _truncate,
         "appended": _append, "header length": _header_length, "region": _region, "header JSON": _header_json,
         "record field": _record}


def forge(data: bytes, seed: int) -> bytes:
    """A file with an edited record whose checksums were made right again: only the checks of the record are left."""
    rng = random.Random(seed)
    changed, edits = data, rng.randrange(1, 4)
    while changed == data or edits > 0:
        changed, edits = _record(changed, rng), edits - 1
    start = 8 + struct.unpack_from("<Q", changed)[0]
    entries, metadata = parse_header(changed[8:start], start, "forged")
    metadata["vqpack.crc32"] = "".join(f"{zlib.crc32(changed[e.start:e.stop]):08x}" for e in entries)
    return frame_header(_signed(entries, start, metadata)) + changed[start:]


def _signed(entries: list[Entry], start: int, metadata: dict[str, str]) -> bytes:
    metadata.pop("vqpack.header_crc32", None)
    crc = zlib.crc32(dump_header(entries, start, metadata))
    return dump_header(entries, start, {**metadata, "vqpack.header_crc32": f"{crc:08x}"})


def contents(path) -> dict[str, bytes]:
    """key -> bytes of an undamaged file."""
    with Reader(path, mapped=False) as reader:
        return {key: bytes(reader.raw(key).numpy()) for key in reader.keys()}
