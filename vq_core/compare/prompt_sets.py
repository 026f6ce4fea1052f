"""Built-in lists of prompts by subject, for those who have none of their own."""
from __future__ import annotations

from types import MappingProxyType

from .prompts import SDXL_PROMPTS

SETS = MappingProxyType({
    "all kinds": SDXL_PROMPTS,
    "people": (
        "portrait photo of a young woman with freckles, overcast light",
        "an elderly couple dancing in a kitchen, film photograph",
        "a barista's hands pouring latte art, close-up",
        "group photo of six friends on a beach at sunset",
        "a boxer wrapping his hands, gym, hard side light",
        "child with a gap-toothed smile holding a kitten",
        "street portrait of a man in a yellow raincoat",
        "ballet dancer in mid-jump, dark stage, rim light"),
    "drawings": (
        "anime girl with silver hair under cherry trees, clean line art, flat colors",
        "watercolor of a fishing village, loose brushwork",
        "isometric pixel art of a wizard's tower",
        "charcoal sketch of a horse's head",
        "comic panel, rainy city street, bold inks, halftone",
        "art nouveau poster of a woman with a lantern",
        "low-poly render of a fox in the snow",
        "children's book illustration of a bear baking bread"),
    "places and things": (
        "misty fjord at dawn, long exposure",
        "interior of a gothic cathedral, light through stained glass",
        "macro photo of a dew-covered spider web",
        "neon-lit alley in Tokyo after rain",
        "mid-century living room, architectural photography",
        "a steam locomotive crossing a viaduct",
        "bowl of ramen from above, studio light",
        "vintage wristwatch on black velvet, product photo"),
})
