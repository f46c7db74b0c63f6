"""Write BCCD's COCO annotations as Pascal VOC's XML and read both: the same tensors, to the last bit.

python benchmarks/bccd_formats.py --data BCCD --work WORK
"""

import argparse
import json
from pathlib import Path
from xml.sax.saxutils import escape

from rich.console import Console

from edgeprune.data import coco, voc
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.progress import Progress

PREPARE = Preprocessing(320, whole_image=True)


def write_voc(source: Path, folder: Path) -> None:
    """The images as links, an XML file for each, the lists, and the classes in COCO's order."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for split in ("train", "val"):
        content = json.loads((source / "annotations" / f"instances_{split}.json").read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        (folder / "classes.txt").write_text("\n".join(names.values()))
        stems = []
        for image in content["images"]:
            stems.append(Path(image["file_name"]).stem)
            objects = "".join(
                f"<object><name>{escape(names[one['category_id']])}</name>"
                f"<bndbox>{bounds(one['bbox'])}</bndbox></object>"
                for one in content["annotations"]
                if one["image_id"] == image["id"]
            )
            size = f"<size><width>{image['width']}</width><height>{image['height']}</height></size>"
            xml = f"<annotation>{size}{objects}</annotation>"
            (folder / "Annotations" / f"{stems[-1]}.xml").write_text(xml)
            (folder / "JPEGImages" / image["file_name"]).symlink_to(source / split / image["file_name"])
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems))


def bounds(bbox: list[float]) -> str:
    left, top, width, height = bbox
    sides = {"xmin": left, "ymin": top, "xmax": left + width, "ymax": top + height}
    return "".join(f"<{name}>{value!r}</{name}>" for name, value in sides.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="a folder that is not there yet")
    options = parser.parse_args()
    write_voc(options.data.resolve(), options.work)
    progress = Progress(Console(quiet=True))
    one, two = coco.load(options.data, PREPARE, progress), voc.load(options.work, PREPARE, progress)
    boxes = sum(map(len, (*one.train.labels, *one.held_out.labels)))
    if (one.sha256, one.classes) != (two.sha256, two.classes):
        raise SystemExit("the two differ")
    print(f"{len(one.train)} + {len(one.held_out)} images, {boxes:,} boxes: the same, sha256 {one.sha256}")


if __name__ == "__main__":
    main()
