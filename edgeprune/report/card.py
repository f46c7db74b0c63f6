"""A model card: what a repository of the Hugging Face hub shows as its README.md, from a report alone."""

from __future__ import annotations

from typing import Any

from edgeprune.report import render, summary
from edgeprune.report.records import Report
from edgeprune.tasks import TASKS

FILE_NAME = "README.md"
UNKNOWN = "unknown"
TAGS = ("edgeprune", "pruning", "on-device", "vision")


def text(report: Report, license: str = UNKNOWN) -> str:
    """The whole card.

    Args:
        report: of a finished run.
        license: of the weights, as the hub names licences: "apache-2.0", "mit", "other".
    """
    import yaml

    front = yaml.safe_dump(front_matter(report, license), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n{render.card(report, license_unknown=license == UNKNOWN)}"


def front_matter(report: Report, license: str = UNKNOWN) -> dict[str, Any]:
    """What the hub reads, as plain data: licence, formats, task, and each file's score."""
    formats = summary.formats(report)
    suffixes = [format.suffix.removeprefix(".") for format in formats]
    known = next((task for task in TASKS.values() if task.metric.key == summary.metric(report).key), None)
    task = {} if known is None else {"pipeline_tag": known.hub}
    return {
        "license": license,
        **({"library_name": formats[0].name} if formats else {}),
        "tags": list(dict.fromkeys([*TAGS, *(format.name for format in formats), *suffixes])),
        **task,
        "metrics": [_hub_metric(report)],
        **({"model-index": [_index(report, known.hub)]} if known else {}),
    }


def _index(report: Report, task: str) -> dict[str, Any]:
    """A score for each file, as the hub's model index has them."""
    data = report.environment.get("data")
    source = str(data.get("source", UNKNOWN)) if isinstance(data, dict) else UNKNOWN
    heading = summary.metric(report).heading
    metrics = [
        {
            "type": _hub_metric(report),
            "value": round(row.score, 6),
            "name": f"{heading} of {row.path}",
        }
        for row in report.rows
    ]
    result = {"task": {"type": task}, "dataset": {"type": source, "name": source}, "metrics": metrics}
    return {"name": render.title(report), "results": [result]}


def _hub_metric(report: Report) -> str:
    metric = summary.metric(report)
    return metric.hub or metric.key
