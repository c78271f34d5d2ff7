"""Configuration: the reference's numbers, floats from KFP, and mistakes that are named."""

from pathlib import Path

import pytest

from reasongenrm.config import DPOConfig, PairsConfig, ResourcesConfig, RunConfig, SFTConfig, load_config, parse_section
from reasongenrm.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[1] / "pipelines" / "configs").rglob("*.yaml"))


def test_defaults_are_the_references_numbers():
    config = RunConfig()
    assert (config.distill.num_samples, config.distill.temperature, config.distill.max_tokens) == (16, 1.0, 8192)
    assert config.select.min_score == 0.1
    assert (config.sft.learning_rate, config.sft.train_batch_size, config.sft.num_train_epochs) == (5e-6, 128, 2.0)
    assert (config.sft.max_length, config.genrm.max_length) == (131072, 32768)
    assert (config.dpo.beta, config.dpo.learning_rate, config.dpo.num_train_epochs) == (0.1, 5e-7, 1.0)
    assert (config.preferences.chosen_above, config.preferences.rejected_below) == (0.1, -0.1)


def test_floats_that_kfp_makes_of_ints_become_ints_again():
    section = parse_section(PairsConfig, {"limit": 8.0, "seed": 1.0}, "pairs")
    assert section.limit == 8
    assert isinstance(section.limit, int)


def test_fraction_where_a_count_belongs_is_refused():
    with pytest.raises(ConfigError, match=r"'limit' is 8.5"):
        parse_section(PairsConfig, {"limit": 8.5}, "pairs")


def test_unknown_key_names_the_key_that_was_meant(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("sft:\n  lerning_rate: 1.0e-4\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"run.yaml: unknown key 'sft.lerning_rate'; did you mean 'learning_rate'\?"):
        load_config(path)


def test_all_mistakes_come_in_one_message():
    with pytest.raises(ConfigError, match=r"'beta'.*unknown key 'colour'"):
        parse_section(DPOConfig, {"beta": -1, "colour": "red"}, "dpo")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("- 1\n- 2\n", "found a list, expected a mapping of sections: model, pairs"),
        ("pairs: 3\n", "'pairs' is 3"),
    ],
)
def test_file_that_is_no_config_is_named(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no such config file"):
        load_config(tmp_path / "none.yaml")


def test_empty_file_and_no_file_give_the_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("", encoding="utf-8")
    assert load_config(path) == load_config(None) == RunConfig()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_config_is_valid(path):
    load_config(path)


def test_section_survives_the_trip_as_a_dict():
    section = SFTConfig(learning_rate=1e-4, max_batch_tokens=4096)
    assert parse_section(SFTConfig, section.model_dump(mode="json"), "sft") == section


def test_value_of_no_allowed_kind_is_named_once_with_all_of_them():
    for value, refused in ((0, "greater than 0"), ("many", "a valid integer"), (8.5, "a valid integer, got a number")):
        with pytest.raises(
            ConfigError, match=rf"^sft: 'max_batch_tokens' is {value!r}: input should be 'auto', or .*{refused}"
        ):
            parse_section(SFTConfig, {"max_batch_tokens": value}, "sft")
    assert parse_section(SFTConfig, {"max_batch_tokens": 4096.0}, "sft").max_batch_tokens == 4096
    assert parse_section(SFTConfig, {}, "sft").max_batch_tokens == "auto"


def test_mistake_in_a_list_of_sections_is_named():
    values = {"tolerations": [{"key": "gpu"}, {"keyy": "gpu"}]}
    with pytest.raises(ConfigError, match=r"resources: unknown key 'tolerations.1.keyy'; did you mean 'key'\?"):
        parse_section(ResourcesConfig, values, "resources")


def test_inputs_and_resources_are_no_stages():
    config = RunConfig()
    assert config.stages().keys() == RunConfig.model_fields.keys() - {"inputs", "resources"}
    assert list(config.stages())[:2] == ["model", "pairs"]


@pytest.mark.parametrize("memory", ["64GiB", "64 Gi", "lots", "-1Gi", ""])
def test_amount_that_kubernetes_would_not_read_is_refused(memory):
    with pytest.raises(ConfigError, match=r"'memory' is"):
        parse_section(ResourcesConfig, {"memory": memory}, "resources")


def test_tolerations_keep_kubernetes_own_names():
    section = parse_section(
        ResourcesConfig,
        {"tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300.0}]},
        "resources",
    )
    assert section.model_dump(mode="json", exclude_none=True)["tolerations"] == [
        {"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
    ]
