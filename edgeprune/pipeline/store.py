"""What is kept of a run, by one process for all: only the first reads and writes the run folder."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from converters.facts import download_bytes, sha256
from converters.files import replacing
from edgeprune.errors import UserError
from edgeprune.evaluation.records import Row, Training, from_plain, to_plain
from edgeprune.parsing import build, read_json
from edgeprune.pipeline.run_folder import Run, write_json
from edgeprune.processes import is_first, shared
from edgeprune.tasks.task import Analysis, Task

ADVICE = "delete it, and the same command makes it again"


@dataclass(frozen=True)
class Store:
    """Reads and writes an opened run folder; under `accelerate launch` every process calls it alike."""

    run: Run

    def has_variant(self, name: str) -> bool:
        """Whether a variant is trained."""
        return shared(self.run.weights(name).exists)

    def keep_variant(self, record: Training, module: nn.Module) -> None:
        """Keep a trained variant: its record first, so that weights that are there are always explained."""
        from safetensors.torch import save

        def keep() -> None:
            write_json(self.run.training(record.variant), to_plain(record))
            with replacing(self.run.weights(record.variant)) as temporary:
                state = {key: value.contiguous() for key, value in module.state_dict().items()}
                temporary.write_bytes(save(state))
            self.run.partial(record.variant).unlink(missing_ok=True)

        shared(keep)

    def variant(self, name: str) -> tuple[dict[str, Tensor], Training]:
        """The weights of a trained variant, and how it came to be."""
        return shared(lambda: (weights_of(self.run, name), training_of(self.run, name)))

    def partial(self, name: str) -> dict[str, Any] | None:
        """The state of a variant in training after its last epoch; None where there is none."""
        path = self.run.partial(name)
        return shared(lambda: _partial_at(path) if path.exists() else None)

    def keep_partial(self, name: str, state: dict[str, Any]) -> None:
        """Keep the state of a variant in training."""
        if not is_first():
            return
        # Through memory: torch's own writer does not say why a disk refuses.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with replacing(self.run.partial(name)) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def pin_inputs(self, data_sha256: str, checkpoint: Path | None, weights: Path | None) -> None:
        """Refuse to go on with a run whose images, checkpoint or weights have changed since it began.

        Raises:
            UserError: they have; or this machine's images are not the first process's.
        """
        shared(lambda: self._pin(data_sha256, checkpoint, weights))
        if shared(lambda: data_sha256) != data_sha256:
            raise UserError("the images here are not those of the first process: give every machine the same")

    def _pin(self, data_sha256: str, checkpoint: Path | None, weights: Path | None) -> None:
        inputs = {"data": data_sha256, "checkpoint": sha256(checkpoint) if checkpoint else None}
        inputs |= {"weights": sha256(weights)} if weights else {}
        if not self.run.inputs.exists():
            write_json(self.run.inputs, inputs)
        before = inputs_of(self.run)
        changed = [name for name in inputs if before.get(name) != inputs[name]]
        if changed:
            raise UserError(
                f"output folder {self.run.folder}: the {' and '.join(changed)} changed since this run began; "
                "choose another --output, or delete that folder to start again"
            )


def inputs_of(run: Run) -> dict[str, Any]:
    """Digests of what a run was made from, by name.

    Raises:
        UserError: the file is gone or damaged.
    """
    found = read_json(run.inputs, ADVICE)
    if not isinstance(found, dict):
        raise UserError(f"{run.inputs} holds no digests; {ADVICE}")
    return found


def weights_of(run: Run, variant: str) -> dict[str, Tensor]:
    """The weights of a trained variant.

    Raises:
        UserError: the file is gone or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = run.weights(variant)
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not weights that can be read ({error}); {ADVICE}") from None
    return weights


def _partial_at(path: Path) -> dict[str, Any]:
    """The state of a variant in training."""
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        state["epoch"], state["history"]  # What every state has.
    except Exception:  # On a damaged file torch raises what it stumbles over.
        raise UserError(
            f"{path}: not a training's state that can be read; delete it, and the training begins again"
        ) from None
    return state


def keep_row(run: Run, row: Row) -> None:
    """Keep what was measured on a file."""
    write_json(run.row(row.variant, row.target), to_plain(row))


def row_of(run: Run, variant: str, target: str) -> Row | None:
    """What was measured on a file, if that very file is still there; its download too, if it was not yet."""
    path = run.row(variant, target)
    if not path.exists():
        return None
    row = from_plain(Row, read_json(path, ADVICE), str(path))
    file = run.folder / row.path
    if not file.exists() or sha256(file) != row.sha256:
        return None
    if row.download_bytes is None:
        row = dataclasses.replace(row, download_bytes=download_bytes(file))
    return row


def training_of(run: Run, variant: str) -> Training:
    """How a trained variant came to be."""
    path = run.training(variant)
    return from_plain(Training, read_json(path, ADVICE), str(path))


def keep_picture(run: Run, name: str, content: bytes) -> None:
    """Keep a JPEG file by its path in the run folder."""
    with replacing(run.folder / name) as temporary:
        temporary.write_bytes(content)


def keep_analysis(run: Run, variant: str, analysis: Analysis) -> None:
    """Keep what a variant gets wrong; the pictures first: what names them comes after."""
    for name, content in analysis.pictures.items():
        keep_picture(run, name, content)
    write_json(run.examination(variant), dataclasses.asdict(analysis.record))


def analysis_of(run: Run, variant: str, task: Task) -> Any:
    """What was found out about a variant, if its weights and the dense ones are still those; else None.

    Raises:
        UserError: it is there and cannot be read.
    """
    path = run.examination(variant)
    if not path.exists():
        return None
    found = build(task.section.record, read_json(path, ADVICE), str(path))
    digests = {variant: found.weights_sha256, "dense": found.dense_sha256}
    weights = {name: run.weights(name) for name in digests}
    changed = [name for name, file in weights.items() if file.exists() and sha256(file) != digests[name]]
    return None if changed else found
