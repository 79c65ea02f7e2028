"""What brings questions, models and stores together in a loop."""

from actstore.pipelines.reconstruct import Reconstruction, inference_of_store, reconstruct_inference

__all__ = ["Reconstruction", "inference_of_store", "reconstruct_inference"]
