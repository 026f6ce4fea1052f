"""quantize: a checkpoint or a model in memory in, one small file out. One layer at a time; a stopped run resumes."""
from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from math import prod
from pathlib import Path

import torch

from .arch import layers as arch_layers
from .bits import Stored
from .calibration.file import Calibration
from .calibration.recorded import Block
from .coded_item import CodedItem, round_together
from .coding_time import EFFORT, work
from .container import Writer, output_name
from .device_memory import Fallbacks, with_less_memory
from .encode import encode_weight, estimate_speed
from .errors import PlanError
from .errors_so_far import ErrorsSoFar
from .file_names import SUFFIX, glob_safe, safe_stem
from .header import canvas_graph, common_metadata, dump, fingerprint, settle
from .inspection import read_result
from .plan import PARTS, Plan, make_plan, with_activations
from .progress import Progress
from .quantize_result import LayerResult, QuantizeResult
from .source import Source, open_source
from .tables import table_by_id, table_bytes, table_key
from .text_encoders import Item, is_kept, stored_items
from .version import __version__
from .workers import Stoppable, as_done, worker_count


def quantize(source_path, output=None, *, bits: float = 3.0, method: str = "trellis", plan: Plan | None = None,
             text_encoder_bits: int = 6, parts: tuple[str, ...] = PARTS, skip: str | None = None,
             device: str | None = None, seed: int = 0, overwrite: bool = False, window: int | None = None,
             calibration: str | Path | None = None, rounding: str | None = None, conv_group: str | None = None,
             merging: str | None = None, max_codebook_bits: float | None = None,
             sequential: str | Path | Sequence[str] | None = None, configs: str | Path | None = None,
             effort: str | None = None, activations: str | None = None, tuned: str | None = None, graph: bool = True,
             progress: Progress | None = None,
             show: Callable[[dict[str, float | None]], None] | None = None) -> QuantizeResult:
    """Code a checkpoint (single file or diffusers folder) into one vqpack file.

    source_path: where it is, or an opened Source (source_model.py makes one of a model in memory); it is closed.
    output: file or existing folder; None = beside the source, `<model>-vq<bits of the UNet>b.safetensors`.
    plan: replaces bits, method, text_encoder_bits, skip, window, rounding (of uniform codes: spec.UniformSpec),
    conv_group (additive: spec.AdditiveSpec), merging and max_codebook_bits (product: spec.ProductSpec).
    parts: which of "unet", "te", "vae" are kept.
    calibration: file of `vqpack calibrate`; the UNet is coded for the inputs its layers really get.
    sequential: prompts ("built-in", a file or a list) with which the blocks of the UNet are coded one after the other,
    each for the inputs it gets from those coded before (calibration/sequential.py); needs a calibration and, as
    source_path, a checkpoint with its text encoders. configs: a diffusers folder, for unusual ones.
    effort: of additive codes' search, "fast", "normal" (None) or "best" (VQDM's).
    activations: preset (activations/specs.py) that the file's plan is to hold, None = what `plan` holds. tuned: a file
    that this run of tuning.run.tune() has tuned since counts as an earlier result, too. graph: whether a complete file
    has header.canvas_graph. show: called after each coded layer with the weight errors so far (errors_so_far.py).
    device: where the coding runs, None = a GPU if there is one. Same input and settings give the same bytes on the same
    kind of device. Raises VQError (one sentence) for anything a user can cause.
    """
    started, progress = time.monotonic(), progress or Progress()
    given = {"window": window if method == "trellis" else None, "rounding": rounding, "conv_group": conv_group,
             "merging": merging, "max_codebook_bits": max_codebook_bits}
    options = {name: value for name, value in given.items() if value is not None}
    plan = with_activations(plan or make_plan(bits, method, text_encoder_bits, skip, **options), activations)
    _check_parts(parts)
    device, blocks = device or best_device(), None
    with source_path if isinstance(source_path, Source) else open_source(source_path) as source, \
            Calibration(calibration) if calibration else nullcontext() as calibrated:
        layers = arch_layers(source)
        items = [item for item in stored_items(source, layers) if is_kept(item, parts)]
        plan.check([item.layer for item in items])
        _check_rounding(plan, items, calibrated is not None, sequential is not None)
        if calibrated is not None:
            calibrated.check({layer.key: layer.shape for layer in layers if layer.component == "unet"
                              and not layer.dense}, f"'{source.stem}'")
        if sequential is not None:
            blocks = _sequential(source_path, sequential, calibrated, device, configs, progress)
        job = _Job(source, plan, sorted(set(parts)), seed, device, progress, calibrated, blocks, effort, graph, show)
        folder, name = target_of(source, output)
        found = None if overwrite else job.find_existing(folder, name, tuned)
        return found or job.run(items, folder, name, overwrite, started)


