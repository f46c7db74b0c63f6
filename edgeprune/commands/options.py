"""The commands and their options, in one vocabulary: RUN, FILE and RECIPE, `--json`, `--runtime`, `--budget`.

A command is added by a function below that says what it takes, a line in `_ADDED`, and its function in
`edgeprune.cli.COMMANDS`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from converters.runtimes.environments import RUNTIMES
from edgeprune import __version__

Command = Callable[[argparse.Namespace], int]
SHELLS = ("bash", "zsh", "fish")
RUNTIME_NAMES = ", ".join(RUNTIMES)

DESCRIPTION = """\
Prune a vision model to a budget; get the Core ML and LiteRT files, with every
number measured on the files that ship.

Most people start from a recipe script:
  python recipes/mobilenet_v3_small.py --data IMAGES --output runs/mine
and let their CI check what it made:
  edgeprune check runs/mine --budget budget.toml"""

EXAMPLES = {
    "run": """\
  edgeprune run runs/mine/recipe.toml --output runs/again --seed 1
  edgeprune run recipe.toml --help
""",
    "report": """\
  edgeprune report runs/mine
  edgeprune report runs/mine --json - | jq '.rows[].bytes'
""",
    "check": """\
  edgeprune check runs/mine --budget budget.toml
  edgeprune check runs/mine --budget budget.toml --bench bench.json --junit check.xml
  edgeprune check model.tflite --budget budget.toml --target litert-arm64-int8 --only bytes

A budget.toml, every line of which can be left out:
  top1_drop_points = 0.5            # against the dense float32 model
  [bytes]
  coreml-ios16 = 1_100_000          # of the file on disk
  [target.litert-arm64-int8]        # all limits of one target
  bytes = 600_000
  top1_drop_points = 1.0
  load_memory_bytes = 20_000_000    # added at the peak by loading it and running it once
  time_ratio = 0.6                  # of the dense file's time

A limit that cannot be judged is not met. Run as a step of a GitHub workflow it
writes annotations too.
""",
    "compare": """\
  edgeprune compare runs/before runs/after
  edgeprune compare runs/before runs/after --json - | jq .most_changed_layer
""",
    "convert": """\
  edgeprune convert mine.safetensors --model mobilenet_v3_small --target litert-arm64 --target coreml-ios16
  edgeprune convert mine.pt --model timm/mobilenetv3_small_100 --image-size-px 160 --labels names.txt
  edgeprune convert my_package.models:pruned --output files

A checkpoint is a state dict: of a dense model, with zeros in its weights, with
fewer channels, or with the masks of torch.nn.utils.prune. Anything else comes
from your own code: PACKAGE.MODULE:NAME, a torch module or a function that gives
one. Zeros are stored sparse where that is smaller, each file is run and compared
with the torch model, and the linter says whether sparse kernels will run.
""",
    "inspect": """\
  edgeprune inspect runs/mine/files/block80-litert-arm64.tflite
  edgeprune inspect Model.mlpackage --json -
""",
    "verify": """\
  edgeprune verify runs/mine/files/block80-litert-arm64.tflite
  edgeprune verify model.tflite --model mobilenet_v3_small --checkpoint mine.safetensors
  edgeprune verify model.tflite --runtime host --runtime arm64 --images 20 --json -

