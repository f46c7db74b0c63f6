"""The report as people read it: `report.html`, `report.md` and a table in the terminal."""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.files import write_text
from edgeprune import tasks
from edgeprune.evaluation.records import Examination, thumbnail
from edgeprune.report import formatting, summary
from edgeprune.report.alongside import AUGMENTED
from edgeprune.report.records import Report
from edgeprune.report.verdict import RECOMMENDED_DROP_POINTS
from edgeprune.tasks import TASKS
from edgeprune.tasks.task import Section

if TYPE_CHECKING:
    from jinja2 import Environment
    from rich.console import Console

HTML_NAME = "report.html"
MARKDOWN_NAME = "report.md"
# What the pictures of held-out images may take of a page, in its base64; the others stay in the run folder.
PICTURES_LIMIT_BYTES = 1_500_000
_TEMPLATES = (Path(__file__).parent / "templates", Path(tasks.__file__).parent / "templates")
_NUMBERS: tuple[Callable[..., str], ...] = (
    formatting.bits,
    formatting.bytes_exact,
    formatting.bytes_human,
    formatting.capital,
    formatting.confidence,
    formatting.count_human,
    formatting.duration,
    formatting.error,
    formatting.milliseconds,
    formatting.percent,
    formatting.plain,
    formatting.points,
    formatting.points_lost,
    formatting.shape,
    formatting.strength,
    formatting.times,
    formatting.zeros,
)


