"""Document 001, the storage: its snippets, with only imports and paths changed."""

from pathlib import Path

import pytest

from old_trees import captured, write_captured


@pytest.mark.parametrize("place", ["my_activations", "activation_data"])
def test_activation_storage(place: str, tmp_path: Path) -> None:
    from actstore.legacy import ActivationStorage

    storage_path = tmp_path / place
    question_dict = {"id": "q_123", "question": "Your question here", "censored": True}
    activations_dict = captured()

    storage = ActivationStorage(storage_path)

    # Save activation data
    file_path = storage.save_activation_data(
        question_id="q_123",
        question_data=question_dict,
        response="Model response",
        activations=activations_dict,
    )

    # Load activation data
    activations = storage.load_activation_data(file_path)

    # Get storage statistics
    stats = storage.get_storage_stats()

    assert activations["metadata"] == activations_dict["metadata"]
    for layer, kinds in activations_dict["layers"].items():
        assert list(activations["layers"][layer]) == list(kinds)
        for kind, array in kinds.items():
            assert activations["layers"][layer][kind].tobytes() == array.tobytes()
    assert (stats["total_activation_files"], stats["total_metadata_files"], stats["total_response_files"]) == (1, 1, 1)
    assert stats["total_storage_size_mb"] > 0
    assert sorted(path.name for path in storage_path.iterdir()) == ["activations", "metadata", "responses"]


def test_the_names_that_the_document_shows(tmp_path: Path) -> None:
    """Without the time of the save, which the program added."""
    from actstore.formats import import_store
    from actstore.legacy import ActivationStorage

    (name,) = write_captured(tmp_path, ".npz", 1)
    for folder in ("activations", "metadata", "responses"):
        (file,) = (tmp_path / folder).iterdir()
        file.rename(file.with_name(file.name.replace(name, "q_20240125_143022_0")))
    import_store(tmp_path, tmp_path.with_name("store"), verify=True)
    import actstore

    with actstore.open(tmp_path.with_name("store")) as store:
        assert store.keys() == ["q_20240125_143022_0"]
    loaded = ActivationStorage(tmp_path).load_activation_data(tmp_path / "activations" / "q_20240125_143022_0.npz")
    assert sorted(loaded["layers"]) == ["layer_10", "layer_5"]
