from checkpoints import CONFIG

from petseg.reports import model_card


def test_model_card_unknown_training_is_stated() -> None:
    card = model_card.ModelCard(
        title="x", model=CONFIG, history=[], training=None, licence="not stated", differences={}, versions=[]
    )
    text = model_card.render(card)
    assert "Not known" in text and "not stated" in text and "Oxford" not in text and "onnxruntime" not in text
