"""Sets up codes that are assigned anew while tuning: which ones, from what, and with how many candidates."""
from __future__ import annotations

from ...kernels.parts import AdditivePart
from ..decompress import decode_tensor
from ..encode import to_matrix
from ..errors import UnsupportedError
from ..progress import Progress
from .assigned import Assigned
from .candidates import Candidates
from .coded import TunedLayer
from .student import Student


def prepare(student: Student, original, progress: Progress) -> None:
    """From now on the student's product and additive codes are assigned from the weights of `original`, opened.

    UnsupportedError where it has no such codes, or none that can have candidates where those are asked for.
    """
    layers = {key: layer for key, layer in student.layers.items() if _coded_parts(layer)}
    if not layers:
        raise UnsupportedError(f"'{student.path.name}' holds no product or additive codes, which --reassign is about: "
                               f"leave it out, or let a share of its codes change with --flips")
    count = student.trained.candidates
    if count > 1 and all(part.part.codebooks.shape[1] > 1 for layer in layers.values() for part in _coded_parts(layer)):
        raise UnsupportedError(f"the codes of '{student.path.name}' are sums of several books, and --candidates needs "
                               f"one book a group, as product codes have: leave it out")
    progress.start("reading the teacher's weights", sum(layer.coded.numel for layer in layers.values()))
    for key, layer in layers.items():
        _prepare(layer, decode_tensor(original, key), student.trained.reassign == "latent", count)
        progress.advance(layer.coded.numel, key)
    student.prepare()
    progress.finish()


def _prepare(layer: TunedLayer, weight, latent: bool, count: int) -> None:
    for masters, (start, stop), branch in zip(layer.parts, layer.ranges, layer.branches(), strict=True):
        if not isinstance(masters.part, AdditivePart):
            continue
        masters.assigned = Assigned(masters.part, to_matrix(weight, start, stop).to(masters.part.codes.device), latent)
        if count > 1 and masters.part.codebooks.shape[1] == 1:
            masters.assigned = Candidates(masters.part, masters.assigned.vectors(masters.part, branch), count)


def _coded_parts(layer: TunedLayer) -> list:
    return [masters for masters in layer.parts if isinstance(masters.part, AdditivePart)]
