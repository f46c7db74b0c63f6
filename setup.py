"""What pyproject.toml cannot say: a wheel carries the scripts of `recipes/` as data of the package."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

RECIPES = "recipes"


class BuildWithRecipes(build_py):
    """Copies `recipes/*.py` into `edgeprune/recipes/`, but where the checkout itself is installed."""

    def run(self) -> None:
        """Build as always, then copy."""
        super().run()
        if not self.editable_mode:
            for source, built in self._recipes():
                self.mkpath(str(built.parent))
                self.copy_file(str(source), str(built), preserve_mode=False)

    def get_source_files(self) -> list[str]:
        """What an sdist must have to build this."""
        return [*super().get_source_files(), *(str(source) for source, _ in self._recipes())]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """What was built, the scripts among it."""
        return [*super().get_outputs(include_bytecode), *(str(built) for _, built in self._recipes())]

    def _recipes(self) -> list[tuple[Path, Path]]:
        folder = Path(self.build_lib) / "edgeprune" / RECIPES
        return [(script, folder / script.name) for script in sorted(Path(RECIPES).glob("*.py"))]


setup(cmdclass={"build_py": BuildWithRecipes})
