"""CSV tables: reading, standardisation over sites, and errors that name the cell."""

import numpy as np
import pytest
import torch

from fl_queue.client.local_update import evaluate_version, initial_model, train_update
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError, DataError
from fl_queue.metrics import finish
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.loading import load_task

FEATURES = ("age", "marker", "constant")


def config_of(partition="site", aggregation=None, **options):
    given = {"label": "sick", "classes": "no,yes", "features": ",".join(FEATURES)}
    return RunConfig.from_dict(
        {
            "run": {"task": "csv"},
            "data": {"partition": partition, "validation_fraction": 0.2},
            "train": {"batch_size": 16, "epochs": 5, "learning_rate": 0.1},
            "aggregation": aggregation or {},
            "task": given | options,
        }
    )


def task_of(folder, **options):
    return load_task("csv", config_of(**options), data_dir=str(folder))


def context_of(task, **values):
    defaults = {"client": "a", "run": "run", "round_number": 1, "data_dir": task.config.data.dir}
    return ClientContext.of(task.config, **(defaults | values))


def write_table(path, seed, rows=200, age=50.0):
    """Rows where the odds of being sick rise with age and fall with the marker."""
    generator = np.random.default_rng(seed)
    ages = generator.normal(age, 10, rows)
    markers = generator.normal(0.3, 0.1, rows)
    sick = (ages - age) / 10 - (markers - 0.3) / 0.1 + generator.normal(0, 0.3, rows) > 0
    lines = ["id,age,sick,marker,constant"]
    lines += [
        f"x{number},{one},{'yes' if is_sick else 'no'},{other},7.5"
        for number, (one, other, is_sick) in enumerate(zip(ages, markers, sick, strict=True))
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    write_table(tmp_path / "train.csv", 0)
    write_table(tmp_path / "test.csv", 1)
    return tmp_path


def one_round(tasks, manifest, arrays, round_number=1):
    """Plain FedAvg of one client per task: weighted means, maxima of integer buffers."""
    updates = [
        train_update(
            task, manifest, arrays, context_of(task, client=f"c{n}", round_number=round_number)
        )
        for n, task in enumerate(tasks)
    ]
    weights = np.array([update.num_examples for update in updates], dtype=float)
    merged = {}
    for spec in manifest.tensors:
        stack = np.stack([update.tensors[spec.name] for update in updates])
        if spec.kind == "integer_buffer":
            merged[spec.name] = stack.max(axis=0)
        else:
            mean = np.average(stack.astype(float), axis=0, weights=weights)
            merged[spec.name] = (arrays[spec.name] + mean).astype(np.float32)
    return merged, updates


@pytest.mark.parametrize("hidden", [[], [8, 4]])
def test_a_table_is_learned(folder, hidden):
    task = task_of(folder, hidden=hidden)
    manifest, arrays = initial_model(task, 0)
    for round_number in (1, 2, 3):
        arrays, _ = one_round([task], manifest, arrays, round_number)
    sums = evaluate_version(task, manifest, arrays, task.test_data(str(folder)), context_of(task))
    finished = finish(sums)
    assert finished["accuracy"] > 0.85
    assert finished["auc"] > 0.95
    layers = 1 + len(hidden)
    assert sum(spec.kind == "parameter" for spec in manifest.tensors) == 2 * layers


def test_first_rounds_statistics_are_those_of_all_rows_together(tmp_path):
    tasks, rows = [], []
    for name, count, age in (("east", 150, 30.0), ("west", 400, 70.0)):
        (tmp_path / name).mkdir()
        write_table(tmp_path / name / "train.csv", count, rows=count, age=age)
        tasks.append(task_of(tmp_path / name))
        data = tasks[-1].client_data(context_of(tasks[-1], client=f"c{len(rows)}"))
        rows.append(data.train.tensors[0].double())
    manifest, start = initial_model(tasks[0], 0)
    assert start["standardised"] == 0
    arrays, _ = one_round(tasks, manifest, start)
    pooled = torch.cat(rows)
    mean, square = arrays["feature_mean"].astype(float), arrays["feature_square_mean"].astype(float)
    np.testing.assert_allclose(mean, pooled.mean(dim=0), rtol=1e-6)
    deviation = np.sqrt(square[:2] - mean[:2] ** 2)
    np.testing.assert_allclose(deviation, pooled.std(dim=0, correction=0)[:2], rtol=1e-4)
    assert arrays["standardised"] == 1

    later, updates = one_round(tasks, manifest, arrays, 2)
    for name in ("feature_mean", "feature_square_mean", "standardised"):
        assert np.array_equal(later[name], arrays[name])
    assert not any(update.tensors["feature_mean"].any() for update in updates)


def test_constant_columns_divide_by_nothing_small(folder):
    task = task_of(folder)
    manifest, start = initial_model(task, 0)
    arrays, _ = one_round([task], manifest, start)
    model = task.build_model()
    model.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    row = torch.tensor([[50.0, 0.3, 7.5]])
    moved = row + torch.tensor([[0.0, 0.0, 1.0]])
    weights = model.layers[0].weight.detach()
    weight = float(weights[1, 2] - weights[0, 2])
    shift = (model(moved) - model(row)).detach()
    assert float(shift[0, 1] - shift[0, 0]) == pytest.approx(weight, abs=1e-4)


def test_given_means_and_stds_stay_at_home(folder):
    task = task_of(folder, means=[50, 0.3, 7.5], stds=[10, 0.1, 1])
    manifest, arrays = initial_model(task, 0)
    assert [spec.name for spec in manifest.tensors] == ["layers.0.bias", "layers.0.weight"]
    arrays, _ = one_round([task], manifest, arrays)
    sums = evaluate_version(task, manifest, arrays, task.test_data(str(folder)), context_of(task))
    assert finish(sums)["accuracy"] > 0.85


def test_features_default_to_all_columns_but_the_label(folder):
    path = folder / "train.csv"
    path.write_text("\ufeffsick,a, b \nyes,1,2\n\nno,3,4\n", encoding="utf-8")
    task = task_of(folder, features="")
    data = task.client_data(context_of(task))
    assert sorted(data.train.tensors[0].tolist()) == [[1.0, 2.0], [3.0, 4.0]]
    assert task.build_model().feature_mean.shape == (2,)


def test_shares_of_one_table_are_disjoint(folder):
    task = task_of(folder, partition="iid")
    parts = [task.client_data(context_of(task, share=share, shares=3)) for share in range(3)]
    ages = [
        row[0]
        for part in parts
        for row in part.train.tensors[0].tolist() + part.validation.tensors[0].tolist()
    ]
    assert len(ages) == len(set(ages)) == 200


def test_natural_shares_of_a_table_are_those_of_whole_owners(folder):
    path = folder / "train.csv"
    lines = [f"{'yes' if row % 2 else 'no'},{row},clinic-{row % 5}" for row in range(50)]
    path.write_text("sick,age,clinic\n" + "\n".join(lines) + "\n", encoding="utf-8")
    task = task_of(folder, partition="natural", owner="clinic", features="")
    owners = []
    for share in range(5):
        data = task.client_data(context_of(task, share=share, shares=5))
        rows = data.train.tensors[0].tolist() + data.validation.tensors[0].tolist()
        assert len(rows) == 10
        owners += {row[0] % 5 for row in rows}
    assert sorted(owners) == [0, 1, 2, 3, 4]
    other = task_of(folder, partition="natural", owner="ward", features="age")
    with pytest.raises(DataError, match=r"no column ward \(task.owner\)"):
        other.client_data(context_of(other))
    with pytest.raises(ConfigError) as caught:
        task_of(folder, owner="clinic", features="age,clinic").build_model()
    assert caught.value.field == "task.features"


HEADER = "age,sick,marker,constant\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "age,ill,marker,constant\n1,yes,2,3\n",
            "no label column sick .*age, ill, marker, constant",
        ),
        ("age,sick,constant\n1,yes,2\n", "no column marker .*age, sick, constant"),
        (HEADER + "1,yes,2,3\n1,yes,high,3\n", "line 3, column marker: 'high' is not a number"),
        (HEADER + "1,yes,,3\n", "line 2, column marker: '' is not a number"),
        (HEADER + "nan,yes,2,3\n", "line 2, column age: 'nan' is not a finite"),
        (HEADER + "1,yes,2,1e39\n", "line 2, column constant: '1e39' is not a finite"),
        (HEADER + "1,maybe,2,3\n", "line 2: sick is 'maybe', and not one of task.classes: no, yes"),
        (HEADER + "1,yes,2\n", "line 2: 3 cells, and the header has 4"),
        (HEADER + "1_000,yes,2,3\n", "line 2, column age: '1_000' is not a number"),
        (HEADER + '1,yes,"2,5",3\n', "'2,5' is not a number.* with a decimal point"),
        (
            HEADER + "1,yes,m,3\n" + "2,yes,,x\n" + "3,no,f,4\n" * 7,
            "line 2, .* 'm' .*line 3, .* '' .*line 3, .* 'x' is not a number; 10 such cells in all.*fill in",
        ),
        (HEADER + "1,yes,2,3,5\n", "5 cells, and the header has 4; a cell with a comma"),
        ("age;sick;marker;constant\n1;yes;2;3\n", "separated by ';'; csv reads commas"),
        ("age\tsick\tmarker\tconstant\n1\tyes\t2\t3\n", "separated by .*t'; csv reads commas"),
        ("age,sick,Marker,constant\n1,yes,2,3\n", "no column marker .*did you mean Marker"),
        (
            "age,sick,marker,marker,constant\n1,yes,2,9,3\n",
            "has marker .task.features. more than once, as columns 3, 4; rename",
        ),
        (
            "age,sick,marker,constant,sick\n1,yes,2,3,no\n",
            "has sick .task.label. more than once, as columns 2, 5",
        ),
        (HEADER, "no rows"),
        ("", "is empty"),
        (HEADER + "1,y\xe9s,2,3\n", "not a CSV file in UTF-8"),
    ],
)
def test_an_unusable_table_names_file_and_place(folder, text, message):
    path = folder / "train.csv"
    path.write_bytes(text.encode("latin-1"))
    task = task_of(folder)
    with pytest.raises(DataError, match=message) as caught:
        task.client_data(context_of(task))
    assert caught.value.path == str(path)


