"""From a trained model to an artefact that is judged itself."""
