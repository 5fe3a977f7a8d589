import numpy as np
import pytest
from safetensors.numpy import load_file

from zerofleet.cluster.outer.state import OuterState, OuterStore, RoundRecord
from zerofleet.trainer.errors import StorageError
from zerofleet.trainer.storage import Storage


def state(number=0) -> OuterState:
    weights = {"w": np.arange(5, dtype=np.float32) + number, "b/c": np.ones(3, np.float32)}
    initial = OuterState.initial(weights, ("momentum",))
    return OuterState(RoundRecord(number, {"a": 7}), initial.weights, initial.moments)


def test_a_round_is_read_back_as_it_was_written(tmp_path):
    store = OuterStore(Storage(str(tmp_path)), keep_rounds=4)
    assert store.newest() is None
    store.save(state(0))
    store.save(after := state(1))
    found = OuterStore(Storage(str(tmp_path)), 4).newest()
    assert found is not None and found.record.round == 1 and found.record.tokens == {"a": 7}
    for name, array in after.weights.items():
        assert found.weights[name].tobytes() == array.tobytes()
    assert sorted(found.moments) == ["momentum"] and not found.moments["momentum"]["w"].any()
    assert store.weights_of(0)["w"].tolist() == [0, 1, 2, 3, 4]


def test_others_can_read_the_file(tmp_path):
    OuterStore(Storage(str(tmp_path)), 4).save(state(2))
    found = load_file(tmp_path / "outer/round-00000002/state.safetensors")
    assert sorted(found) == ["momentum/b/c", "momentum/w", "weights/b/c", "weights/w"]
    assert found["weights/w"].tolist() == [2, 3, 4, 5, 6]


def test_only_the_newest_rounds_are_kept(tmp_path):
    store = OuterStore(Storage(str(tmp_path)), keep_rounds=2)
    for number in range(4):
        store.save(state(number))
    assert store.rounds() == [2, 3]


def test_a_round_that_was_half_written_does_not_exist_and_is_written_again(tmp_path):
    store = OuterStore(Storage(str(tmp_path)), 4)
    store.save(state(0))
    store.save(state(1))
    (tmp_path / "outer/round-00000001/round.json").unlink()
    newest = store.newest()
    assert newest is not None and newest.record.round == 0
    store.save(state(1))
    assert store.rounds() == [0, 1]


def test_damage_is_told(tmp_path):
    store = OuterStore(Storage(str(tmp_path)), 4)
    store.save(state(0))
    path = tmp_path / "outer/round-00000000/state.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError, match="is damaged"):
        store.newest()
