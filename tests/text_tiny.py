"""What tests of text, tokenizer and packing share: a little Japanese, a tokenizer of it, and a stage's workspace."""

import gzip
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.device import Machine
from common.store import Workspace
from distill.train_tokenizer import TokenizerConfig, train_tokenizer

TEXTS = [
    "春になると、町の川のそばで桜が咲きます。子どもたちは橋の上から花を見ます。",
    "ラーメンは一杯八百円です。ギョーザを足すと、あわせて千二百円になります。",
    "山の村の人は米を作り、秋に祭りを開く。祭りの日には、太鼓の音が谷にひびく。",
    "質問：川はどこにありますか。\n答え：町の東にあります。\n\n質問：秋に何を開きますか。\n答え：祭り\n",
    "The river runs through the town, and the train (number 1,205) stops there at 7:45.",
    "12たす30は42です。42ひく7は35です。だから、答えは35です。",
    "夏は暑い。冬は寒い。春と秋はすごしやすい。\nそれで、旅をする人は春と秋に多い。\n",
    "カレーライスとサラダをください。「はい、どうぞ。」と店の人が言いました。",
]
MACHINE = Machine(device="cpu", compute_dtype="float32", cpu="test", gpu=None, memory_bytes=2**30, os="test", threads=1)
VOCABULARY = 480


def workspace(folder: Path) -> Workspace:
    """A stage's workspace as the store prepares it."""
    (folder / "scratch").mkdir(parents=True, exist_ok=True)
    return Workspace(folder=folder, machine=MACHINE)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """JSON lines, compressed where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def read_gzip(path: Path) -> list[dict[str, Any]]:
    """Every row of a compressed file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def tiny_tokenizer(folder: Path) -> Path:
    """A tokenizer folder of `VOCABULARY` ids, trained here and now."""
    text = write_rows(folder.parent / "tiny_text.jsonl", ({"text": text} for text in TEXTS * 3))
    facts = train_tokenizer(TokenizerConfig(vocabulary=VOCABULARY), workspace(folder), text)
    assert facts["vocabulary"] == VOCABULARY
    return folder


NASTY = (
    b"\x00",
    b"\xff\xfe",
    b"\\ud800",
    b"\xed\xa0\x80",
    b'"',
    b"\\",
    b"{",
    b"]",
    b"\r",
    b"\n",
    b"\xe3\x81",
    b"1e999",
)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to four cuts, flips, insertions, repetitions or losses."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(changed) + 1)
        length = rng.choice((1, 3, 40, len(changed) // 3))
        match rng.randrange(6):
            case 0:
                del changed[place:]
            case 1:
                changed[place : place + length] = rng.randbytes(min(length, 200))
            case 2:
                changed[place:place] = rng.choice(NASTY)
            case 3:
                del changed[place : place + length]
            case 4:
                changed[place:place] = changed[place : place + length]
            case _:
                changed[place : place + 1] = rng.choice(NASTY)
        if not changed:
            break
    return bytes(changed)