def test_no_choice_of_classes_shows_which_row_has_a_label(folder):
    # A config that sets label and classes could find out one cell after the other from reported line numbers.
    (folder / "train.csv").write_text(HEADER + "1,a,2,3\n1,b,2,3\n1,c,high,3\n")

    def message_of(classes, **options):
        task = task_of(folder, classes=classes, **options)
        with pytest.raises(DataError) as caught:
            task.client_data(context_of(task))
        return caught.value.public

    wrong_label = "column 2 (task.label): not one of task.classes"
    assert {message_of(classes, features="age") for classes in ("a,b", "a,c", "x,y")} == {
        wrong_label
    }
    wrong_cell = "line 4, column 3 (task.features: marker): not a number"
    assert {message_of(classes) for classes in ("a,b", "b,c", "a,b,c")} == {wrong_cell}


def test_columns_that_are_not_used_may_be_there_twice(folder):
    (folder / "train.csv").write_text("age,x,sick,marker,constant,x\n1,a,yes,2,3,b\n")
    task = task_of(folder)
    assert task.client_data(context_of(task)).train.tensors[0].tolist() == [[1.0, 2.0, 3.0]]
    for options, words in (
        ({"features": ""}, r"has x \(task.features\)"),
        ({"owner": "x"}, r"has x \(task.owner\)"),
    ):
        task = task_of(folder, **options)
        with pytest.raises(DataError, match=f"{words} more than once"):
            task.client_data(context_of(task))