def write_pages(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write `report.html` and `report.md` into `folder`, each whole or not at all, and return their paths.

    The pictures of held-out images are those in `folder`.

    Raises:
        UserError: `folder` cannot be written to, or the budget in the report's recipe is invalid.
    """
    pictures, maps = embedded_pictures(report, folder), embedded_maps(report, folder)
    augmented = folder / AUGMENTED
    seen = data_address(augmented.read_bytes()) if augmented.is_file() else ""
    page, text = html(report, pictures, maps, seen), markdown(report)
    return write_text(folder / HTML_NAME, page), write_text(folder / MARKDOWN_NAME, text)


def embedded_pictures(report: Report, folder: Path) -> dict[int, str]:
    """The held-out images that the page shows, as `data:` addresses by place: those kept, as far as they fit.

    Args:
        report: what the page says.
        folder: of the run.
    """
    found: dict[int, str] = {}
    used_bytes = 0
    for place in _shown(report):
        path = folder / thumbnail(place)
        if place not in found and not path.is_file():
            continue
        address = found.get(place) or data_address(path.read_bytes())
        used_bytes += len(address)  # each time it is shown
        if used_bytes > PICTURES_LIMIT_BYTES:
            break
        found[place] = address
    return found


def embedded_maps(report: Report, folder: Path) -> dict[str, str]:
    """The pictures of maps that the page shows, as `data:` addresses by path: those that are there."""
    paths = [path for found in report.analyses for path in getattr(found, "pictures", ())]
    return {path: data_address((folder / path).read_bytes()) for path in paths if (folder / path).is_file()}


def _shown(report: Report) -> list[int]:
    """Places of all held-out images on the page, in its order."""
    return [
        place
        for examination in report.of(Examination)
        for place in (
            *(place for confusion in examination.confusions for place in confusion.places),
            *(sample.place for sample in examination.samples),
        )
    ]


def data_address(jpeg: bytes) -> str:
    """A JPEG file as the address of a picture within a page."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def html(
    report: Report,
    pictures: Mapping[int, str] | None = None,
    maps: Mapping[str, str] | None = None,
    augmented: str = "",
) -> str:
    """Return the report as one HTML page that needs no network and no JavaScript.

    Args:
        report: what it says.
        pictures: of held-out images, as `embedded_pictures` gives them; None: the page has none.
        maps: of maps, as `embedded_maps` gives them, likewise.
        augmented: address of a picture of training images as training sees them; "" for none.
    """
    from jinja2 import Environment as Jinja
    from jinja2 import FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from edgeprune.report import plots

    environment = Jinja(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawings = {
        "size_pictures": plots.size_against_accuracy(report),
        "training_pictures": plots.training_curves(report),
        "robustness_pictures": plots.robustness_curves(report),
    }
    return _render(
        environment,
        "report.html.jinja",
        report,
        **{
            name: {title: Markup(svg) for title, svg in drawn.items()}  # our own SVG, text escaped
            for name, drawn in drawings.items()
        },
        pictures=pictures or {},
        map_pictures=maps or {},
        augmented=augmented,
        images_missing=not set(_shown(report)) <= set(pictures or {}),
        thumbnail=thumbnail,
        glyphs=plots.GLYPHS,
        series=plots.SERIES,
    )


def markdown(report: Report) -> str:
    """Return the report as Markdown for a pull request."""
    return _render(_markdown_environment(), "report.md.jinja", report)


def card(report: Report, *, license_unknown: bool) -> str:
    """Return what a model card says below its front matter, as Markdown."""
    data = report.environment.get("data")
    return _render(
        _markdown_environment(),
        "card.md.jinja",
        report,
        in_app=[format.in_app for format in summary.formats(report)],
        data={"source": None, "image_size_px": None} | (data if isinstance(data, dict) else {}),
        license_unknown=license_unknown,
    )


def _markdown_environment() -> Environment:
    """Where every value is escaped for Markdown."""
    from jinja2 import Environment as Jinja
    from jinja2 import FileSystemLoader, StrictUndefined

    environment = Jinja(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=False,  # `finalize` escapes every value for Markdown instead
        finalize=markdown_text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["fenced"] = _fenced
    environment.filters["as_markdown"] = _as_markdown
    return environment


def print_table(report: Report, console: Console) -> None:
    """Print every file, the verdict on the budget and what to do next."""
    from rich.table import Table
    from rich.text import Text

    verdict, score = summary.verdict(report), summary.metric(report).heading
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("target\n  variant", overflow="fold")
    for heading in (
        "bytes",
        "down-\nload",
        "times\nsmaller",
        f"{score} %".replace(" ", "\n", 1),
        "points\nlost",
        "zeros\n%",
        "bits per\nweight",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("sparse\nkernels", no_wrap=True)
    for group in summary.groups(report, verdict):
        if not group.files:  # A target of the budget: the verdict below says that it has none.
            continue
        table.add_row(Text(group.target, style="bold"))
        for file in group.files:
            row = file.row
            cells = (
                f"  {row.variant}",
                formatting.bytes_exact(row.bytes),
                summary.download(row, exact=False),
                "–" if file.times_smaller is None else formatting.times(file.times_smaller),
                formatting.percent(row.score).removesuffix(" %"),
                formatting.points(row.drop_points),
                formatting.zeros(row.zero_fraction).removesuffix(" %"),
                formatting.bits(row.bits_per_weight),
                summary.sparse_word(row),
            )
            # Text, not str: a name with [brackets] is a name, not a style.
            table.add_row(*(Text(cell) for cell in cells), style="bold green" if file.ship else None)
    console.print(table)
    console.print()
    style = "bold green" if verdict.ok and verdict.budget else "bold" if verdict.ok else "bold red"
    headline, *lines = verdict.message().splitlines()
    console.print(Text(headline, style=style))
    for line in lines:
        console.print(Text(line), soft_wrap=True)
    console.print(Text(f"Next: {verdict.next_step()}"), soft_wrap=True)


def markdown_text(value: object) -> str:
    """Escape a value so that Markdown shows it as it is, on one line.

    >>> markdown_text("block_80 | <b>")
    'block\\\\_80 \\\\| &lt;b&gt;'
    """
    if hasattr(value, "__html__"):  # made by `_fenced`, already Markdown
        return str(value)
    text = " ".join(str(value).split("\n")).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", text)


def _as_markdown(text: str) -> str:
    """Text of ours that is Markdown already."""
    from markupsafe import Markup

    return Markup(text)


def _fenced(lines: list[str]) -> str:
    """Return a block of code that nothing in `lines` can end."""
    from markupsafe import Markup

    text = "\n".join(lines)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return Markup(f"{fence}sh\n{text}\n{fence}")  # nothing inside ends the fence


def _render(environment: Environment, template: str, report: Report, **more: Any) -> str:
    verdict = summary.verdict(report)
    groups, names = summary.groups(report, verdict), summary.variants(report)
    metric = summary.metric(report)
    environment.filters.update({number.__name__: number for number in _NUMBERS})
    environment.filters["sparse_word"] = summary.sparse_word
    environment.filters["download"] = summary.download
    environment.filters["lost"] = summary.lost
    return environment.get_template(template).render(
        report=report,
        title=title(report),
        heading=metric.heading,
        accuracy=metric.word,
        details=summary.details(report),
        sections=[task.section for task in TASKS.values() if _has_section(report, task.section)],
        examinations=report.of(Examination),
        verdict=verdict,
        groups=groups,
        variants=names,
        not_sparse=summary.sparse_reasons(report.rows, False),
        unknown_sparse=summary.sparse_reasons(report.rows, None),
        commands=_commands(report),
        bench_commands=[group.recommended.command for group in groups if group.recommended.command],
        not_timed=summary.not_timed(groups),
        not_examined=summary.not_examined(report),
        most_sensitive=summary.most_sensitive(report),
        recommended_points=RECOMMENDED_DROP_POINTS,
        trials=summary.trials(report),
        worst={name: summary.worst_trial(report, name) for name in names},
        classes_lost={name: summary.classes_lost(report, name) for name in names},
        strongest=_strongest(report),
        units={trial.corruption: trial.unit for trial in summary.trials(report)[1:]},
        shipped={target.ship.variant for target in verdict.targets if target.ship},
        run_folder=summary.run_folder(report),
        environment=summary.flat(
            {key: value for key, value in report.environment.items() if key != "command"}
        ),
        recipe=summary.flat(report.recipe),
        images=sorted({row.images for row in report.rows}),
        not_measured_by_format=summary.not_measured(report.rows),
        gains=summary.gains(report.rows),
        **more,
    )


def _has_section(report: Report, section: Section) -> bool:
    return bool(section.template and report.of(section.record))


def _strongest(report: Report) -> list[summary.Trial]:
    """The images as they are, and each corruption at its strongest: the last it has."""
    return list({trial.corruption: trial for trial in summary.trials(report)}.values())


def title(report: Report) -> str:
    """The model's name as the recipe has it."""
    names = (report.recipe.get(key) for key in ("model", "name"))
    return next((name for name in names if isinstance(name, str) and name), "A pruned model")


def _commands(report: Report) -> list[str]:
    """The environment's "command", one line or a list of them, and how to make and check the report again."""
    command = report.environment.get("command")
    if not command:
        return []
    folder = shlex.quote(summary.run_folder(report))
    lines = [str(line) for line in command] if isinstance(command, (list, tuple)) else [str(command)]
    return [*lines, f"edgeprune report {folder}", f"edgeprune check {folder}"]
