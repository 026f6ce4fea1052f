"""How far a compressed model's outputs are from its teacher's, and how sure a number of prompts makes that.

Everything is computed on the CPU in float64. Exact equality is infinity in dB and zero as a distance. NaN in `ours`
counts as infinitely wrong (-inf dB; NaN as SSIM), so that a broken model stays in a table; references must be finite.
"""
from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import UnsupportedError

SSIM_WINDOW, SSIM_SIGMA, SSIM_K1, SSIM_K2 = 11, 1.5, 0.01, 0.03       # Wang et al. 2004, section III.C
MIN_FEATURES = 128                         # fewest samples of a kernel distance; a guess, not yet measured on scenes
RESAMPLE_BLOCK = 1000                      # resamples drawn at once: 1000 x 5000 prompts are 40 MB
LPIPS_WEIGHTS = "alexnet-owt-7be5be79.pth"                            # the file torchvision keeps after a download
STATISTICS = ("mean", "median")


@dataclass(frozen=True)
class Interval:
    """A statistic with its bootstrap confidence interval, from `count` prompts."""

    low: float
    value: float
    high: float
    count: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def latent_psnr(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """One number for two tensors of any equal shape: 10 log10(peak^2 / mean squared error) in dB.

    peak = the reference's largest minus smallest value. Give one prompt at a time: a batch would share its peak.
    """
    ours, reference = _same_shape(ours, reference)
    peak = reference.max() - reference.min()
    return float(_decibels(peak.square(), (ours - reference).square().mean()))


def noise_snr(ours: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Two batches of noise predictions [n, ...] -> dB [n]: power of the reference's over power of the difference."""
    ours, reference = _same_shape(ours, reference)
    return _decibels(reference.square().flatten(1).sum(1), (ours - reference).square().flatten(1).sum(1))


def image_psnr(ours: torch.Tensor, reference: torch.Tensor, peak: float = 1.0) -> torch.Tensor:
    """Two batches of images [n, channels, height, width] in 0 to peak -> dB [n]: 10 log10(peak^2 / mean sq. error)."""
    ours, reference = _images(ours, reference)
    error = (ours - reference).square().flatten(1).mean(1)
    return _decibels(torch.full_like(error, peak * peak), error)


def ssim(ours: torch.Tensor, reference: torch.Tensor, peak: float = 1.0) -> torch.Tensor:
    """Two batches of images [n, channels, height, width] in 0 to peak -> structural similarity [n], 1 = equal.

    Wang, Bovik, Sheikh, Simoncelli 2004, equation 13 with their 11 x 11 Gaussian window of 1.5 pixels. Only windows
    that lie wholly inside the image count, so the outer 5 pixels weigh less. Each channel by itself, then the mean;
    no reduction in size before.
    """
    ours, reference = _images(ours, reference)
    if min(ours.shape[-2:]) < SSIM_WINDOW:
        raise UnsupportedError(f"SSIM needs images of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, got "
                               f"{ours.shape[-2]} x {ours.shape[-1]}: leave SSIM out or draw larger images")
    n, channels = ours.shape[:2]
    x, y = ours.flatten(0, 1)[:, None], reference.flatten(0, 1)[:, None]                # [n channels, 1, h, w]
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (SSIM_K1 * peak)**2, (SSIM_K2 * peak)**2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)
                  / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)))
    return similarity.reshape(n, channels, -1).mean((1, 2))


def lpips(ours: torch.Tensor, reference: torch.Tensor) -> torch.Tensor | None:
    """Two batches of images [n, 3, height, width] in 0 to 1 -> LPIPS (AlexNet) [n], 0 = equal.

    None where the package or AlexNet's weights are not on this machine: nothing is ever downloaded.
    Zhang et al. 2018; height and width of at least 64, the smallest it was calibrated on.
    """
    ours, reference = _images(ours, reference)
    if not lpips_is_here():
        return None
    model = _lpips_model()
    with torch.no_grad():
        return torch.cat([model(a[None].float(), b[None].float(), normalize=True).double().flatten()
                          for a, b in zip(ours, reference)])