def test_labels_that_are_numbers_are_read_as_such(folder):
    # A table that once lacked a label was written with 1.0 for 1.
    def labels(classes, cells):
        (folder / "train.csv").write_text(HEADER + "".join(f"1,{c},2,3\n" for c in cells))
        task = task_of(folder, classes=classes)
        data = task.client_data(context_of(task))
        return data.train.tensors[1].tolist() + data.validation.tensors[1].tolist()

    assert sorted(labels("0,1", ["1.0", "0", "1", "0.00", "01"])) == [0, 0, 1, 1, 1]
    assert labels("-1,1", ["+1"]) == [1]
    # Where two classes are the same number, or one is none, the text counts.
    assert sorted(labels("1,01", ["01", "1"])) == [0, 1]
    for classes, cell in (("1,01", "1.0"), ("1,no", "1.0"), ("0,1", "0.5"), ("0,1", "")):
        with pytest.raises(DataError, match=r"not one of task\.classes"):
            labels(classes, [cell])


def test_the_message_of_unusable_cells_quotes_none(folder):
    (folder / "train.csv").write_text(HEADER + "1,yes,secret,3\n2,no,secret,private\n")
    task = task_of(folder)
    with pytest.raises(DataError) as caught:
        task.client_data(context_of(task))
    assert caught.value.public == (
        "line 2, column 3 (task.features: marker): not a number; 3 such cells in all"
    )


def test_missing_file_is_named(tmp_path):
    task = task_of(tmp_path)
    with pytest.raises(DataError) as caught:
        task.test_data(str(tmp_path))
    assert caught.value.path == str(tmp_path / "test.csv")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"features": ""}, "task.features"),
        ({"features": "age,age"}, "task.features"),
        ({"features": "age,sick"}, "task.features"),
        ({"classes": "yes"}, "task.classes"),
        ({"means": [1.0], "stds": [1.0, 1.0, 1.0]}, "task.means"),
        ({"means": [1.0, 1.0, 1.0]}, "task.stds"),
    ],
)
def test_unusable_options_name_the_field(options, field):
    with pytest.raises(ConfigError) as caught:
        load_task("csv", config_of(**options)).build_model()
    assert caught.value.field == field


def test_without_a_data_folder():
    task = load_task("csv", config_of())
    assert task.test_data("") is None
    with pytest.raises(ConfigError) as caught:
        task.client_data(context_of(task))
    assert caught.value.field == "data.dir"


def test_a_column_too_large_for_a_buffer_is_named(folder):
    task = task_of(folder, aggregation={"buffer_limit": 1000.0})
    manifest, arrays = initial_model(task, 0)
    with pytest.raises(DataError, match=r"column age.*task\.means"):
        train_update(task, manifest, arrays, context_of(task))
