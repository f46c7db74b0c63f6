"""What a store sends of a file, against what zip writes and what Android's bundletool counts."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from converters.facts import download_bytes, size_bytes
from tests.support.runs import write_network

# What bundletool's size calculator does with an entry of an APK, in JDK calls: a raw deflater at the
# default level is fed buffers of 8,192 bytes and flushed at the end, and 5 bytes are taken off for that
# flush. (The tool itself is on Google's servers only.)
BUNDLETOOL = """
import java.nio.file.*; import java.util.zip.Deflater;
public class Size { public static void main(String[] names) throws Exception {
  for (String name : names) {
    Deflater deflater = new Deflater(Deflater.DEFAULT_COMPRESSION, true);
    byte[] in = new byte[8192], out = new byte[16384];
    long total = -5; int read;
    try (var stream = Files.newInputStream(Path.of(name))) {
      while ((read = stream.read(in)) != -1) {
        deflater.setInput(in, 0, read);
        while (!deflater.needsInput()) total += deflater.deflate(out, 0, out.length, Deflater.NO_FLUSH);
      }
    }
    System.out.println(total + deflater.deflate(out, 0, out.length, Deflater.SYNC_FLUSH));
} } }
"""


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A dense network, one with 80 % zeros, and noise that no compression makes smaller."""
    noise = tmp_path / "noise.bin"
    noise.write_bytes(np.random.default_rng(0).bytes(300_000))
    return [
        write_network(tmp_path / "dense.tflite", width=256),
        write_network(tmp_path / "zeros.tflite", width=256, zeros=(0.8, 0.8)),
        noise,
    ]


def test_the_download_is_what_zip_writes(files: list[Path], tmp_path: Path) -> None:
    for file in files:
        with zipfile.ZipFile(tmp_path / "app.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(file, file.name)
        (entry,) = zipfile.ZipFile(tmp_path / "app.zip").infolist()
        assert download_bytes(file) == pytest.approx(entry.compress_size, rel=1e-3)
    assert download_bytes(files[-1]) == files[-1].stat().st_size, "what does not shrink is stored as it is"


def test_of_a_package_every_file_counts(files: list[Path], tmp_path: Path) -> None:
    package = tmp_path / "a.mlpackage"
    (package / "Data").mkdir(parents=True)
    (package / "Manifest.json").write_text("{}")
    shutil.copy(files[0], package / "Data" / "weight.bin")
    assert download_bytes(package) == download_bytes(files[0]) + 2
    assert size_bytes(package) == files[0].stat().st_size + 2


@pytest.mark.skipif(shutil.which("java") is None, reason="java is not installed")
def test_the_download_is_what_bundletool_counts(files: list[Path], tmp_path: Path) -> None:
    source = tmp_path / "Size.java"
    source.write_text(BUNDLETOOL)
    command = ["java", "-XX:TieredStopAtLevel=1", str(source), *map(str, files)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert [download_bytes(file) for file in files] == pytest.approx([int(size) for size in told], rel=0.01)