@functools.lru_cache(maxsize=1)
def _lpips_model():
    import lpips as package

    return package.LPIPS(net="alex", verbose=False).eval()


def lpips_is_here() -> bool:
    """Whether package and weights of LPIPS are on this machine."""
    packages = all(importlib.util.find_spec(name) is not None for name in ("lpips", "torchvision"))
    return packages and (Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_WEIGHTS).is_file()


def kernel_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Two sets of features [n, d] and [m, d] -> unbiased squared MMD with the kernel (x.y / d + 1)^3 (KID).

    Binkowski et al. 2018, section 4. Unbiased means that equal distributions average to zero, so single values may be
    negative. With n = m the estimator is equation 4 of Gretton et al. 2012, which leaves a_i with b_i out: it holds
    for independent sets and for pairs of the same prompt and seed, and a set has distance exactly 0 to itself.
    Raises UnsupportedError below MIN_FEATURES samples, whose noise can be as large as a real distance.
    """
    a, b = _features(a, b)
    if len(a) == len(b):
        terms = _pair_terms(a, b)
        return float(terms.sum() / (len(a) * (len(a) - 1)))
    within = sum(float((kernel.sum() - kernel.trace()) / (len(x) * (len(x) - 1)))
                 for x, kernel in ((x, _kernel(x, x)) for x in (a, b)))
    return within - 2 * float(_kernel(a, b).mean())


def kernel_bootstrap(a: torch.Tensor, b: torch.Tensor, confidence: float = 0.95, resamples: int = 10_000,
                     seed: int = 0) -> Interval:
    """kernel_distance of n pairs [n, d], [n, d] with the interval of resampling pairs (row i: same prompt and seed).

    A pair drawn twice is no second sample: its terms with itself are left out and the sum is divided by the weight of
    the rest, else every resample would lie too low.
    """
    a, b = _features(a, b)
    if len(a) != len(b):
        raise UnsupportedError(f"an interval of the kernel distance needs pairs of the same prompts and seeds, got "
                               f"{len(a)} and {len(b)} samples: draw both models on the same ones")
    terms, n = _pair_terms(a, b), len(a)
    values = []
    for drawn in _draws(n, resamples, seed):
        weights = torch.zeros(len(drawn), n, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(drawn.shape, dtype=torch.float64))                     # [resamples, n]
        values.append(((weights @ terms) * weights).sum(1) / (n * n - weights.square().sum(1)))
    low, high = _ends(torch.cat(values), confidence)
    return Interval(low, float(terms.sum() / (n * (n - 1))), high, n)


def bootstrap(values: Sequence[float] | torch.Tensor, statistic: str = "mean", confidence: float = 0.95,
              resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean or median of one value a prompt [n], with its percentile bootstrap interval (Efron 1979).

    Average the seeds of a prompt first: they are not independent. Infinite values (exact outputs) are allowed; one
    NaN makes all of it NaN; one value alone has an unbounded interval. With few prompts it is too narrow: a 95 %
    interval of a mean of 10 normal values holds the truth about 90 % of the time, of 30 about 94 %.
    """
    if statistic not in STATISTICS:
        raise UnsupportedError(f"a bootstrap's statistic must be 'mean' or 'median', got '{statistic}'")
    values = torch.as_tensor(values, dtype=torch.float64, device="cpu")                 # [n]
    if values.ndim != 1 or not len(values):
        raise UnsupportedError(f"a bootstrap needs one value a prompt, got a tensor of shape {list(values.shape)}: "
                               f"average the seeds of each prompt and leave empty sets out")
    value = float(_statistic(values[None], statistic))
    if math.isnan(value):
        return Interval(math.nan, math.nan, math.nan, len(values))
    if len(values) == 1:
        return Interval(-math.inf, value, math.inf, 1)
    drawn = [_statistic(values[index], statistic) for index in _draws(len(values), resamples, seed)]
    low, high = _ends(torch.cat(drawn), confidence)
    return Interval(low, value, high, len(values))


