"""Decibels, structural similarity and LPIPS against hand-computed values, and what must not change them."""
from __future__ import annotations

import math

import pytest
import torch
from vqpack.vq_core import demo, metrics
from vqpack.vq_core.errors import UnsupportedError

NAN, INF = math.nan, math.inf


def pictures(n: int = 3, channels: int = 3, height: int = 17, width: int = 23, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed))


def noisy(images: torch.Tensor, size: float, seed: int = 1) -> torch.Tensor:
    return images + size * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))


def test_latent_psnr_by_hand():
    reference = torch.tensor([0.0, 2.0, 1.0, 1.0])                # peak 2, error 0.2: 10 log10(4 / 0.04)
    assert metrics.latent_psnr(reference + 0.2, reference) == pytest.approx(20.0, abs=1e-4)
    assert metrics.latent_psnr(reference, reference) == INF
    assert demo.latent_psnr is metrics.latent_psnr


def test_latent_psnr_is_that_of_shifted_and_scaled_latents():
    reference = pictures()
    ours = noisy(reference, 0.1)
    value = metrics.latent_psnr(ours, reference)
    assert metrics.latent_psnr(7 * ours - 3, 7 * reference - 3) == pytest.approx(value, abs=1e-4)
    assert metrics.latent_psnr(ours.flatten(), reference.flatten()) == value


def test_noise_snr_by_hand_is_a_number_per_sample():
    reference = torch.tensor([[3.0, 4.0], [1.0, 1.0], [2.0, 0.0]])
    ours = torch.tensor([[3.0, 4.5], [1.0, 1.0], [-2.0, 0.0]])    # 25 / 0.25, exact, 4 / 16
    assert metrics.noise_snr(ours, reference).tolist() == pytest.approx([20.0, INF, 10 * math.log10(0.25)])
    shaped = [x.reshape(3, 1, 2, 1) for x in (2.5 * ours, 2.5 * reference)]
    assert torch.equal(metrics.noise_snr(*shaped), metrics.noise_snr(ours, reference))


def test_image_psnr_by_hand():
    reference = torch.zeros(2, 1, 2, 2)
    ours = reference.clone()
    ours[0] += 0.1
    ours[1, 0, 0, 0] = 1.0                                        # one of four pixels wrong by the whole peak
    assert metrics.image_psnr(ours, reference).tolist() == pytest.approx([20.0, 10 * math.log10(4)], abs=1e-4)
    assert torch.equal(metrics.image_psnr(255 * ours, reference, peak=255).round(decimals=4),
                       metrics.image_psnr(ours, reference).round(decimals=4))


def test_half_precision_outputs_are_measured_exactly():
    reference = pictures().half()
    assert metrics.image_psnr(reference, reference).tolist() == [INF] * 3
    assert metrics.ssim(reference, reference).tolist() == [1.0] * 3
    ours = reference.clone()
    ours[0, 0, 0, 0] += 2**-9                                     # one step of fp16, its square underflows there
    error = (float(ours[0, 0, 0, 0]) - float(reference[0, 0, 0, 0]))**2 / reference[0].numel()
    assert float(metrics.image_psnr(ours, reference)[0]) == pytest.approx(10 * math.log10(1 / error))


def test_broken_outputs_are_the_worst_and_stay_in_the_table():
    reference = pictures()
    for bad in (NAN, INF):
        ours = reference.clone()
        ours[1, 0, 0, 0] = bad
        assert metrics.image_psnr(ours, reference).tolist() == [INF, -INF, INF]
        assert metrics.noise_snr(ours, reference).tolist() == [INF, -INF, INF]
        assert metrics.latent_psnr(ours[1], reference[1]) == -INF
    assert math.isnan(metrics.latent_psnr(reference, reference * NAN))
    flat = torch.ones(1, 1, 4, 4)
    assert metrics.latent_psnr(flat, flat) == INF and metrics.latent_psnr(flat + 1, flat) == -INF


def ssim_by_definition(x: torch.Tensor, y: torch.Tensor, peak: float) -> float:
    """Wang et al. 2004, equation 13, window by window in plain Python."""
    weights = [[math.exp(-((i - 5)**2 + (j - 5)**2) / (2 * 1.5**2)) for j in range(11)] for i in range(11)]
    total = sum(map(sum, weights))
    values = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            window = [(weights[i][j] / total, float(x[top + i, left + j]), float(y[top + i, left + j]))
                      for i in range(11) for j in range(11)]
            mean_x, mean_y = sum(w * a for w, a, _ in window), sum(w * b for w, _, b in window)
            var_x = sum(w * (a - mean_x)**2 for w, a, _ in window)
            var_y = sum(w * (b - mean_y)**2 for w, _, b in window)
            both = sum(w * (a - mean_x) * (b - mean_y) for w, a, b in window)
            c1, c2 = (0.01 * peak)**2, (0.03 * peak)**2
            values.append((2 * mean_x * mean_y + c1) * (2 * both + c2)
                          / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)))
    return sum(values) / len(values)


