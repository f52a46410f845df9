"""
Model cards: origin, data, metrics and use of one version.

Markdown with the front matter that model hubs read. The content is that of the run in Redis, without
URLs and folders. No torch here.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_queue._version import __version__
from fl_queue.common import escaping, files, safe_json
from fl_queue.config import rendering
from fl_queue.config.run_config import RunConfig
from fl_queue.errors import DataError
from fl_queue.models import initial, selection
from fl_queue.protocol.identifiers import VIRTUAL
from fl_queue.protocol.manifest import Manifest
from fl_queue.protocol.model_usage import ModelUsage
from fl_queue.protocol.records import Mode, Outcome, RoundRecord
from fl_queue.reporting import rounds_table
from fl_queue.store import RunState, Store

#: Largest number of clients that are listed one by one; more are summarised.
LISTED = 40
_MAIN = ("accuracy", "f1", "auc", "loss")
#: Beginning of every card, by which one is recognised.
_FIRST = "---\nlibrary_name: pytorch"
_ENVIRONMENT = (
    "fl_queue", "python", "torch", "torchvision", "numpy", "device", "instruction_set", "task_code",
)  # fmt: skip
_LOADING = {
    "safetensors": """from safetensors.torch import load_file

model.load_state_dict(load_file("{file}"))""",
    "peft": """from peft import PeftModel

model = PeftModel.from_pretrained(base, "{file}")  # base: the model that the adapters were trained on""",
    "torch": """import torch

model.load_state_dict(torch.load("{file}", weights_only=True))""",
    "onnx": """import onnxruntime

session = onnxruntime.InferenceSession("{file}")
output = session.run(["output"], {{"input": batch}})[0]  # batch: a numpy array""",
}


@dataclass(frozen=True)
class CardData:
    """
    Content of a model card.

    Args:
        state: The run.
        version: Number of the version.
        digest: BLAKE3 of the version.
        config: Config of the version, or the current one.
        manifest: The model's tensors.
        records: Rounds up to the version, and rounds that validated it.
        tested: Finished metrics on the central test set; empty without a test.
        examples: Client -> number of examples, where known.
        environments: Software of the clients' last updates, from their receipts.
        usage: Usage by the task; None: unknown.
    """

    state: RunState
    version: int
    digest: str
    config: RunConfig
    manifest: Manifest
    records: Sequence[RoundRecord]
    tested: Mapping[str, float]
    examples: Mapping[str, int]
    environments: Sequence[Mapping[str, Any]]
    usage: ModelUsage | None


def gather(
    store: Store,
    state: RunState,
    config: RunConfig,
    version: int,
    usage: ModelUsage | None,
) -> CardData:
    """
    Read the content of a card from Redis.

    Args:
        version: An existing version.
        usage: Usage by the task; None: unknown.
    """
    manifest = store.control.versions.manifest(state.run_id)
    assert manifest is not None  # Written with version 0.
    records = [
        record
        for record in store.control.history.records(state.run_id)
        if record.base_version < version or (record.base_version == version and record.validation)
    ]
    receipts = [
        receipt
        for number in range(max(0, state.round - 2), state.round + 1)
        for receipt in store.control.receipts.of_round(state.run_id, number).values()
        if receipt.is_in and receipt.environment
    ]
    return CardData(
        state=state,
        version=version,
        digest=str(store.control.versions.all(state.run_id)[version]["digest"]),
        config=config,
        manifest=manifest,
        records=records,
        tested=selection.test_metrics(store, state.run_id).get(version, {}),
        examples=_examples(store, config, records, version),
        environments=[receipt.environment for receipt in receipts],
        usage=usage,
    )


def _examples(
    store: Store, config: RunConfig, records: Sequence[RoundRecord], version: int
) -> dict[str, int]:
    """Client with an accepted update -> its newest number of examples; 0: unknown."""
    found: dict[str, int] = {}
    for record in records:
        if record.version is None or record.version > version:
            continue
        for client, weight in record.weights.items():
            if config.aggregation.weighting != "examples" or record.mode == Mode.asynchronous:
                count = store.control.clients.get(client).get("num_examples", "")
                weight = int(count) if safe_json.is_count(count) else 0
            found[client] = weight
    return found


def write(path: Path, facts: CardData, file: str, kind: str) -> None:
    """
    Write the card; see ``render``. An older card is replaced.

    Raises:
        DataError: It cannot be written, or is something else already.
    """
    if path.is_file() and not _is_card(path):
        raise DataError(str(path), "is there, and no model card; name another file")
    files.write(path, render(facts, file, kind).encode())


def _is_card(path: Path) -> bool:
    try:
        return path.read_bytes().startswith(_FIRST.encode())
    except OSError as exc:
        raise DataError(str(path), f"cannot be read: {exc.strerror or exc}") from exc


