"""The arithmetic of the calibration benches, on hand-made numbers and on a UNet of a few channels."""
from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch


def student(bits: float, share: float = 1.0, better: float = 0.0, prompts: int = 20) -> dict:
    """As calibrated.load_students gives it: prompts spread over 10 dB, attributes over 1."""
    spread = torch.linspace(-5, 5, prompts, dtype=torch.float64)
    values = {"latent_psnr": ("median", 20 + better + spread), "attributes": ("mean", 0.5 + better / 20 + spread / 10)}
    return {"bits_unet": bits, "bits_layers": bits - 1, "share": share, "values": values}


def test_claims_leave_out_who_codes_less_and_pair_the_rest(bench):
    calibrated = bench("calibrated")
    students = {"planned-3": student(4.07), "planned-2": student(3.16), "gguf-Q4_K": student(5.45, better=1),
                "ours-palette-4": student(5.0, better=-1), "hqq-4bit-g64": student(9.0, share=0.4, better=-9),
                "gguf-Q3_K": student(4.48)}
    lines = {(row["claim"], row["other"], row["metric"]): row for row in calibrated.claim_lines(students)}
    claim = "planned 3 bits, every data-free 4-bit method"
    behind = lines[claim, "gguf-Q4_K", "latent_psnr"]
    assert (behind["verdict"], behind["difference"], behind["ours_bits"], behind["other_bits"]) == (
        "behind", "-1.000", "4.070", "5.450")
    ahead = lines[claim, "ours-palette-4", "attributes"]
    assert (ahead["verdict"], ahead["difference"]) == ("ahead", "0.050")            # means of a share, not medians
    assert lines["planned 2 bits, every data-free 3-bit method", "gguf-Q3_K", "latent_psnr"]["verdict"] == "undecided"
    assert not any(other.startswith("hqq") for _, other, _ in lines)


def test_claims_name_students_that_exist(bench):
    """A claim about a student nobody makes would silently vanish."""
    calibrated, made = bench("calibrated"), bench("calibrated_students")
    names = {row.name for row in made.calibrated_rows(Path("x"))}
    for claim in calibrated.CLAIMS:
        assert claim.ours in names
        assert any(re.search(claim.others, name) for name in {*names, *bench("quality_students").rows()})


def test_students_own_medians(bench):
    one = student(3.0)
    one["values"]["latent_psnr"] = ("median", torch.tensor([1.0, 2.0, 60.0], dtype=torch.float64))
    rows = {row["metric"]: row for row in bench("calibrated").student_lines({"a": one})}
    assert rows["latent_psnr"]["value"] == "2.000" and rows["latent_psnr"]["prompts"] == 3
    assert rows["attributes"]["statistic"] == "mean" and float(rows["attributes"]["low"]) < 0.5


def test_layer_errors_are_compared_layer_by_layer(bench):
    compare = bench("generalization").compare_layers
    errors = {("none", 2.0, "others"): {"a": 0.4, "b": 0.1}, ("captions", 2.0, "others"): {"a": 0.1, "b": 0.2},
              ("captions", 2.0, "captions"): {"a": 0.1, "b": 0.1}}
    row = compare("captions", 2.0, "others", errors)
    assert row["over_free"] == f"{math.sqrt(0.25 * 2):.4f}" and row["worst_over_free"] == "2.0000"
    assert (row["layers_worse"], row["layers"]) == (1, 2)
    assert row["over_captions"] == f"{math.sqrt(2):.4f}" and row["error"] == f"{math.sqrt(0.02):.6f}"
    assert compare("captions", 2.0, "captions", errors)["over_free"] == ""


def test_outputs_error_through_a_gram_is_that_of_the_inputs(bench):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(50, 6, generator=generator), torch.randn(4, 6, generator=generator)
    lost = 0.1 * torch.randn(4, 6, generator=generator)
    wanted = float((x @ lost.t()).square().sum() / (x @ weight.t()).square().sum())
    gram = (x.t() @ x / 50)[None]
    assert bench("testbed_bench")._relative(weight, weight - lost, gram) == pytest.approx(wanted, 1e-5)


def test_few_samples_are_parted(bench):
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    found = bench("generalization").few_samples(x)
    assert (found.count, found.held_out_count) == (48, 16)
    assert torch.allclose(found.blocks[0], x[:48].t() @ x[:48] / 48)
    assert torch.allclose(found.held_out[0], x[48:].t() @ x[48:] / 16)


