"""Settings from TOML files and `--set`: what is wrong is told by its key, its value and what is allowed."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from reformer_core.train.configurations import image_config, text_config
from reformer_core.train.settings import RunSettings
from reformer_core.train.settings_file import build_settings, read_table, set_values

TABLE = """
output = "model"
[model]
num_hashes = 4
num_buckets = [8, 8]
[data]
texts = ["a.txt", "/b.txt"]
[[schedule]]
tokens = 1_000_000
lengths = [1024]
[[schedule]]
tokens = 500_000
num_hashes = 8
[optimizer]
learning_rate = 1
"""


def build(text: str) -> RunSettings:
    return build_settings(tomllib.loads(text), "run.toml", Path("/folder"))


class TestValues:
    def test_are_as_they_are_given(self) -> None:
        run = build(TABLE)
        assert run.output == Path("/folder/model")
        assert run.data.texts == (Path("/folder/a.txt"), Path("/b.txt"))
        assert run.model.hyperparameters == {"num_hashes": 4, "num_buckets": (8, 8)}
        assert [(phase.unit, phase.budget) for phase in run.schedule] == [("tokens", 1_000_000), ("tokens", 500_000)]
        assert [phase.hyperparameters for phase in run.schedule] == [{}, {"num_hashes": 8}]
        assert run.optimizer.learning_rate == 1.0

    def test_survive_being_written_down(self) -> None:
        run = build(TABLE)
        again = build_settings(run.to_dict(), "checkpoint", Path("/elsewhere"))
        assert again == run
        assert again.model.hyperparameters == run.model.hyperparameters

    def test_the_default_models(self) -> None:
        assert text_config(1024).max_tokens == 2**20
        assert image_config(32, 32).max_tokens == 3072


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"optimzer": {}}, "optimzer is no key that exists; did you mean optimizer?"),
            ({"model": {"hiden_size": 8}}, "model.hiden_size is no key that exists; did you mean hidden_size?"),
            ({"data": {"texts": ["a"], "x": 1}}, "data.x is no key that exists; allowed are texts, validation, "),
            (
                {"schedule": [{"tokens": 5, "batch_token": 1}]},
                "schedule.0.batch_token is no key that exists; did you mean batch_tokens?",
            ),
            ({"schedule": [{"tokens": "many"}]}, 'schedule.0.tokens is "many", but must be a valid integer'),
            ({"schedule": [{"tokens": 0}]}, "schedule.0.tokens is 0, but must be greater than or equal to 1"),
            ({"schedule": [{"steps": 9, "lengths": [8, -1]}]}, "schedule.0.lengths.1 is -1, but must be greater than"),
            ({"schedule": [{"steps": 9, "lengths": []}]}, "schedule.0: lengths is empty; give one length or more"),
            ({"schedule": [{"steps": 9, "tokens": 9}]}, "schedule.0: exactly one of tokens, steps and minutes must"),
            ({"schedule": [{"steps": 9}, {"tokens": 9}]}, "the phases of schedule are measured in steps and tokens"),
            ({"schedule": []}, "schedule is empty; give one phase or more"),
            ({"schedule": {"steps": 9}}, 'schedule is {"steps": 9}, but must be a valid array'),
            ({"data": {}}, "data: either texts or images must be given, not both"),
            ({"data": {"texts": ["a"], "augment": ["flip"]}}, "data: augment is of no use for texts; leave it out"),
            ({"data": {"images": "a.npz", "tokenizer": "b"}}, "data: tokenizer is of no use for images; leave it out"),
            ({"data": {"images": "a.npz", "augment": ["turn"]}}, "data.augment.0 is \"turn\", but must be 'flip'"),
            (
                {"data": {"images": "a.npz"}, "schedule": [{"steps": 1, "lengths": [8]}]},
                "schedule.0.lengths is of no use for images",
            ),
            ({"model": {"init": "a", "config": "b"}}, "model: init brings its own configuration; leave out config"),
            ({"model": 3}, "model is 3, but must be a table"),
            ({"optimizer": {"learning_rate": float("nan")}}, "optimizer.learning_rate is NaN, but must be a finite"),
            ({"optimizer": {"warmup": 0.5, "decay": 0.6}}, "optimizer: warmup and decay add up to 1.1"),
            ({"optimizer": {"kind": "sgd"}}, "optimizer.kind is \"sgd\", but must be 'muon' or 'adamw'"),
            ({"precision": "int8"}, "precision is \"int8\", but must be 'auto', 'float32', 'bfloat16' or 'float16'"),
            ({"seed": -1}, "seed is -1, but must be greater than or equal to 0"),
            ({"seed": True}, "seed is true, but must be a valid integer"),
        ],
    )
    def test_name_the_key(self, change: dict[str, Any], message: str) -> None:
        table: dict[str, Any] = {"data": {"texts": ["a"]}, "schedule": [{"steps": 9}]}
        with pytest.raises(ValueError, match=r"^run\.toml: ") as error:
            build_settings(table | change, "run.toml", Path())
        assert f"run.toml: {message}" in str(error.value)

    def test_missing_tables_are_told(self) -> None:
        with pytest.raises(ValueError, match="missing") as error:
            build("seed = 1")
        assert str(error.value).splitlines() == [
            "run.toml: data is missing, but needed",
            "run.toml: schedule is missing, but needed",
        ]

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"run\.toml can't be read: No such file"):
            read_table(tmp_path / "run.toml")
        for content in (b"seed = ", b"\xff"):
            (tmp_path / "run.toml").write_bytes(content)
            with pytest.raises(ValueError, match=r"run\.toml is no TOML file: "):
                read_table(tmp_path / "run.toml")


class TestSet:
    def test_values_are_toml_or_strings(self) -> None:
        table = tomllib.loads(TABLE)
        set_values(table, ["optimizer.kind=adamw", "schedule.1.lengths = [512, 2048]", "seed=3", "model.init=/a b"])
        assert table["optimizer"] == {"learning_rate": 1, "kind": "adamw"}
        assert table["schedule"][1] == {"tokens": 500_000, "num_hashes": 8, "lengths": [512, 2048]}
        assert (table["seed"], table["model"]["init"]) == (3, "/a b")

    @pytest.mark.parametrize(
        ("assignment", "message"),
        [
            ("seed", "--set seed: must be KEY=VALUE"),
            ("=3", "--set =3: must be KEY=VALUE"),
            ("schedule.7.tokens=1", "there is no schedule.7.tokens"),
            ("schedule.tokens=1", "there is no schedule.tokens"),
            ("output.name=1", "there is no output.name"),
        ],
    )
    def test_what_has_no_place_is_told(self, assignment: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            set_values(tomllib.loads(TABLE), [assignment])