A file in a run folder is compared with that run's torch model on its held-out
images; any other with --model and --checkpoint, or runtime with runtime. make
runtimes prepares more of them; pip install 'edgeprune[tensorflow]' adds
TensorFlow's own interpreter.
""",
    "bench": """\
  edgeprune bench dense.tflite sparse.tflite
  edgeprune bench dense.tflite sparse.tflite --runtime x86-sparse --rounds 10
  edgeprune bench runs/mine/files/*litert-arm64*.tflite --runtime arm64 --json -

x86-sparse, arm64 and browser are prepared once, by make runtimes. host and
browser take real time. The others are emulated: only how files compare in one
run means something.
""",
    "sensitivity": """\
  edgeprune sensitivity runs/mine
  edgeprune sensitivity runs/mine --layers 'classifier.*' --sparsities 0.8 0.9

Writes sensitivity.json, sensitivity.md and sensitivity.png into the run folder.
Only training images are looked at, never the held-out ones.
""",
    "doctor": """\
  edgeprune doctor
  edgeprune doctor --json - | jq .ok
""",
    "completion": """\
  edgeprune completion bash > ~/.local/share/bash-completion/completions/edgeprune
  edgeprune completion zsh > ~/.zfunc/_edgeprune      # a folder of your $fpath
  edgeprune completion fish > ~/.config/fish/completions/edgeprune.fish
""",
}

EXIT_STATUS = """\
exit status: 0 done and within budget; 1 over budget; 2 a mistake in what was
asked for; 3 a tool underneath failed."""

EXIT_STATUS_OF = {
    "check": """\
exit status: 0 within budget; 1 over budget, a limit that could not be judged,
or a file that is not the one that was measured; 2 a mistake in what was asked
for, or a file that cannot be used.""",
    "verify": """\
exit status: 0 every runtime that was run agrees; 1 one does not; 2 a mistake
in what was asked for, or a file that cannot be used; 3 a tool underneath failed.""",
    "doctor": "exit status: 0 all that a run needs is there; 1 something is missing.",
}


def parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """The parser of `edgeprune`, which sets `command` to the one of `commands` that was named."""
    return _build(commands)[0]


def completion(commands: Mapping[str, Command], shell: str) -> str:
    """The script that has a shell complete commands, options and file names."""
    import shtab

    made, subparsers = _build(commands)
    for command in subparsers:
        for action in command._actions:  # argparse has no public list of them.
            if action.type is Path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(made, shell))


def _build(commands: Mapping[str, Command]) -> tuple[argparse.ArgumentParser, list[argparse.ArgumentParser]]:
    """The parser, and those of its commands."""
    made = argparse.ArgumentParser(
        "edgeprune",
        description=DESCRIPTION,
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"edgeprune {__version__}")
    choices = made.add_subparsers(metavar="COMMAND", required=True)
    subparsers = []
    for name, (summary, add_options) in _ADDED.items():
        command = choices.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"examples:\n{EXAMPLES[name]}\n{EXIT_STATUS_OF.get(name, EXIT_STATUS)}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(command=commands[name])
        add_options(command)
        subparsers.append(command)
    return made, subparsers


def add_json(command: argparse.ArgumentParser) -> None:
    """Give a command the option to write its result as JSON."""
    command.add_argument(
        "--json", type=Path, metavar="OUT", help="write the result here too; - for stdout, no table"
    )


def _add_normalization(command: argparse.ArgumentParser) -> None:
    """Give a command the options for what a torch model wants done to pixels."""
    for name, meaning in (("mean", "subtracted from RGB in [0, 1]"), ("std", "it is then divided by")):
        command.add_argument(
            f"--{name}",
            type=float,
            nargs=3,
            metavar="X",
            help=f"of the torch model: {meaning}; ImageNet's if not given",
        )


def _run(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "recipe", type=Path, metavar="RECIPE", help="a recipe as TOML, such as a run folder's recipe.toml"
    )
    add_json(command)
    command.add_argument(
        "options", nargs=argparse.REMAINDER, help="any field, e.g. --seed 1; see RECIPE --help"
    )


def _report(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", type=Path, metavar="RUN", help="run folder")
    add_json(command)


def _check(command: argparse.ArgumentParser) -> None:
    from edgeprune.budget import limit_names

    command.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="RUN|FILE",
        help="a run folder; or .tflite files and .mlpackage folders from anywhere",
    )
    command.add_argument("--budget", type=Path, metavar="TOML", help="the recipe's own budget if not given")
    command.add_argument(
        "--target",
        metavar="NAME",
        help="that the files are for; guessed from name, budget and what is stored if not given",
    )
    command.add_argument(
        "--bench",
        type=Path,
        action="append",
        default=[],
        metavar="JSON",
        help="times and load memory, as edgeprune bench --json writes them; may be repeated",
    )
    command.add_argument(
        "--only",
        nargs="+",
        choices=limit_names(),
        metavar="LIMIT",
        help=f"judge these alone: {', '.join(limit_names())}",
    )
    command.add_argument("--junit", type=Path, metavar="OUT", help="write JUnit XML here too")
    add_json(command)


def _compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("before", type=Path, metavar="RUN", help="run folder")
    command.add_argument("after", type=Path, metavar="RUN", help="the run folder to compare with it")
    add_json(command)


def _convert(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "source", metavar="CHECKPOINT|MODEL", help=".safetensors, .pt or .pth; or PACKAGE.MODULE:NAME"
    )
    command.add_argument(
        "--model", metavar="NAME", help="architecture of a checkpoint: torchvision's, timm/NAME"
    )
    command.add_argument(
        "--target",
        action="append",
        metavar="NAME",
        help="may be repeated; coreml-ios16 and litert-arm64 if not given; edgeprune doctor lists all",
    )
    command.add_argument(
        "--output", type=Path, default=Path(), metavar="FOLDER", help="this folder if not given"
    )
    command.add_argument(
        "--image-size-px", type=int, default=224, metavar="N", help="%(default)s if not given"
    )
    _add_normalization(command)
    command.add_argument("--labels", type=Path, metavar="FILE", help="a class name a line, in output order")
    add_json(command)


def _inspect(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", type=Path, metavar="FILE", help=".tflite file or .mlpackage folder")
    add_json(command)


def _bench(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="the others are compared with the first"
    )
    command.add_argument(
        "--runtime", default="host", help=f"where they run: {RUNTIME_NAMES}; %(default)s if not given"
    )
    command.add_argument(
        "--rounds", type=int, default=20, help="times each file is timed; %(default)s if not given"
    )
    command.add_argument("--threads", type=int, default=1, help="of the runtime; %(default)s if not given")
    add_json(command)


def _sensitivity(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", type=Path, metavar="RUN", help="run folder with a trained dense model")
    command.add_argument("--layers", default="*", metavar="GLOB", help="of layer names; all if not given")
    command.add_argument(
        "--sparsities",
        type=float,
        nargs="+",
        metavar="S",
        default=(0.5, 0.7, 0.8, 0.9, 0.95),
        help="0.5 0.7 0.8 0.9 0.95 if not given",
    )
    command.add_argument(
        "--images",
        type=int,
        metavar="N",
        default=500,
        help="of the training images, always the same; %(default)s if not given",
    )
    command.add_argument(
        "--block",
        type=int,
        nargs=2,
        metavar=("OUT", "IN"),
        default=(1, 4),
        help="channels zeroed together, 1 1 for single weights; 1 4 if not given",
    )
    add_json(command)


def _verify(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", type=Path, metavar="FILE", help=".tflite file or .mlpackage folder")
    command.add_argument(
        "--model", metavar="NAME", help="torch model by name, as a recipe's; with --checkpoint"
    )
    command.add_argument("--checkpoint", type=Path, metavar="WEIGHTS", help="its state dict")
    _add_normalization(command)
    command.add_argument("--run", type=Path, help="run folder it was made in, if it lies elsewhere")
    command.add_argument("--variant", help="of the run, if the file's name does not say it")
    command.add_argument(
        "--runtime",
        action="append",
        metavar="NAME",
        help=f"{RUNTIME_NAMES}, tensorflow; may be repeated; all that are there if not given",
    )
    command.add_argument(
        "--images", type=int, metavar="N", help="on each runtime; 100, or 4 where emulated, if not given"
    )
    add_json(command)


def _completion(command: argparse.ArgumentParser) -> None:
    command.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


_ADDED: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "run": ("take a recipe file all the way, or go on with a stopped run", _run),
    "convert": ("write a torch model that was trained and pruned elsewhere as files", _convert),
    "inspect": ("show how each weight of a file is stored", _inspect),
    "verify": ("run a file on every runtime at hand and compare it with its torch model", _verify),
    "bench": ("time .tflite files in turns on one runtime", _bench),
    "sensitivity": (
        "measure what zeros in each layer alone do to the accuracy of a run's dense model",
        _sensitivity,
    ),
    "report": ("rebuild a run's report from what was measured, without training", _report),
    "check": ("hold a run, or files from anywhere, against a budget; exit status 1 if it is broken", _check),
    "compare": ("show what changed between two runs: bytes, accuracy, layers", _compare),
    "doctor": ("show what is installed, what is missing, and the command that adds it", add_json),
    "completion": ("write a completion script for a shell", _completion),
}