def _check_parts(parts) -> None:
    if not parts or any(part not in PARTS for part in parts):
        raise PlanError(f"parts must be chosen from {', '.join(PARTS)}, got '{','.join(parts)}'")


def _sequential(path, prompts, calibrated: Calibration | None, device: str, configs, progress: Progress):
    """calibration.sequential.Sequential; PlanError where it cannot be."""
    if calibrated is None:
        raise PlanError("coding block by block needs to know the first block's inputs: give a file of `vqpack "
                        "calibrate` with --calibration")
    if isinstance(path, Source):
        raise PlanError("coding block by block draws pictures with the checkpoint: give its path, not an opened one")
    from .calibration.sequential import Sequential

    return Sequential(path, prompts, calibrated, device, configs, progress=progress)


def _check_rounding(plan: Plan, items: list[Item], calibrated: bool, sequential: bool) -> None:
    for item in items:
        rounding = getattr(plan.spec_for(item.layer), "rounding", "auto")
        if rounding == "block" and not sequential:
            raise PlanError(f"rounding 'block' of '{item.layer.key}' is learned for what its block gets in the partly "
                            f"coded model: code with --sequential, --prompts and --calibration, or use rounding "
                            f"adaround, layer by layer")
        if rounding in ("gptq", "adaround", "block") and not calibrated:
            raise PlanError(f"rounding '{rounding}' of '{item.layer.key}' needs to know the layer's inputs: give a "
                            f"file of `vqpack calibrate` with --calibration, or use rounding auto")


def best_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def target_of(source: Source, output) -> tuple[Path, str | None]:
    """Where a result goes: (folder, file name; None where the name waits for the measured bits)"""
    if output is None:
        return source.folder, None
    output = Path(output)
    if output.is_dir():
        return output, None
    name = output.name if output.suffix == SUFFIX else output.name + SUFFIX
    return output.parent, safe_stem(name[:-len(SUFFIX)]) + SUFFIX


def _add(writer: Writer, key: str, item: CodedItem) -> None:
    (writer.add if item.code is None else writer.add_blob)(key, item.stored, note=item.note(key))