def render(facts: CardData, file: str, kind: str) -> str:
    """
    The card as Markdown.

    Args:
        file: Name of the model's file.
        kind: ``safetensors``, ``torch`` or ``onnx``.
    """
    parts = [
        _front_matter(facts),
        f"# {escaping.markdown(facts.state.name)}, version {facts.version}",
        f"Trained by federated learning with fl-queue: the data stayed with {_clients(facts)}, which "
        "sent updates of the model. Task "
        f"{escaping.code(facts.config.run.task)}, {escaping.markdown(facts.config.aggregation.strategy)}.",
        _use(facts, file, kind),
        _metrics(facts),
        _data(facts),
        _training(facts),
        _software(facts),
        _limits(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(facts: CardData) -> str:
    lines = [_FIRST, "tags:", "- federated-learning", "- fl-queue"]
    results = [(name, facts.tested[name]) for name in _MAIN if name in facts.tested]
    if results:
        lines += ["model-index:", f"- name: {json.dumps(facts.state.name)}", "  results:"]
        lines += ["  - task:", f"      type: {json.dumps(facts.config.run.task)}"]
        lines += ["    dataset:", "      name: central test set", "      type: other"]
        lines += ["    metrics:"]
        for name, value in results:
            lines += [f"    - type: {name}", f"      value: {value:.6g}"]
    return "\n".join([*lines, "---"])


def _use(facts: CardData, file: str, kind: str) -> str:
    lines = ["## Use", "", "```python", _LOADING[kind].format(file=file), "```"]
    usage = facts.usage
    if usage is None:
        lines += ["", "The task is code of its owner; its input and output are not known here."]
        return "\n".join(lines)
    lines += ["", f"- Input: {escaping.markdown(usage.input)}"]
    lines.append(f"- Output: {escaping.markdown(usage.output)}")
    if usage.labels:
        classes = ", ".join(
            f"{number}: {escaping.markdown(name)}" for number, name in enumerate(usage.labels)
        )
        lines.append(f"- Classes: {classes}")
    lines += [
        f"- {escaping.markdown(name)}: {escaping.markdown(_plain(value))}"
        for name, value in usage.details.items()
    ]
    return "\n".join(lines)


def _metrics(facts: CardData) -> str:
    validated = rounds_table.validation(facts.records).get(facts.version, {})
    own = {
        client: versions[facts.version]
        for client, versions in rounds_table.client_validation(facts.records).items()
        if facts.version in versions
    }
    names = list(dict.fromkeys([*facts.tested, *validated]))
    names.sort(key=lambda name: (name not in _MAIN, name))
    if not names:
        return "## Metrics\n\nThis version has not been judged."
    rows = [("central test", facts.tested), ("clients' validation, merged", validated)]
    listed = own if len(own) <= LISTED else {}
    rows += [(f"client {client}", finished) for client, finished in listed.items()]
    text = _table(
        ["judged by", *names],
        [
            [label, *(f"{found[name]:.4f}" if name in found else "" for name in names)]
            for label, found in rows
            if found
        ],
    )
    lines = ["## Metrics", "", text]
    coverage = rounds_table.validation_coverage(facts.records).get(facts.version, {})
    if coverage:
        lines += ["", f"Merged validation is of: {rounds_table.coverage_in_words(coverage)}."]
    if len(own) > LISTED:
        for name in names:
            values = sorted(found[name] for found in own.values() if name in found)
            if values:
                lines += [
                    "",
                    f"{escaping.markdown(name)} over {len(values)} clients: {_quantiles(values)}",
                ]
    if any(name.startswith(("personal_", "finetuned_")) for name in names):
        lines += [
            "",
            "`personal_` is of the models that clients kept for themselves, `finetuned_` of this "
            "version after training at each client: neither is in the file.",
        ]
    return "\n".join(lines)


def _data(facts: CardData) -> str:
    counts = {client: count for client, count in facts.examples.items() if count}
    lines = ["## Data", "", _partition(facts.config)]
    if not counts:
        return "\n".join([*lines, "No client reported its number of examples."])
    total = (
        f"{len(facts.examples)} clients took part, with {sum(counts.values())} training examples"
    )
    lines += ["", f"{total}, as reported by them."]
    if len(counts) <= LISTED:
        rows = [[client, str(count)] for client, count in sorted(counts.items())]
        lines += ["", _table(["client", "examples"], rows)]
    else:
        lines += ["", f"Examples of a client: {_quantiles(sorted(counts.values()))}"]
    return "\n".join(lines)


def _partition(config: RunConfig) -> str:
    if config.data.partition == "site":
        return "Each client used its own data, which stayed at its site."
    kind = config.data.partition
    return f'One data set, split over the clients for an experiment (`data.partition = "{kind}"`).'


def _frozen(facts: CardData) -> list[list[str]]:
    base = facts.manifest.base
    if base is None:
        return []
    size = sum(one.size for one in base.tensors)
    return [["frozen numbers", f"{size:,}"], ["digest of the frozen tensors", base.digest]]


def _elements(facts: CardData, *kinds: str) -> int:
    return sum(spec.size for spec in facts.manifest.tensors if spec.kind in kinds)


def _training(facts: CardData) -> str:
    config = facts.config
    committed = [r for r in facts.records if r.version is not None and r.version <= facts.version]
    abandoned = sum(record.outcome == Outcome.abandoned for record in facts.records)
    seconds = sum(record.elapsed_s for record in committed)
    per_round = [len(record.accepted) for record in committed]
    merged = f", of {min(per_round)} to {max(per_round)} updates each" if per_round else ""
    rows = [
        ["rounds", f"{len(committed)}{merged}; {abandoned} abandoned; {seconds:.0f} s"],
        ["strategy", f"{config.aggregation.strategy} {_plain(dict(config.strategy))}"],
        ["weighting", config.aggregation.weighting],
        *([f"train.{name}", _plain(value)] for name, value in config.train.to_dict().items()),
        ["seed", str(config.run.seed)],
        ["parameters", f"{_elements(facts, 'parameter'):,}"],
        ["numbers in buffers", f"{_elements(facts, 'float_buffer', 'integer_buffer'):,}"],
        *_frozen(facts),
        ["run", facts.state.run_id],
        ["digest, BLAKE3 of the tensors", facts.digest],
        *_beginning(facts),
    ]
    return "\n".join(
        [
            "## Training",
            "",
            _table(["", ""], rows),
            "",
            "<details><summary>The whole config</summary>",
            "",
            escaping.fenced(rendering.to_toml(_public(config)).strip(), "toml"),
            "",
            "</details>",
        ]
    )


def _beginning(facts: CardData) -> list[list[str]]:
    """Rows of the file that the run began with."""
    found = initial.beginning(facts.state.initial, facts.manifest)
    if found is None:
        return []
    rows = [["begun from, BLAKE3 of the file", f"{found.file} {found.source}"]]
    for part, names in (
        ("loaded", found.loaded),
        ("fresh", found.fresh),
        ("ignored", found.ignored),
    ):
        listed = f": {', '.join(names[:LISTED])}{', ...' if len(names) > LISTED else ''}"
        rows.append([f"tensors {part}", f"{len(names)}{listed if names else ''}"])
    return rows


def _public(config: RunConfig) -> dict[str, dict[str, Any]]:
    """The config without servers, folders and files."""
    sections = {name: dict(fields) for name, fields in config.record().items() if name != "redis"}
    for section, place in (("data", "dir"), ("model", "initial")):
        sections[section].pop(place, None)
    return {name: fields for name, fields in sections.items() if fields}


def _software(facts: CardData) -> str:
    lines = ["## Software", "", f"Written by fl-queue {__version__}."]
    if not facts.environments:
        return "\n".join([*lines, "What the clients ran is no longer in Redis."])
    rows = []
    for name in _ENVIRONMENT:
        found = sorted({str(each[name]) for each in facts.environments if each.get(name)})
        if found:
            rows.append([name, ", ".join(found)])
    return "\n".join([*lines, "The clients' last updates came from:", "", _table(["", ""], rows)])


def _limits(facts: CardData) -> str:
    config = facts.config
    limits = [
        "Metrics of clients are what they report; the operator has not seen the data they are of.",
        "Updates were not protected by differential privacy: what is in the data may be in the model.",
    ]
    if not facts.tested:
        limits.insert(0, "There was no central test of this version.")
    if facts.manifest.private:
        limits.append(
            f"{len(facts.manifest.private)} tensors are private to each client "
            f"({escaping.code('model.private = ' + _plain(config.model.private))}); here they have the values of "
            "version 0, and were not trained."
        )
    if any(client.startswith(VIRTUAL) for client in facts.examples):
        limits.append("The clients were simulated on the operator's machine.")
    return "\n".join(["## Limits", "", *(f"- {limit}" for limit in limits)])


def _clients(facts: CardData) -> str:
    count = len(facts.examples)
    return "1 client" if count == 1 else f"{count} clients" if count else "clients"


def _quantiles(values: Sequence[float]) -> str:
    middle = statistics.median(values)
    return ", ".join(
        f"{label} {value:.4g}"
        for label, value in (("least", values[0]), ("median", middle), ("most", values[-1]))
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    # Names and environments come from the clients.
    lines = [
        map(escaping.markdown, head),
        ["---"] * len(head),
        *(map(escaping.markdown, row) for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} = {_plain(each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(each) for each in value)
    return str(value)