def paired_bootstrap(a: Sequence[float] | torch.Tensor, b: Sequence[float] | torch.Tensor, statistic: str = "mean",
                     confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """bootstrap() of a - b prompt by prompt [n]; equal values, infinite ones too, differ by zero."""
    a, b = (torch.as_tensor(x, dtype=torch.float64, device="cpu") for x in (a, b))
    if a.shape != b.shape:
        raise UnsupportedError(f"a paired comparison needs the same prompts on both sides, got {list(a.shape)} and "
                               f"{list(b.shape)} values: keep the prompts both models have drawn")
    return bootstrap(torch.where(a == b, 0.0, a - b), statistic, confidence, resamples, seed)


def _same_shape(ours: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if ours.shape != reference.shape or not ours.numel():
        raise UnsupportedError(f"outputs to compare must have one shape, got {list(ours.shape)} against the "
                               f"reference's {list(reference.shape)}: draw both at the same size, prompts and steps")
    return ours.detach().cpu().double(), reference.detach().cpu().double()


def _images(ours: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if reference.ndim != 4:
        raise UnsupportedError(f"images to compare must be a batch [n, channels, height, width], got "
                               f"{list(reference.shape)}: add the batch dimension")
    return _same_shape(ours, reference)


def _decibels(signal: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """10 log10(signal / noise); no noise is +inf also without a signal, NaN noise is -inf unless the signal is NaN."""
    ratio = signal / torch.where(noise.isnan(), math.inf, noise)
    return 10 * torch.where(noise == 0, math.inf, ratio).log10()


def _blur(planes: torch.Tensor) -> torch.Tensor:
    """Weighted mean of every window inside [planes, 1, h, w] -> [planes, 1, h - 10, w - 10]"""
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    line = (-offsets.square() / (2 * SSIM_SIGMA**2)).exp()
    line /= line.sum()
    rows = torch.nn.functional.conv2d(planes, line.view(1, 1, -1, 1))
    return torch.nn.functional.conv2d(rows, line.view(1, 1, 1, -1))


def _features(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise UnsupportedError(f"a kernel distance needs features [samples, width] of one width, got {list(a.shape)} "
                               f"and {list(b.shape)}")
    if min(len(a), len(b)) < MIN_FEATURES:
        raise UnsupportedError(f"a kernel distance needs at least {MIN_FEATURES} samples on each side, got {len(a)} "
                               f"and {len(b)}: below that its noise can be as large as a real distance, so draw "
                               f"more prompts or report only the paired metrics")
    return a.detach().cpu().double(), b.detach().cpu().double()


def _kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[n, d], [m, d] -> [n, m]"""
    return (a @ b.T / a.shape[1] + 1)**3


def _pair_terms(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """h of Gretton et al. 2012, lemma 6: k(a_i, a_j) + k(b_i, b_j) - k(a_i, b_j) - k(a_j, b_i), diagonal 0 [n, n]"""
    across = _kernel(a, b)
    terms = _kernel(a, a) - across + (_kernel(b, b) - across.T)
    return terms.fill_diagonal_(0)


def _draws(count: int, resamples: int, seed: int):
    """Indices drawn with replacement, [up to RESAMPLE_BLOCK, count] at a time; the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, resamples, RESAMPLE_BLOCK):
        yield torch.randint(count, (min(RESAMPLE_BLOCK, resamples - first), count), generator=generator)


def _statistic(values: torch.Tensor, name: str) -> torch.Tensor:
    """[resamples, n] -> [resamples]; the median of an even number is the mean of the middle two."""
    if name == "mean":
        return values.mean(1)
    ordered, n = values.sort(1).values, values.shape[1]
    return (ordered[:, (n - 1) // 2] + ordered[:, n // 2]) / 2


def _ends(resampled: torch.Tensor, confidence: float) -> tuple[float, float]:
    """The resampled values that leave (1 - confidence) / 2 outside on each side; no interpolation, it breaks inf."""
    ordered, n = resampled.sort().values, len(resampled)
    outside = int(n * (1 - confidence) / 2)
    return float(ordered[outside]), float(ordered[n - 1 - outside])