class _Job:
    """One run: what is read, how it is coded, how it is counted."""

    def __init__(self, source: Source, plan: Plan, parts: list[str], seed: int, device: str, progress: Progress,
                 calibration: Calibration | None = None, sequential=None, effort: str | None = None,
                 graph: bool = True, show: Callable | None = None):
        self.calibration, self.sequential, self.graph = calibration, sequential, graph
        self.errors = ErrorsSoFar(show)
        self.search = {"effort": effort} if effort not in (None, "normal") else {}
        self.source, self.plan, self.device, self.progress = source, plan, device, progress
        self.fallbacks = Fallbacks()
        self.settings = {"parts": parts, "seed": seed}
        if calibration is not None:
            self.settings["calibration"] = {"fingerprint": calibration.fingerprint, "pictures": calibration.count}
        if sequential is not None:
            self.settings["sequential"] = {"fingerprint": sequential.fingerprint, "pictures": len(sequential.pictures)}
        self.settings.update(self.search)
        self.identity = source.identity(progress)
        self.fingerprint = fingerprint(self.identity, plan.to_json(), self.settings, __version__)

    def find_existing(self, folder: Path, name: str | None, tuned: str | None = None) -> QuantizeResult | None:
        """An earlier file in the folder, made from the same source with the same plan, settings and program, not tuned
        since, or by the run `tuned`.
        """
        pattern = name or f"{glob_safe(safe_stem(self.source.stem))}-vq*{SUFFIX}"
        for path in sorted(folder.glob(pattern) if name is None else [folder / name]):
            found = read_result(path)
            if found is not None and fingerprint(*found["identity"]) == self.fingerprint and (
                    not found["tuning"] or tuned is not None and found["tuning"].get("run") == tuned):
                layers = [LayerResult(**layer) for layer in found["layers"]]
                return QuantizeResult(path, found["architecture"], found["bits"], path.stat().st_size, self.identity,
                                      0.0, layers, already_there=True)
        return None

    def run(self, items: list[Item], folder: Path, name: str | None, overwrite: bool, started: float):
        """Code all items into the spool, then write the file -> QuantizeResult"""
        path = folder / (name or f"{safe_stem(self.source.stem)}-vq{SUFFIX}")
        writer = Writer(path, overwrite, self.fingerprint, self._expected_bytes(items), self.progress)
        self.errors.begin((item.layer.key for item in items if self.plan.spec_for(item.layer).kind != "dense"), writer)
        try:
            with closing(self._stages(items, writer, path)) as stages:
                for stage in stages:
                    block = self.sequential.block if self.sequential else None
                    if block is None:
                        self._code_all(stage, writer)
                    else:
                        self._code_block(stage, block, writer)
            layers, stored = self._collect(items, writer)
            graph = canvas_graph(one.component for one in stored) if self.graph else {}
            file_bytes, metadata = settle(writer, [layer.to_json() for layer in layers], stored,
                                          lambda bits: self._metadata(layers, bits) | graph)
            bits = json.loads(metadata["vqpack.bits"])
            if name is None:
                writer.rename(output_name(folder, self.source.stem, bits["unet"]))
            path = writer.close(metadata, self.progress)
        finally:
            writer.abort(keep_spool=True)
        return QuantizeResult(path, self.source.architecture, bits, file_bytes, self.identity,
                              time.monotonic() - started, layers, fallbacks=self.fallbacks)

    def _expected_bytes(self, items: list[Item]) -> int:
        """Rough size of the result, for the check of free space."""
        total = 0
        for item in items:
            spec = self.plan.spec_for(item.layer)
            rate = 8 * self.source.dtype(item.source_key).itemsize if spec.kind == "dense" else spec.bits + 0.1
            total += item.layer.numel * rate / 8
        return int(total) + (1 << 20)

    def _stages(self, items: list[Item], writer: Writer, path: Path) -> Iterator[list[Item]]:
        """Lists of items, each to be coded before the next is asked for."""
        if self.sequential is None:
            yield items
        else:
            specs = {item.layer.key: self.plan.spec_for(item.layer) for item in items}
            coded = {key for key, spec in specs.items() if spec.kind != "dense"}
            together = {item.layer.key for item in items if self._together(item)}
            yield from self.sequential.stages(items, coded, writer, path, self.fingerprint, together)

    def _together(self, item: Item) -> bool:
        """Whether its roundings are learned with those of its block."""
        return item.layer.component == "unet" and getattr(self.plan.spec_for(item.layer), "rounding", "") == "block"

    def _code_all(self, items: list[Item], writer: Writer) -> None:
        with closing(self._coded([item for item in items if item.layer.key not in writer])) as results:
            for item, coded in results:
                _add(writer, item.layer.key, coded)

    def _code_block(self, items: list[Item], block: Block, writer: Writer) -> None:
        """Layer by layer, then together; again where an earlier run had written a part, which makes the rest the same.
        """
        coded = {item.layer.key: one for item, one in self._coded(items)}
        keys = [item.layer.key for item in items if self._together(item)]
        for key, one in round_together(block, coded, keys, self.settings["seed"], self.progress).items():
            if key not in writer:
                _add(writer, key, one)

    def _coded(self, todo: list[Item]) -> Iterator[tuple[Item, CodedItem]]:
        """Each item as it is coded, in any order."""
        self._announce(todo)
        stoppable = Stoppable(self.progress)
        results = as_done(lambda item: self._code(item, stoppable), todo, worker_count(self.device), stoppable)
        with closing(results):
            for item, coded in results:
                yield item, coded
                self.errors.add(item.layer.key, coded)
                self.progress.advance(work(item, self.plan), item.layer.key)
        self.progress.finish()

    def _collect(self, items: list[Item], writer: Writer) -> tuple[list[LayerResult], list[Stored]]:
        """What the spool holds, from this run and earlier ones, and the shared tables it needs."""
        layers, stored, tables = [], [], set()
        for item in items:
            key = item.layer.key
            note = writer.note(key) or {}
            if "layer" in note:
                layers.append(LayerResult(**note["layer"]))
                tables.update(note["tables"])
            stored.append(Stored(key, item.layer.component, item.layer.numel, writer.nbytes(key), "layer" in note))
        for table in sorted(tables):
            if table_key(table) not in writer:
                writer.add(table_key(table), table_bytes(table_by_id(table)))
            stored.append(Stored(table_key(table), "table", 0, writer.nbytes(table_key(table)), False))
        return layers, stored

    def _announce(self, todo: list[Item]) -> None:
        """Start the stage with a time measured here: how fast this machine codes with the plan's main spec."""
        total = sum(work(item, self.plan) for item in todo)
        speed = estimate_speed(self.plan.unet, self.device, worker_count(self.device),
                               self.progress) if total > 1 << 24 else None
        seconds = total / speed / EFFORT.get(self.plan.unet.kind, 1.0) if speed else None
        self.progress.start("coding", total, seconds=seconds)

    def _code(self, item: Item, stoppable: Stoppable) -> CodedItem:
        """Code one tensor; runs in a worker."""
        stoppable.check()
        key, spec = item.layer.key, self.plan.spec_for(item.layer)
        if spec.kind == "dense":
            return CodedItem(item.load(self.source))
        loaded = item.load_float(self.source)
        gram = self.calibration.gram(key) if self.calibration and item.layer.component == "unet" else None
        seen = self.sequential.seen(key) if self.sequential else None
        target = None
        if seen is not None:
            gram, target = seen.gram, seen.target(loaded)
        search = self.search if spec.kind == "additive" else {}

        def encode(device: str, **options):
            return encode_weight(loaded, spec, key=key, device=device, source_dtype=self.source.dtype(item.source_key),
                                 splits=item.layer.splits, seed=self.settings["seed"], progress=stoppable, gram=gram,
                                 target=target, **search, **options)

        coded = with_less_memory(encode, spec.kind, self.device, self.fallbacks)
        return CodedItem(coded.weight.blob, coded, loaded, gram, target)

    def _metadata(self, layers: list[LayerResult], bits: dict) -> dict[str, str]:
        weights = sum(prod(layer.shape) for layer in layers)
        mean = sum(prod(layer.shape) * layer.relative_error for layer in layers) / weights if weights else 0.0
        summary = {"coded_layers": len(layers), "mean_relative_error": round(mean, 8)}
        return {**common_metadata(self.source, self.source.metadata), "vqpack.bits": dump(bits),
                "vqpack.source": dump(self.identity), "vqpack.plan": dump(self.plan.to_json()),
                "vqpack.settings": dump(self.settings), "vqpack.summary": dump(summary)}
