from search.tracking.recorder import config_params


def test_names_of_nested_settings_are_joined_with_dots() -> None:
    assert config_params({"a": {"b": {"c": 1}}, "d": [1, 2]}) == {"a.b.c": "1", "d": "1, 2"}
