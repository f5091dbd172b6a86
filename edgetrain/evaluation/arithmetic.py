"""A trained network judged in the whole numbers that a microcontroller would compute it in."""

from edgetrain.build import Trained
from edgetrain.errors import UserError, listing, nearest
from edgetrain.methods.lowering import lower
from edgetrain.methods.quantize import SCHEMES, in_scheme


def evaluate_in(trained: Trained, arithmetic: str) -> dict[str, float | int]:
    """test/loss and test/accuracy on the test split, and test/differs: answers that the float network gives otherwise.

    arithmetic: int8 or q7; a network that training did not leave in it is quantised first, calibrated on the train
    split. Raises UserError for another arithmetic, and for a network that has no form in it.
    """
    if arithmetic not in SCHEMES:
        raise UserError(
            f"arithmetic={arithmetic} is not known; there is {listing(SCHEMES)}{nearest(arithmetic, SCHEMES)}"
        )
    inputs = trained.task.example_inputs()
    model = in_scheme(trained.model.cpu().eval(), arithmetic, inputs, trained.data)
    trained.data.setup("test")
    judged, reference = (
        trained.task.predictions(network, trained.data.test_dataloader())
        for network in (lower(model, inputs), model.float_model)
    )
    metrics = trained.task.score(judged)
    return {f"test/{name}": value for name, value in metrics.items()} | {
        "test/differs": judged.compared_with(reference)["differs"]
    }
