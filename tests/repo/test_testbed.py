"""The testbed is what its README says: the same scenes on every machine, a complete pipeline."""
import hashlib
import importlib.util
import json


def load_scenes(repository):
    spec = importlib.util.spec_from_file_location("testbed_scenes", repository / "testbed" / "scenes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_first_training_scene_is_unchanged(repository):
    image, caption, attributes = load_scenes(repository).scene(seed=1, index=0)
    assert caption == "a large green square on a dotted yellow background"
    assert attributes == {"objects": [("square", "green", "large")], "relation": None, "ground": "dotted",
                          "background": "yellow"}
    assert hashlib.sha256(image.tobytes()).hexdigest() == (
        "110d1bc282d8b90c8b744e67d5164d211ed2eef76b607567f9522a3d28b0bd1f")


def test_two_objects_are_said_in_order(repository):
    scenes = load_scenes(repository)
    image, caption, attributes = next(s for s in (scenes.scene(9, i) for i in range(50)) if s[2]["relation"])
    first, second = attributes["objects"]
    assert caption.startswith(f"a {first[2]} {first[1]} {first[0]} {attributes['relation']} a {second[2]}")
    assert image.shape == (64, 64, 3) and set(caption.split()) <= set(scenes.WORDS)


def test_pipeline_folder_is_complete(testbed):
    index = json.loads((testbed / "model_index.json").read_text(encoding="utf-8"))
    parts = [name for name, entry in index.items() if isinstance(entry, list) and entry[0]]
    assert len(parts) == 7
    for name in parts:
        assert any((testbed / name).iterdir()), name
