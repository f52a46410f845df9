"""What of a file becomes what of a model: names, shapes, patterns; by both ends in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fl_queue.config import loading
from fl_queue.config.schema import ModelSection
from fl_queue.errors import ConfigError, DataError, MessageError, ModelMismatch
from fl_queue.models import initial
from fl_queue.protocol.manifest import Manifest, TensorSpec

MANIFEST = Manifest(
    (
        TensorSpec("body.w", (2, 2), "parameter"),
        TensorSpec("head.b", (2,), "parameter"),
        TensorSpec("head.w", (2, 3), "parameter"),
        TensorSpec("n", (), "integer_buffer"),
    ),
    aliases={"tied.w": "body.w"},
)
BUILT: Mapping[str, Any] = {
    spec.name: np.full(spec.shape, 9, spec.dtype) for spec in MANIFEST.tensors
}
WHOLE = {name: np.full_like(array, 1) for name, array in BUILT.items()}


def begun(
    path: Path, tensors: Mapping[str, Any], *overrides: str
) -> tuple[dict[str, Any], ModelSection]:
    """Tensors that a file with these tensors gives the model, and the settings."""
    save_file(dict(tensors), path)
    settings = (f"model.initial={path}", "model.initial_mode=partial", *overrides)
    model = loading.load("mnist-3v7", settings, {}).model
    return initial.from_file(model, MANIFEST, BUILT), model


def where_from(found: Mapping[str, Any]) -> dict[str, str]:
    """Name -> whether its tensor is of the file or as it was built."""
    return {name: "built" if (array == 9).all() else "file" for name, array in found.items()}


def test_a_part_of_the_model_is_loaded_and_the_rest_stays_as_built(tmp_path: Path) -> None:
    some = {"body.w": WHOLE["body.w"], "other": np.ones(3)}
    found, _ = begun(tmp_path / "w", some)
    assert where_from(found) == {
        "body.w": "file", "head.b": "built", "head.w": "built", "n": "built"
    }  # fmt: skip
    assert found["body.w"].dtype == np.float32


def test_a_pattern_keeps_tensors_fresh_that_the_file_has_in_whatever_shape(tmp_path: Path) -> None:
    other = WHOLE | {"head.w": np.ones((1000, 3), np.float32)}
    found, _ = begun(tmp_path / "w", other, 'model.initial_fresh=["head.*"]')
    assert where_from(found) == {
        "body.w": "file", "head.b": "built", "head.w": "built", "n": "file"
    }  # fmt: skip


def test_names_are_mapped_by_the_first_prefix_that_fits(tmp_path: Path) -> None:
    named = {"module.enc.w": WHOLE["body.w"], "module.head.b": WHOLE["head.b"]}
    pairs = 'model.initial_map=["module.enc. -> body.", "module. -> "]'
    found, _ = begun(tmp_path / "w", named, pairs)
    assert where_from(found) == {
        "body.w": "file", "head.b": "file", "head.w": "built", "n": "built"
    }  # fmt: skip


def test_a_tied_tensor_may_have_any_of_its_names(tmp_path: Path) -> None:
    found, _ = begun(tmp_path / "w", {"tied.w": WHOLE["body.w"]})
    assert where_from(found)["body.w"] == "file"
    found, _ = begun(
        tmp_path / "w", WHOLE | {"tied.w": WHOLE["body.w"]}, 'model.initial_fresh=["tied.*"]'
    )
    assert where_from(found)["body.w"] == "built"


@pytest.mark.parametrize("mode", ["exact", "partial"])
def test_other_shapes_are_an_error_in_both_modes_that_names_tensor_and_fix(
    tmp_path: Path, mode: str
) -> None:
    other = WHOLE | {"head.w": np.ones((1000, 3), np.float32)}
    with pytest.raises(ModelMismatch) as caught:
        begun(tmp_path / "w", other, f"model.initial_mode={mode}")
    reason = "model.initial: head.w has shape (1000, 3), the model's (2, 3); "
    fix = "name it in model.initial_fresh"
    if mode == "exact":
        fix = f"set model.initial_mode = partial and {fix}"
    assert str(caught.value) == caught.value.public == reason + fix


@pytest.mark.parametrize(
    ("tensors", "overrides", "words"),
    [
        ({"x": np.ones(2)}, (), "no tensor of .* is in the model: it has 'x'.*initial_map"),
        (WHOLE, ('model.initial_fresh=["haed.*"]',), "initial_fresh: 'haed.\\*' matches no tensor"),
        (WHOLE | {"head.b": np.array([1, np.inf])}, (), "'head.b' is not finite"),
        (WHOLE | {"head.b": np.array([1, 1e39])}, (), "'head.b' is not finite in float32"),
        (WHOLE | {"head.b": np.array([1, np.nan])}, (), "'head.b' holds NaN"),
        (
            WHOLE,
            ('model.initial_map=["modul. -> "]',),
            "name begins with 'modul.'; such as 'body.w'",
        ),
        (
            WHOLE,
            ('model.initial_map=["head.w -> head.b"]',),
            "two of its tensors the name 'head.b'",
        ),
        (WHOLE, ('model.initial_fresh=["*"]',), "holds no tensor to begin with"),
        ({"head.b": WHOLE["head.b"]}, ("model.initial_mode=exact",), "'body.w' is missing"),
        (WHOLE | {"x": np.ones(1)}, ("model.initial_mode=exact",), "no tensor 'x'.*partial"),
    ],
)
def test_a_file_that_does_not_fit_is_named(
    tmp_path: Path, tensors: Mapping[str, Any], overrides: tuple[str, ...], words: str
) -> None:
    with pytest.raises((ModelMismatch, DataError), match=words):
        begun(tmp_path / "w", tensors, *overrides)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ('model.initial_map=["module."]', "model.initial_map"),
        ('model.initial_fresh=["head.*"]', "model.initial_fresh"),
        ("model.initial_mode=part", "model.initial_mode"),
    ],
)
def test_settings_that_cannot_be_are_refused_when_the_config_is_read(
    override: str, field: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        loading.load("mnist-3v7", (override,), {})
    assert caught.value.field == field


def test_the_settings_of_a_beginning_are_this_machines_and_leave_the_digest_as_it_was() -> None:
    plain = loading.load("mnist-3v7", (), {})
    given = loading.load(
        "mnist-3v7", ("model.initial_mode=partial", 'model.initial_fresh=["h"]'), {}
    )
    assert given.digest == plain.digest


def record(tensors: list[str], left_out: list[str] | None = None, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "digest": "0" * 64,
        "tensors": [[name, "float32", [1]] for name in tensors],
        "source": {"file": "w.pt", "digest": "ab" * 32},
    }
    if left_out is not None:
        made["partial"] = {"fresh": more.get("fresh", []), "left_out": left_out}
    return made


def test_readers_of_the_run_see_what_the_maker_has_loaded() -> None:
    made = record(["body.w", "x"], ["head.w", "y*"], fresh=["head.*", "y*"])
    found = initial.beginning(made, MANIFEST)
    assert found is not None
    assert found.loaded == ("body.w",)
    assert found.fresh == ("head.b", "head.w", "n")
    assert found.ignored == ("x", "y*")
    assert str(found) == (
        "begun from w.pt (abababababab): 1 loaded, 3 fresh (head.b, head.w, n), 2 ignored (x, y*)"
    )
    assert initial.beginning(None, MANIFEST) is None
    old = {key: value for key, value in record(["body.w"]).items() if key != "source"}
    found = initial.beginning(old, None)
    assert found is not None
    assert (found.mode, found.loaded) == ("exact", ())


@pytest.mark.parametrize("broken", [{"tensors": 3}, {"source": 3}, {"partial": {"left_out": 3}}])
def test_a_record_that_cannot_be_read_is_an_error_of_the_protocol(broken: dict[str, Any]) -> None:
    with pytest.raises(MessageError):
        initial.beginning(record(["body.w"], []) | broken, MANIFEST)


NAMES = st.sets(st.sampled_from(["a", "b", "c.w", "c.b", "d"]))
PATTERNS = st.lists(st.sampled_from(["a", "c.*", "?", "d"]), max_size=2)


@given(of_file=NAMES, of_model=NAMES, patterns=PATTERNS)
def test_each_tensor_of_the_model_is_loaded_or_fresh_and_each_of_the_file_loaded_or_ignored(
    of_file: set[str], of_model: set[str], patterns: list[str]
) -> None:
    specs = tuple(TensorSpec(name, (1,), "parameter") for name in sorted(of_model))
    manifest = replace(MANIFEST, tensors=specs, aliases={})
    found = initial.overlay(of_file, manifest, patterns)
    assert sorted([*found.loaded, *found.fresh]) == sorted(of_model)
    assert set(found.loaded) <= of_file
    assert set(found.ignored) == of_file - of_model
    # The operator leaves out what the patterns name, and the maker finds the same.
    left_out = [name for name in sorted(of_file) if initial._is_fresh(name, patterns)]
    sent = sorted(of_file - set(left_out))
    seen = initial.beginning(record(sent, left_out, fresh=patterns), manifest)
    assert seen is not None
    assert (seen.loaded, seen.fresh) == (tuple(sorted(found.loaded)), found.fresh)
