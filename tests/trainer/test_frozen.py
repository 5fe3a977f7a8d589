from zerofleet.trainer.frozen import flatten, frozen_changes, is_frozen


def test_what_changes_the_samples_or_the_weights_is_frozen_and_a_mere_place_is_not():
    assert all(map(is_frozen, ("run.seed", "run.init_from", "data", "data.hub.id", "model.config.hidden_size")))
    assert not any(
        map(
            is_frozen,
            ("data.cache", "model.attn_implementation", "train.steps", "train.global_batch_size_x", "run", "tracking"),
        )
    )


def test_each_frozen_change_is_named_with_both_values():
    before = {"run": {"seed": 0}, "model": {"config": {"a": 1}}, "train": {"steps": 5}}
    after = {"run": {"seed": 7}, "model": {"config": {}}, "train": {"steps": 9}}
    assert frozen_changes(before, before) == []
    changes = frozen_changes(before, after)
    assert "run.seed is frozen for the life of a run: it is 0, not 7" in changes
    assert not any("train.steps" in change for change in changes) and any("model.config.a" in c for c in changes)


def test_leaves_by_dotted_path():
    assert flatten({"a": {"b": {"c": 1}}, "d": [1, {"e": 2}], "f": {}}) == {"a.b.c": 1, "d": [1, {"e": 2}], "f": {}}