def test_ssim_is_its_definition():
    reference = pictures(2, 2, 12, 14)
    ours = noisy(reference, 0.2)
    wanted = [sum(ssim_by_definition(ours[n, c], reference[n, c], 1.0) for c in range(2)) / 2 for n in range(2)]
    assert metrics.ssim(ours, reference).tolist() == pytest.approx(wanted, abs=1e-9)
    assert metrics.ssim(255 * ours, 255 * reference, peak=255).tolist() == pytest.approx(wanted, abs=1e-6)


def test_ssim_of_constants_by_hand():
    a, b = 0.2, 0.6                                               # no variance: only the term of the means is left
    found = metrics.ssim(torch.full((1, 1, 11, 11), a), torch.full((1, 1, 11, 11), b))
    assert float(found) == pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4), abs=1e-6)


def test_ssim_is_symmetric_and_turns_with_the_picture():
    reference = pictures()
    ours = noisy(reference, 0.1)
    value = metrics.ssim(ours, reference)
    assert torch.allclose(metrics.ssim(reference, ours), value)
    for change in (lambda x: x.flip(-1), lambda x: x.transpose(-1, -2), lambda x: x[:, [2, 0, 1]]):
        assert torch.allclose(metrics.ssim(change(ours), change(reference)), value)
    assert (metrics.ssim(noisy(reference, 0.3), reference) < value).all() and (value < 1).all()


def test_a_batch_is_its_samples():
    reference = pictures()
    ours = noisy(reference, 0.1)
    for metric in (metrics.image_psnr, metrics.ssim, metrics.noise_snr):
        singly = torch.cat([metric(a[None], b[None]) for a, b in zip(ours, reference)])
        assert torch.allclose(metric(ours, reference), singly, rtol=1e-12)
        assert torch.allclose(metric(ours.flip(0), reference.flip(0)).flip(0), singly, rtol=1e-12)


def test_known_noise_is_recovered_within_its_interval():
    """Noise of 1/10 is 20 dB under a peak of 1, of 1/20 is 6.02 dB less: 95 % intervals of 30 pictures, 40 times."""
    held = {"image": 0, "latent": 0, "difference": 0}
    for seed in range(40):
        reference = pictures(30, 3, 16, 16, seed)
        reference[:, 0, 0, 0], reference[:, 0, 0, 1] = 0, 1                       # the latents' peak is 1 too
        coarse, fine = noisy(reference, 0.1, 1000 + seed), noisy(reference, 0.05, 2000 + seed)
        values = [metrics.image_psnr(images, reference) for images in (coarse, fine)]
        latent = [metrics.latent_psnr(a, b) for a, b in zip(coarse, reference)]
        for name, found, truth in (("image", metrics.bootstrap(values[0], resamples=500), 20.0),
                                   ("latent", metrics.bootstrap(latent, resamples=500), 20.0),
                                   ("difference", metrics.paired_bootstrap(*values, resamples=500), -6.0206)):
            assert found.high - found.low < 0.4
            held[name] += found.low <= truth <= found.high
    assert all(34 <= count <= 40 for count in held.values()), held


@pytest.mark.parametrize("metric", [metrics.latent_psnr, metrics.noise_snr, metrics.image_psnr, metrics.ssim,
                                    metrics.lpips])
def test_different_shapes_are_refused(metric):
    with pytest.raises(UnsupportedError, match=r"one shape, got \[1, 3, 17, 23\] against the reference's \[3, 3, 17"):
        metric(pictures(1), pictures(3))


def test_images_must_be_a_batch_and_large_enough():
    with pytest.raises(UnsupportedError, match=r"batch \[n, channels, height, width\], got \[3, 17, 23\]"):
        metrics.image_psnr(pictures()[0], pictures()[0])
    with pytest.raises(UnsupportedError, match="at least 11 x 11 pixels, got 8 x 30"):
        metrics.ssim(pictures(height=8, width=30), pictures(height=8, width=30))


def test_lpips_is_probed_and_never_fetched(monkeypatch, tmp_path):
    """Without the package, or with the package but without weights in the cache: None, and nothing is imported."""
    import sys
    from types import SimpleNamespace

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    assert metrics.lpips(pictures(), pictures()) is None
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    assert metrics.lpips(pictures(), pictures()) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / metrics.LPIPS_WEIGHTS).touch()

    class Package:
        def __init__(self, net, verbose):
            assert (net, verbose) == ("alex", False)

        def eval(self):
            return self

        def __call__(self, a, b, normalize):
            assert a.dtype == torch.float32 and a.shape == (1, 3, 17, 23) and normalize
            return (a - b).abs().mean((1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Package))
    metrics._lpips_model.cache_clear()
    try:
        found = metrics.lpips(pictures() + 0.25, pictures())
        assert found.tolist() == pytest.approx([0.25] * 3, abs=1e-6)
        assert metrics.lpips(pictures(), pictures()).tolist() == [0.0] * 3
    finally:
        metrics._lpips_model.cache_clear()
