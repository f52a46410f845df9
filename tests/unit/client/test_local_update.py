"""Training: manifests, updates, determinism, own tasks, and the loops' corner cases."""

import random
import subprocess
import sys
import textwrap
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset, random_split

from fl_queue.client.local_update import (
    ClientStrategy,
    evaluate_version,
    initial_model,
    train_update,
)
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import ConfigError, DataError, ModelMismatch
from fl_queue.metrics import MAX_CLASSES, check, finish
from fl_queue.protocol import message
from fl_queue.protocol.header import Header
from fl_queue.protocol.manifest import Manifest, TensorSpec
from fl_queue.strategies.qfedavg import QFedAvg
from fl_queue.tasks.base import ClientData, Task, code_digest
from fl_queue.tasks.context import ClientContext
from fl_queue.tasks.loading import load_task
from fl_queue.training import sgd
from fl_queue.training.determinism import environment
from fl_queue.training.model_tensors import load_arrays, manifest_of
from fl_queue.training.plain_sgd import PlainSGD
from tests.support.model_arrays import arrays_of


class Everything(nn.Module):
    """Every kind of tensor: tied weights, dropout, BatchNorm, integer, bool and local buffers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 4, bias=False)
        self.out = nn.Linear(4, 4, bias=False)
        self.out.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.coarse = nn.Parameter(torch.ones(2, dtype=torch.float16), requires_grad=False)
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("local", torch.randn(3), persistent=False)

    def forward(self, rows):
        return self.out(self.drop(self.norm(self.embed(rows)))) * self.scale


class EverythingTask(Task):
    count = 21

    def build_model(self):
        return Everything()

    def client_data(self, context):
        generator = torch.Generator().manual_seed(context.share)
        rows = torch.randn(self.count, 4, generator=generator)
        data = TensorDataset(rows, rows.argmax(dim=1))
        held = min(5, self.count)
        return ClientData(
            TensorDataset(*data[: self.count - held]), TensorDataset(*data[self.count - held :])
        )


def config_of(task="x:Y", **train):
    return RunConfig.from_dict(
        {"run": {"task": task}, "train": {"epochs": 2, "batch_size": 5} | train}
    )


def context_of(config, **values):
    return ClientContext.of(config, **({"client": "a", "run": "demo", "round_number": 1} | values))


@pytest.fixture
def task():
    return EverythingTask(config_of())


def test_manifest_has_every_kind_and_tied_weights_once(task):
    manifest, arrays = initial_model(task, 0)
    kinds = {spec.name: (spec.kind, spec.shape) for spec in manifest.tensors}
    assert manifest.base is not None
    assert [(one.name, one.dtype, one.shape) for one in manifest.base.tensors] == [
        ("coarse", "F16", (2,)),
        ("mask", "BOOL", (2,)),
    ]
    assert kinds == {
        "embed.weight": ("parameter", (4, 4)),
        "norm.bias": ("parameter", (4,)),
        "norm.num_batches_tracked": ("integer_buffer", ()),
        "norm.running_mean": ("float_buffer", (4,)),
        "norm.running_var": ("float_buffer", (4,)),
        "norm.weight": ("parameter", (4,)),
        "scale": ("parameter", ()),
    }
    assert manifest.aliases == {"out.weight": "embed.weight"}
    assert list(arrays) == sorted(kinds)
    for spec in manifest.tensors:
        array = arrays[spec.name]
        assert (array.dtype, array.shape) == (np.dtype(spec.dtype), spec.shape)
        assert array.flags.c_contiguous


def test_transposed_parameters_travel_in_c_order():
    model = nn.Linear(3, 2)
    model.weight = nn.Parameter(torch.arange(6.0).reshape(3, 2).t())
    array = arrays_of(model, manifest_of(model))["weight"]
    assert array.flags.c_contiguous
    assert array.tolist() == [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]


def test_complex_tensors_cannot_travel():
    model = nn.Linear(2, 2)
    model.register_buffer("phase", torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ModelMismatch, match="phase"):
        manifest_of(model)


@pytest.mark.filterwarnings("error")
def test_arrays_round_trip_and_are_copies(task):
    manifest, arrays = initial_model(task, 0)
    for array in arrays.values():
        array.flags.writeable = False  # as views of received bytes are
    model = task.build_model()
    load_arrays(model, manifest, arrays)
    again = arrays_of(model, manifest)
    assert all(np.array_equal(again[name], arrays[name]) for name in arrays)
    again["embed.weight"][:] = 9
    assert not (arrays_of(model, manifest)["embed.weight"] == 9).any()
    assert model.out.weight is model.embed.weight
    assert model.mask.dtype == torch.bool


def test_initial_model_depends_on_the_seed_alone(task):
    first = initial_model(task, 0)[1]
    torch.manual_seed(99)
    again, other = initial_model(task, 0)[1], initial_model(task, 1)[1]
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    assert not np.array_equal(first["embed.weight"], other["embed.weight"])


def changed(manifest, name, replacement):
    specs = [spec for spec in manifest.tensors if spec.name != name]
    specs += [replacement] if replacement else []
    specs = tuple(sorted(specs, key=lambda spec: spec.name))
    return Manifest(specs, manifest.aliases, base=manifest.base)


@pytest.mark.parametrize(
    ("name", "replacement"),
    [
        ("scale", TensorSpec("scale", (1,), "parameter")),
        ("scale", TensorSpec("scale", (), "float_buffer")),
        ("scale", None),
        ("added", TensorSpec("added", (1,), "parameter")),
    ],
)
def test_another_model_than_the_runs_names_the_tensor(task, name, replacement):
    manifest, arrays = initial_model(task, 0)
    with pytest.raises(ModelMismatch, match=f"tensor {name}"):
        train_update(task, changed(manifest, name, replacement), arrays, context_of(task.config))


def test_other_tied_tensors_than_the_runs_are_refused(task):
    manifest, arrays = initial_model(task, 0)
    untied = Manifest(manifest.tensors, {}, base=manifest.base)
    with pytest.raises(ModelMismatch, match="tied"):
        load_arrays(task.build_model(), untied, arrays)


@pytest.mark.parametrize("array", [None, np.zeros((2, 2), dtype=np.float32)])
def test_arrays_that_do_not_fit_the_manifest_name_the_tensor(task, array):
    manifest, arrays = initial_model(task, 0)
    arrays.pop("norm.bias")
    if array is not None:
        arrays["norm.bias"] = array
    with pytest.raises(ModelMismatch, match=r"norm\.bias"):
        load_arrays(task.build_model(), manifest, arrays)


def update_of(task, **values):
    manifest, arrays = initial_model(task, 0)
    return train_update(task, manifest, arrays, context_of(task.config, **values))


def as_bytes(trained):
    return {name: array.tobytes() for name, array in trained.tensors.items()}


def test_equal_arguments_give_equal_bytes_whatever_was_drawn_before(task):
    first = update_of(task)
    torch.manual_seed(1)
    torch.randn(100)
    np.random.seed(1)
    random.seed(1)
    again = update_of(task)
    assert as_bytes(first) == as_bytes(again)
    assert (first.metrics, first.train_metrics) == (again.metrics, again.train_metrics)


@pytest.mark.parametrize("values", [{"round_number": 2}, {"client": "b"}, {"run": "other"}])
def test_another_round_client_or_run_draws_other_numbers(task, values):
    assert as_bytes(update_of(task)) != as_bytes(update_of(task, **values))


def test_what_an_own_task_draws_is_seeded_by_round_and_client(task):
    drawn = []

    def draw(model, data, context, on_epoch):
        drawn.append((float(torch.rand(())), np.random.random(), random.random()))
        return {}

    task.train = draw
    update_of(task)
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    for values in ({}, {"round_number": 2}, {"client": "b"}):
        update_of(task, **values)
    assert drawn[0] == drawn[1]
    assert all(len({numbers[source] for numbers in drawn}) == 3 for source in range(3))


def test_the_seed_of_local_sgd_decides_order_and_dropout():
    def run(seed, global_seed):
        orders, dropped = [], []

        class Watcher(nn.Linear):
            def forward(self, rows):
                orders.append(rows[:, 0].tolist())
                dropped.append(nn.functional.dropout(torch.ones(50)).tolist())
                return super().forward(rows)

        model = Watcher(1, 2)
        torch.manual_seed(global_seed)
        rows = torch.arange(40.0).reshape(40, 1)
        data, loss = TensorDataset(rows, torch.zeros(40).long()), nn.functional.cross_entropy
        sgd.local_sgd(model, data, loss, seed=seed, epochs=1, batch_size=8, learning_rate=0.01)
        return orders, dropped

    assert run(1, 10) == run(1, 11)
    first, other = run(1, 10), run(2, 10)
    assert first[0] != other[0]
    assert first[1] != other[1]


def test_update_is_the_difference_to_an_unchanged_base(task):
    manifest, arrays = initial_model(task, 0)
    before = {name: array.copy() for name, array in arrays.items()}
    models = []
    original = task.train

    def keep(model, data, context, on_epoch):
        models.append(model)
        return original(model, data, context, on_epoch)

    task.train = keep
    trained = train_update(task, manifest, arrays, context_of(task.config))
    local = arrays_of(models[0], manifest)
    for spec in manifest.shared().tensors:
        update = trained.tensors[spec.name]
        assert (update.dtype, update.shape) == (np.dtype(spec.dtype), spec.shape)
        assert np.array_equal(arrays[spec.name], before[spec.name])
        expected = local[spec.name]
        if spec.kind != "integer_buffer":
            expected = expected - before[spec.name]
        assert np.array_equal(update, expected)
    # 16 training samples in batches of 5: the last one joins, so three steps in each of two epochs.
    assert trained.tensors["norm.num_batches_tracked"] == 6
    assert (trained.tensors.keys(), manifest.frozen) == (arrays.keys(), ())
    assert "coarse" not in arrays
    assert trained.num_examples == 16
    assert trained.train_metrics["num_examples"] == 16


def test_metrics_are_those_of_the_base_and_epochs_are_reported(task):
    manifest, arrays = initial_model(task, 0)
    context = context_of(task.config)
    seen = []
    trained = train_update(task, manifest, arrays, context, lambda *report: seen.append(report))
    held = task.client_data(context).validation
    assert trained.metrics == evaluate_version(task, manifest, arrays, held, context)
    assert [(epoch, epochs) for epoch, epochs, _ in seen] == [(1, 2), (2, 2)]
    assert seen[0][2].keys() == {"loss", "accuracy", "f1"}
    assert seen[0][2] != finish(trained.metrics)
    check(trained.metrics)
    check(trained.train_metrics)


def test_settings_of_torch_are_left_as_they_were(task):
    torch.set_num_threads(2)
    torch.set_deterministic_debug_mode("default")  # A worker's start may have set another one.
    update_of(task)
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()


class TokenTask(EverythingTask):
    """Its loss is a mean over the tokens, of which there are 0 to 4 in a sample; trained with twice the loss."""

    def collate(self, samples):
        rows = torch.stack([row for row, _ in samples])
        return rows, torch.where(rows > 0, rows.argsort(1), -100)

    def items(self, batch):
        return int((batch[1] != -100).sum())

    def loss(self, output, target):
        scores = output.unsqueeze(1).expand(-1, 4, -1).reshape(-1, 4)
        each = nn.functional.cross_entropy(scores, target.reshape(-1), reduction="sum")
        return each / (target != -100).sum()


class WeighedTask(TokenTask):
    def training_loss(self, data, context):
        return lambda output, target: 2 * self.loss(output, target)


@pytest.mark.parametrize(("kind", "factor"), [(TokenTask, 1), (WeighedTask, 2)])
def test_the_loss_of_qfedavg_is_the_one_that_the_training_minimises(kind, factor):
    known = []

    class Notes(QFedAvg):
        def answer(self, training):
            known.append(training)
            return super().answer(training)

    config = config_of()
    task = kind(config)
    manifest, base = initial_model(task, 1)
    plan = ClientStrategy(Notes({"q": 1.0}))
    train_update(task, manifest, base, context_of(config), plan=plan)

    rows = list(task.client_data(context_of(config)).train)
    batch = task.collate(rows)
    model = task.build_model()
    load_arrays(model, manifest, base)
    expected = task.loss(model.eval()(batch[0]), batch[1])
    assert known[0].base_loss == pytest.approx(factor * float(expected), rel=1e-5)


def test_a_training_of_the_tasks_own_names_no_optimizer_of_the_config(task):
    class Own(EverythingTask):
        def train(self, model, data, context, on_epoch):
            return {"num_examples": 1}

    assert update_of(task).is_by_optimizer
    assert not update_of(Own(config_of())).is_by_optimizer


def test_no_training_samples_is_an_error_that_names_the_client(task):
    task.count = 0
    with pytest.raises(DataError, match="client a has no training samples"):
        update_of(task)


def test_no_validation_samples_is_no_error(task):
    config = config_of()

    class NothingHeldOut(EverythingTask):
        def client_data(self, context):
            data = super().client_data(context)
            return ClientData(data.train, TensorDataset(torch.zeros(0, 4), torch.zeros(0).long()))

    seen = []
    own = NothingHeldOut(config)
    manifest, arrays = initial_model(own, 0)
    trained = train_update(own, manifest, arrays, context_of(config), lambda *r: seen.append(r))
    assert trained.metrics == {"num_examples": 0}
    assert seen[-1] == (2, 2, {})


def test_one_sample_and_batchnorm_is_an_error(task):
    task.count = 6
    with pytest.raises(DataError, match="BatchNorm"):
        update_of(task)


def test_every_sample_is_used_once_an_epoch():
    seen = []

    class Watcher(nn.Linear):
        def forward(self, rows):
            seen.append(rows[:, 0].tolist())
            return super().forward(rows)

    rows = torch.arange(11.0).reshape(11, 1)
    sgd.local_sgd(
        Watcher(1, 2),
        TensorDataset(rows, torch.zeros(11).long()),
        nn.functional.cross_entropy,
        seed=0,
        epochs=2,
        batch_size=5,
        learning_rate=0.01,
    )
    assert [len(batch) for batch in seen] == [5, 5, 1, 5, 5, 1]
    first, second = list(chain(*seen[:3])), list(chain(*seen[3:]))
    assert sorted(first) == sorted(second) == list(range(11))
    assert first != second


class OneByOne(Dataset):
    """The samples of a ``TensorDataset`` without its being one."""

    def __init__(self, whole):
        self.whole = whole

    def __len__(self):
        return len(self.whole)

    def __getitem__(self, index):
        return self.whole[index]


def test_all_kinds_of_data_sets_train_alike():
    rows = torch.randn(23, 4, generator=torch.Generator().manual_seed(0))
    whole = TensorDataset(rows, rows.argmax(dim=1))
    part, _ = random_split(whole, [23, 0], generator=torch.Generator().manual_seed(0))
    ordered = TensorDataset(*whole[part.indices])
    weights = []
    for dataset in (ordered, part, OneByOne(ordered)):
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        loss = nn.functional.cross_entropy
        sgd.local_sgd(model, dataset, loss, seed=1, epochs=2, batch_size=5, learning_rate=0.1)
        weights.append(model.weight.detach().numpy().tobytes())
        assert sgd.evaluate(model, dataset, loss)["num_examples"] == 23
    assert weights[0] == weights[1] == weights[2]


def test_sgd_is_the_textbook_step():
    model = nn.Linear(2, 1, bias=False)
    start = model.weight.detach().clone()
    rows, target = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0], [2.0]])
    sums = sgd.local_sgd(
        model,
        TensorDataset(rows, target),
        nn.functional.mse_loss,
        seed=0,
        epochs=1,
        batch_size=2,
        learning_rate=0.01,
        weight_decay=0.5,
    )
    error = rows @ start.t() - target
    gradient = (2 * error * rows).mean(dim=0) + 0.5 * start
    torch.testing.assert_close(model.weight.detach(), start - 0.01 * gradient)
    assert sums["loss_sum"] == pytest.approx(float((error**2).sum()))


def test_regression_has_a_loss_and_no_classes():
    data = TensorDataset(torch.zeros(3, 2), torch.ones(3, 1))
    model = nn.Linear(2, 1)
    sums = sgd.evaluate(model, data, nn.functional.mse_loss)
    assert sums.keys() == {"num_examples", "loss_sum"}


def test_two_scores_and_one_log_odds_count_alike():
    rows = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    target = (rows[:, 0] > rows[:, 1]).long()
    two = sgd.evaluate(nn.Identity(), TensorDataset(rows, target), nn.functional.cross_entropy)
    odds = TensorDataset(rows[:, 1:] - rows[:, :1], target)
    one = sgd.evaluate(
        nn.Identity(),
        odds,
        lambda output, truth: nn.functional.binary_cross_entropy_with_logits(
            output[:, 0], truth.float()
        ),
    )
    assert one["confusion"] == two["confusion"]
    assert one["loss_sum"] == pytest.approx(two["loss_sum"], rel=1e-5)
    assert finish(one)["auc"] == pytest.approx(finish(two)["auc"], abs=1e-3)
    assert finish(two)["accuracy"] == 0.0


def test_a_loss_that_is_not_finite_is_left_out():
    data = TensorDataset(torch.full((3, 2), torch.nan), torch.zeros(3).long())
    sums = sgd.evaluate(nn.Identity(), data, nn.functional.cross_entropy)
    assert "loss_sum" not in sums
    check(sums)


@pytest.mark.parametrize("classes", [MAX_CLASSES, MAX_CLASSES + 1, 1200])
def test_metrics_of_many_classes_fit_into_a_header(classes):
    rows = torch.eye(classes)[:4]
    data = TensorDataset(rows, torch.tensor([0, 1, 2, 9]))
    sums = sgd.evaluate(nn.Identity(), data, nn.functional.cross_entropy)
    assert finish(sums)["accuracy"] == 0.75
    assert ("confusion" in sums) == (classes == MAX_CLASSES)
    check(sums)
    header = Header(kind="evaluation", run="r-1", round=1, client="a", metrics=sums)
    assert message.unpack(message.pack(header, None), max_body_bytes=0)[0].metrics == sums


def test_the_documented_example_works(tmp_path, monkeypatch):
    text = textwrap.dedent(Task.__doc__).split("::\n")[1].split("A config names it")[0]
    (tmp_path / "beans.py").write_text(textwrap.dedent(text))
    generator = np.random.default_rng(0)
    table = generator.normal(size=(300, 8))
    table[:, 7] = table[:, :3].argmax(axis=1)
    np.save(tmp_path / "beans.npy", table)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = config_of("beans:Beans", epochs=20, learning_rate=0.3)

    own = load_task("beans:Beans", config, ["beans:Beans"])
    manifest, arrays = initial_model(own, 0)
    context = context_of(config, data_dir=str(tmp_path), shares=2, share=1)
    seen = []
    trained = train_update(own, manifest, arrays, context, lambda *report: seen.append(report))
    assert (trained.num_examples, trained.metrics["num_examples"]) == (135, 15)
    assert seen[-1][2]["accuracy"] > 0.7
    assert len(code_digest(own)) == 64
    sys.modules.pop("beans")


def test_own_tasks_are_loaded_only_when_allowed(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for allow in ([], ["evil:Other"], ["evi:*"], ["*"]):
        with pytest.raises(ConfigError, match="--task-allow evil:Task") as caught:
            load_task("evil:Task", config_of(), allow)
        assert caught.value.field == "run.task"
    with pytest.raises(SystemExit):
        load_task("evil:Task", config_of(), ["evil:*"])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "cannot be imported"),
        ("import absent_module", "absent_module"),
        ("def broken(:", "cannot be imported"),
        ("Own = 3", "no class Own"),
        ("class Own: pass", "no class Own"),
        ("from fl_queue.tasks import Task\nclass Own(Task): pass", "build_model, client_data"),
    ],
)
def test_a_custom_task_that_cannot_be_used_is_refused_with_the_reason(
    tmp_path, monkeypatch, source, reason
):
    name = f"own_{abs(hash(source))}"
    if source is not None:
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=reason) as caught:
        load_task(f"{name}:Own", config_of(), [f"{name}:*"])
    assert caught.value.field == "run.task"


def test_an_unknown_built_in_names_those_there_are():
    with pytest.raises(ConfigError, match="mnist-2nn"):
        load_task("mnist", config_of())


def test_a_task_is_given_the_folder_of_its_worker_and_never_that_of_the_config():
    config = RunConfig.from_dict({"run": {"task": "mnist-2nn"}, "data": {"dir": "/there"}})
    for folder in ("/here", ""):
        assert load_task("mnist-2nn", config, data_dir=folder).config.data.dir == folder
        assert context_of(config, data_dir=folder).data_dir == folder


def test_context_has_the_rounds_learning_rate():
    config = config_of(learning_rate=[[1, 0.5], [3, 0.1]])
    assert [context_of(config, round_number=n).learning_rate for n in (1, 2, 3)] == [0.5, 0.5, 0.1]


def test_environment_names_everything_that_decides_the_bits(task):
    found = environment("cpu", code_digest(task), 3)
    assert found["torch"] == torch.__version__
    assert (found["device"], found["threads"]) == ("cpu", 3)
    assert found["instruction_set"]
    assert found["task_code"] == code_digest(task)
    assert all(isinstance(value, str | int) for value in found.values())


def trained_weight(**options):
    """Weights after an epoch over 10 rows of a regression, from the same start."""
    generator = torch.Generator().manual_seed(3)
    rows, target = torch.randn(10, 3, generator=generator), torch.randn(10, 1, generator=generator)
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    start = model.weight.detach().clone()
    sgd.local_sgd(
        model, TensorDataset(rows, target), nn.functional.mse_loss, seed=7, epochs=1,
        learning_rate=0.5, **options,
    )  # fmt: skip
    return start, model.weight.detach()


def test_accumulated_batches_make_the_step_of_one_large_one():
    # 10 rows: three batches of 4, 4 and 2, so that they count by their samples.
    _, whole = trained_weight(batch_size=10)
    _, parts = trained_weight(batch_size=4, accumulate=3)
    _, others = trained_weight(batch_size=4, accumulate=2)
    _, halves = trained_weight(batch_size=8)

    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(others, halves)
    assert not torch.allclose(whole, halves)


def test_a_clipped_step_is_as_long_as_allowed_and_in_the_same_direction():
    start, free = trained_weight(batch_size=10)
    _, clipped = trained_weight(batch_size=10, clip_norm=0.01)
    _, loose = trained_weight(batch_size=10, clip_norm=1000.0)

    assert torch.equal(loose, free)
    assert float((clipped - start).norm()) <= 0.5 * 0.01 * 1.0001
    direction = nn.functional.cosine_similarity(clipped - start, free - start)
    assert float(direction) == pytest.approx(1.0, abs=1e-4)


def test_the_config_sets_the_optimizer_steps_of_a_task(task):
    own = type(task)(config_of(batch_size=2, epochs=1, accumulate=4))
    rule = sgd.LocalRule()
    context = replace(context_of(own.config), rule=rule)
    data = own.client_data(context)
    own.train(own.build_model(), data, context, lambda *reported: None)

    batches = -(-sgd.size_of(data.train) // 2)
    assert rule.steps == -(-batches // 4) < batches


def test_importing_tasks_does_not_load_torchvision():
    code = "import sys, fl_queue.client.local_update; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.01)])
def test_a_step_has_the_bits_of_torch_optim(momentum, weight_decay):
    def trained(step_of):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
        step = step_of(model)
        for _ in range(5):
            model.zero_grad()
            model(torch.randn(4, 8)).square().sum().backward()
            step()
        return [parameter.detach().clone() for parameter in model.parameters()]

    ours = trained(lambda model: PlainSGD(model, 0.1, momentum, weight_decay).step)
    theirs = trained(
        lambda model: (
            torch.optim.SGD(
                model.parameters(), lr=0.1, momentum=momentum, weight_decay=weight_decay
            ).step
        )
    )

    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


def test_local_sgd_does_not_import_the_compiler():
    # It would cost every restarted worker two seconds.
    code = """
