"""attach(): a copy of a vqpack file, with the same weights, whose report holds the short form of a comparison."""
from __future__ import annotations

from pathlib import Path

from ..container import Reader, Writer
from ..errors import FormatError
from ..file_names import SUFFIX, safe_stem
from ..header import dump, settle
from ..inspection import REPORT_KEY, content_id, json_field, pack_report, read_report, stored_costs
from ..progress import Progress
from .short import KEY, read_comparison, short_form


def attach(path: str | Path, comparison: str | Path, output: str | Path | None = None, overwrite: bool = False,
           progress: Progress | None = None) -> Path:
    """Write a copy of the file at `path` with the short form of `comparison` in its report -> the copy.

    comparison: compare.json or its folder; it must have measured a file with these very weights. output: file or
    folder, None = beside the file. A name that is taken gets a number unless `overwrite` (which with output None
    replaces the file itself, never one that is loaded). An earlier short form is replaced. Tensors are copied byte for
    byte and checked on the way; the same input gives the same bytes. Raises VQError in one sentence.
    """
    path, progress, data = Path(path), progress or Progress(), read_comparison(comparison)
    with Reader(path, mapped=False) as reader:
        content, size = _content(reader), reader.file_bytes
        short = short_form(data, content, json_field(reader.metadata, "vqpack.source", {}), Path(comparison).name)
        report = {**read_report(reader), KEY: short}
    with Writer(_target(path, output), overwrite, expected_bytes=size) as writer:
        with Reader(path, mapped=False) as reader:
            if content_id(reader) != content:
                raise FormatError(f"'{path.name}' was changed while it was read: run the same command again")
            _copy(reader, writer, progress)
            writer.add(REPORT_KEY, pack_report(report))
            metadata = _metadata(writer, reader)
        final = writer.close(metadata, progress)       # the reader is closed: only then may the file be replaced
    return final


def _content(reader: Reader) -> str:
    content = content_id(reader)
    if content is None:
        raise FormatError(f"the header of '{reader.path.name}' was edited after the file was written, so nothing can "
                          f"be attached to it: `vqpack verify` says what is wrong")
    return content


def _target(path: Path, output: str | Path | None) -> Path:
    target = path if output is None else Path(output)
    target = target / path.name if target.is_dir() else target
    name = target.stem if target.suffix in (SUFFIX, ".sft") else target.name
    return target.with_name(safe_stem(name) + SUFFIX)


def _copy(reader: Reader, writer: Writer, progress: Progress) -> None:
    """Everything but the report; a tensor that does not match its checksum is refused by the reader."""
    progress.start("saving", reader.file_bytes)
    coded = frozenset(reader.coded_keys())
    for key in reader.keys():
        entry = reader.entry(key)
        if key in coded:
            writer.add_blob(key, reader.raw(key))
        elif key != REPORT_KEY:
            writer.add_bytes(key, entry.dtype, entry.shape, reader.raw(key))
        progress.advance(entry.nbytes, key)
    progress.finish()


def _metadata(writer: Writer, reader: Reader) -> dict[str, str]:
    """The file's own, with the bits of its new size where it states any."""
    metadata = dict(reader.metadata)
    if "vqpack.bits" not in metadata:
        return metadata
    return settle(writer, [], stored_costs(reader), lambda bits: {**metadata, "vqpack.bits": dump(bits)})[1]
