from clip3dreid.io.flatten import flatten


def test_nested_settings_are_one_level_with_dotted_keys() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": [{"f": 2}]}) == {
        "a.b": 1,
        "a.c.d": None,
        "e": [{"f": 2}],
    }


def test_an_empty_mapping_is_not_a_key_that_is_missing() -> None:
    assert flatten({"a": {}}) == {"a": {}}