def test_random_prompts_are_no_captions(bench):
    made = bench("testbed_bench")
    from scenes.data import load_scenes

    prompts = made.random_prompts(40, 5)
    assert prompts == made.random_prompts(40, 5) != made.random_prompts(40, 6)
    assert {word for prompt in prompts for word in prompt.split()} <= set(load_scenes().WORDS)
    captions = {made.scene_captions(40, seed)[i] for seed in (5, 11) for i in range(40)}
    assert not captions & set(prompts) and len(set(prompts)) == 40


def test_captures_see_equally_many_vectors_and_their_windows_hold_enough_steps(bench, repository):
    from diffusers import EulerDiscreteScheduler

    timesteps = bench("timesteps")
    scheduler = EulerDiscreteScheduler.from_pretrained(repository / "testbed" / "pipe" / "scheduler")
    scheduler.set_timesteps(timesteps.BASE["steps"])
    for name, capture in timesteps.CAPTURES["base"].items():
        low, high = capture.get("window", (0, 1000))
        inside = [t for t in scheduler.timesteps.tolist() if low <= t <= high]
        assert len(inside) >= capture["timesteps"], name
        assert capture["timesteps"] > 1 or len(inside) == 1, name
    for captures in timesteps.CAPTURES.values():
        assert len({capture["timesteps"] * capture["tokens"] for capture in captures.values()}) == 1


def test_captures_are_compared_with_the_first(bench):
    better, worse = torch.linspace(10, 20, 20).tolist(), torch.linspace(9, 19, 20).tolist()
    rows = bench("timesteps").compared("base", 2.0, {"all": {"noise_snr": better}, "late": {"noise_snr": worse}})
    assert [row["first_has_more"] for row in rows] == ["0.000", "1.000"]
    assert (rows[1]["median"], rows[1]["pictures"]) == ("14.000", 20) and float(rows[1]["low"]) > 0


def test_roundings_are_compared_with_all_earlier_ones(bench):
    less, more = (torch.linspace(low, low + 10, 20).tolist() for low in (10, 12))
    found = {name: {"bits": 4.1, "noise_snr": values, "latent_psnr": values} for name, values in
             (("nearest", less), ("adaround", less), ("block", more))}
    rows = bench("rounding").compared(4, "block", found)
    assert [(row["metric"], row["over"]) for row in rows] == [
        (metric, over) for metric in ("noise_snr", "latent_psnr") for over in ("", "nearest", "adaround")]
    assert [row["value"] for row in rows[:3]] == ["17.000", "2.000", "2.000"] and float(rows[1]["low"]) > 0
    assert [row["over"] for row in bench("rounding").compared(4, "nearest", {"nearest": found["nearest"]})] == ["", ""]


def test_ratios_in_short(bench):
    found = bench("planning").summary([{"ratio": 0.5, "coding_seconds": 1.0}, {"ratio": 2.0, "coding_seconds": 3.0}])
    assert found == {"layers": 2, "mean": pytest.approx(1), "least": 0.5, "most": 2.0, "coding_seconds": 4.0}


def test_change_of_the_noise_is_that_of_the_layer_and_undone(bench):
    class Asked:
        steps = (0, 1)

        def ask(self, unet, i):
            return unet((i + 1) * torch.tensor([[1.0], [2.0]]).expand(2, 3))        # [halves, 3]

    unet = torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False)).requires_grad_(False)
    weight, calls = unet[0].weight.detach().clone(), [Asked()]
    before = [calls[0].ask(unet, i) for i in range(2)]
    got = bench("planning").change(unet, "0", weight + 0.1, calls, before)
    # 0.1 times the sum of the inputs: .3 and .6 in the first call's halves, .3 + 3 (.6 - .3) guided; then twice
    assert got == pytest.approx((3 * 1.2**2 * 3 * 2.4**2) ** 0.5, rel=1e-5)
    assert torch.equal(unet[0].weight, weight)


def test_sdxl_at_one_bit_of_product_codes(bench):
    size, shapes = bench("sdxl_size"), bench("make_checkpoint").read_shapes("base")
    from vqpack.vq_core.spec import make_spec

    found = size.unet_size(shapes, make_spec("product", 1))
    assert found["weights"] == 2_567_463_684 and found["bytes"] <= 0.428e9 and found["times_smaller_than_float32"] > 24
    assert size.unet_size(shapes, make_spec("product", 2))["bytes"] > 0.7e9


