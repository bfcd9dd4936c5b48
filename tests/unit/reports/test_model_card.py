import dataclasses

from checkpoints import CONFIG

from petseg.reports import model_card
from petseg.reports.model_card import ModelCard

CARD = ModelCard(title="x", model=CONFIG, history=[], training=None, licence="not stated", differences={}, versions=[])


def test_model_card_unknown_training_is_stated() -> None:
    text = model_card.render(CARD)
    assert "Not known" in text and "not stated" in text and "Oxford" not in text and "onnxruntime" not in text


def test_model_card_of_crops_resizes_by_the_scale() -> None:
    crops = dataclasses.replace(CARD, model=dataclasses.replace(CONFIG, scale=0.5), differences={"model.onnx": 0.0})
    text = model_card.render(crops)
    assert "trained on crops of 32 × 32 of photos resized bilinearly with antialiasing, as Pillow does, to 0.5" in text
    assert "photo.resize((max(1, round(photo.width * 0.5)), max(1, round(photo.height * 0.5))), Image" in text
