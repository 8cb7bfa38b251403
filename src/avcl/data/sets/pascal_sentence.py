"""Pascal Sentence (Rashtchian et al. 2010): 1,000 pictures of 20 classes with five sentences each.

Files read: ``sentence/<class>/<picture>.txt`` (or ``sentences``), one sentence a line, as the official page has them
for each ``<class>/<picture>.jpg``; they are the list. Media are the pictures in folders of their class. The five
sentences are one text. There is no official split: the 800/100/100 of the papers was drawn by their authors
(``pascal_sentence_features`` are the features of one such draw).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from avcl.data.official import Entry, Part
from avcl.data.official_lists import text_file
from avcl.data.official_media import MediaSet
from avcl.errors import DataError, LabelError, did_you_mean

LABELS = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


def read(folder: Path) -> Iterator[Entry]:
    """A row for each text. LabelError: a folder that is no class. DataError: a text without words."""
    for name in ("sentence", "sentences"):
        for path in sorted({*folder.glob(f"{name}/*/*.txt"), *folder.glob(f"*/{name}/*/*.txt")}):
            label = path.parent.name
            if label not in LABELS:
                raise LabelError(f'"{label}" is not a class.', file=path, hint=did_you_mean(label, LABELS))
            text = text_file(path)
            if not text:
                raise DataError("has no sentence.", file=path)
            key = f"{label}/{path.stem}"
            yield Entry(id=key, part="all", label=label, text=text, media=(Part("image", (key,)),))


SET = MediaSet(
    name="pascal_sentence",
    title="UIUC Pascal Sentence Dataset",
    about="1,000 pictures of 20 classes with five sentences each",
    license="none stated; the pictures are their owners'",
    source="http://vision.cs.uiuc.edu/pascal-sentences/",
    citation=(
        "C. Rashtchian, P. Young, M. Hodosh, J. Hockenmaier. Collecting image annotations using Amazon's Mechanical "
        "Turk. NAACL HLT workshop 2010."
    ),
    counts={"all": 1000},
    lists=("sentence/<class>/<picture>.txt",),
    labels=LABELS,
    read=read,
)