def test_front_gives_the_blocks_own_output(bench):
    from diffusers import UNet2DConditionModel

    sdxl = bench("sdxl_front")
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8, 16), norm_num_groups=4, layers_per_block=1, attention_head_dim=4,
        cross_attention_dim=12, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=30, use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")).eval().requires_grad_(False)
    calls, seen = sdxl.made_calls(unet.config, 0, 2, 64), []
    hook = unet.down_blocks[2].register_forward_hook(lambda _, __, output: seen.append(output[0]))
    calls.ask(unet, 1)
    hook.remove()
    front = sdxl.Front(unet)
    assert torch.equal(calls.ask(front, 1), seen[0]) and seen[0].shape == (2, 16, 2, 2)
    assert not torch.equal(calls.ask(front, 0), seen[0])
    assert not front.block._forward_hooks and front.get_submodule("down_blocks.2") is front.block


def test_whole_model_from_one_block(bench):
    """Half of the operations, a quarter of the weights, two threads."""
    block = bench("sdxl_block")
    capture = {"call_cpu_seconds": 20.0, "operations": {"whole": 4.0, "front": 2.0}, "threads": 2,
               "sums_cpu_seconds_a_call": 1.0, "unet_weights": 400, "block_weights": 100, "sums_bytes": 6}
    code = {"layer_cpu_seconds": 180.0, "workers": 2, "weights": 50}
    found = block.whole(capture, code)
    assert (found["call_seconds"], found["sums_seconds_a_call"], found["sums_bytes_by_weights"]) == (20.0, 2.0, 24)
    assert found["drawing_hours"] == round(32 * 25 * 20 / 3600, 2) and found["coding_hours"] == 0.2
    assert found["capture_hours"] == round(32 * 8 * 22 / 3600, 2)


def test_mean_rates_by_place_and_role(bench):
    from types import SimpleNamespace

    def row(key: str, role: str, numel: int, bits: float | None):
        layer = SimpleNamespace(key=f"model.diffusion_model.{key}", role=role, numel=numel)
        return SimpleNamespace(layer=layer, spec=SimpleNamespace(bits=bits) if bits else SimpleNamespace())

    rows = [row("input_blocks.1.0.a", "conv1", 10, 2), row("middle_block.1.a", "ff", 5, None),
            row("input_blocks.1.0.b", "conv1", 30, 4)]
    found = bench("sdxl_block").mean_rates(rows)
    assert found == {"input_blocks.1": {"conv1": 3.5}, "middle_block": {"ff": 16.0}}


def test_students_to_be_tuned_can_be_and_one_name_is_one_student(bench):
    tuned, known = bench("tuned"), {}
    for part in tuned.PARTS.values():
        for student in part():
            assert known.setdefault(student.name, student) == student
            tuned.Tuning(steps=1, **student.tuning, trained=tuned.Trained(**student.trained)).check()
    assert {"trellis-3-tuned", "gptq-4-tuned", "adaround-4-tuned", "trellis-2 flips", "trellis-2-free"} <= set(known)
    alone = known["trellis-2 biases"].trained
    assert alone["biases"] and not any(alone[kind] for kind in ("scales", "books", "norms", "dense"))


def test_tuned_lines_hold_every_metric_with_its_interval(bench):
    tuned = bench("tuned")
    found = {"bits": 3.2, "seconds": 1.6, "noise_snr": torch.tensor([1.0, 2.0, 9.0], dtype=torch.float64),
             "latent_psnr": torch.tensor([3.0, 4.0, 80.0], dtype=torch.float64)}
    tuned.attribute_scores = lambda *_: ({}, {})
    tuned.teacher_way = lambda *_: type("Way", (), {"images": torch.zeros(1, 3, 8, 8)})
    args = type("Args", (), {"steps": 40, "prompts": 3, "folder": None})
    found["pictures"] = torch.zeros(3, 8, 8, 3, dtype=torch.uint8)
    values, listed = tuned.lines(tuned.Student("a", None, share=0.25), found, args)
    rows = {row["metric"]: row for row in listed}
    assert values["noise_snr"] == [1.0, 2.0, 9.0] and "kernel_distance" not in rows        # three pictures are too few
    assert rows["noise_snr"]["value"] == "2.000" and rows["latent_psnr"]["value"] == "4.000"
    assert rows["noise_snr"]["steps"] == 10 and float(rows["latent_psnr"]["low"]) >= 3.0


def test_rows_of_other_runs_stay_and_pairs_are_of_students_there_are(bench, tmp_path):
    tuned = bench("tuned")
    for step, value in ((1, "a"), (2, "b"), (1, "c")):
        tuned.add_rows(tmp_path / "t.csv", [{"student": "x", "steps": step, "value": value}], ("student", "steps"))
    assert (tmp_path / "t.csv").read_text().splitlines() == ["student,steps,value", "x,2,b", "x,1,c"]
    known = {student.name for part in tuned.PARTS.values() for student in part()}
    assert {name for pair in tuned.PAIRS for name in pair} <= known
