"""The one build step that setup.cfg cannot express: what the top-level folders ship goes into the wheel.

In a checkout ``topologies/`` and ``scenarios/`` lie beside the package, for people to read and copy. A wheel has no
such place, so there they are package data, where emulator.cluster.shipped looks for them.
"""

from pathlib import Path
from shutil import copyfile

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("topologies", "scenarios")


class BuildWithShippedFiles(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for source in self.shipped():
            target = Path(self.build_lib, "emulator", source)
            target.parent.mkdir(parents=True, exist_ok=True)
            copyfile(source, target)

    def shipped(self) -> list[Path]:
        return [path for folder in SHIPPED for path in sorted(Path(folder).rglob("*")) if path.is_file()]


setup(cmdclass={"build_py": BuildWithShippedFiles})