import sys
from torch import nn, tensor
from torch.utils.data import TensorDataset
from fl_queue.training import determinism, sgd
determinism.preload()
data = TensorDataset(tensor([[1.0], [2.0]]), tensor([[1.0], [2.0]]))
sgd.local_sgd(nn.Linear(1, 1), data, nn.functional.mse_loss, seed=1, epochs=1, batch_size=1, learning_rate=0.1)
assert not [name for name in sys.modules if name.startswith(("torch._dynamo", "torch._inductor."))]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_site_trains_with_no_more_examples_than_it_gives(task):
    seen = []

    class Watching(EverythingTask):
        def train(self, model, data, context, on_epoch):
            seen.append(data)
            return super().train(model, data, context, on_epoch)

    watching = Watching(task.config)
    manifest, arrays = initial_model(watching, 1)
    for round_number, most in ((1, 7), (2, 7), (1, 0), (1, 1000)):
        context = context_of(task.config, round_number=round_number, max_examples=most)
        made = train_update(watching, manifest, arrays, context)
        assert made.num_examples == (7 if most == 7 else 16)

    first, second, whole, enough = (data.train[:][0] for data in seen)
    assert torch.equal(first, second)
    assert torch.equal(whole, enough)
    assert sum((row == whole).all(dim=1).any() for row in first) == 7
    assert not torch.equal(first, whole[:7])
    assert all(len(data.validation) == 5 for data in seen)
