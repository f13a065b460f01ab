"""Every command of docs/your-own-model.md, run in order on a few documents of real Japanese that stand here.

The commands run in a folder that looks like the checkout (its files are links) and holds `my/`. `python -m` runs in
this process, which has torch loaded already; everything else runs in bash. Blocks marked `not run` are left out.
"""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.rows import read_rows
from common.store import read_manifest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "your-own-model.md"
NOT_LINKED = {".git", "build", "dist", "my", ".venv"}
PYTHON = ".venv/bin/python -m "

TEXTS = (
    "桜は春に咲く木である。三月の終わりから四月にかけて、南から北へと花が開いていく。花が散ると、青い葉が出てくる。",
    "梅雨は六月から七月にかけて続く雨の季節だ。田に水が入り、稲が育つ。あじさいの花もこのころに咲く。",
    "富士山の高さは三千七百七十六メートルで、日本でいちばん高い山である。夏には多くの人が登る。",
    "東京から大阪までは、新幹線で二時間半ほどかかる。窓から富士山が見えることもある。",
    "みそ汁は、だしにみそを溶いて作る。豆腐、わかめ、ねぎなどを入れることが多い。",
    "朝ごはんには、ごはんとみそ汁、それに焼き魚を食べる家がある。パンと卵の家もある。",
    "図書館では、本を二週間借りることができます。返す日を過ぎたら、早めに窓口へ来てください。",
    "駅前の店では、りんごを一個百二十円で売っている。三個買うと、三百六十円になる。",
    "昔、ある村に、働き者のおじいさんとおばあさんが住んでいました。二人は毎朝、山へ柴を刈りに行きました。",
    "「今日は寒いですね。」「ええ、夜には雪になるそうですよ。」二人はそう話しながら、バスを待っていた。",
    "電話が鳴ったので、母は台所から走ってきた。受話器を取ると、祖母の明るい声が聞こえた。",
    "犬は人の言葉をよく聞いている。名前を呼ばれると、しっぽを振って走ってくる。",
    "日本の学校は四月に始まり、三月に終わる。夏休みは七月の終わりから八月の終わりまでである。",
    "一時間は六十分、一分は六十秒である。だから、一時間は三千六百秒になる。",
    "海の水が塩からいのは、川が岩から溶かした塩分を長い年月をかけて運んできたからだ。",
    "月は地球のまわりを約二十七日かけて一周する。満ち欠けは、太陽の光の当たり方で決まる。",
    "本を読むときは、明るい部屋で、目から三十センチほど離して読むとよい。",
    "秋になると、山の木々が赤や黄色に色づく。人々は弁当を持って、紅葉を見に出かける。",
    "雪の多い町では、冬のあいだ、屋根の雪を何度も下ろさなければならない。",
    "温泉に入る前には、体を洗うのが決まりである。手ぬぐいを湯に入れてはいけない。",
    "自転車で学校へ行く生徒は、ヘルメットをかぶり、道の左側を走ること。",
    "祭りの日、子どもたちは太鼓をたたきながら町を歩いた。夜には花火が上がった。",
    "お茶は、湯を少し冷ましてから入れると、甘みが出ておいしい。",
    "Kyoto was the capital of Japan for more than a thousand years. 京都は千年以上のあいだ、日本の都であった。",
)
TALKS = (
    ("桜はいつ咲きますか。", "春に咲きます。"),
    ("日本でいちばん高い山は何ですか。", "富士山です。"),
    ("りんごは一個百二十円です。三個でいくらですか。", "三百六十円です。"),
    ("みそ汁には何を入れますか。", "豆腐やわかめ、ねぎなどを入れます。"),
    ("こんにちは。", "こんにちは。今日はどうしましたか。"),
    ("学校は何月に始まりますか。", "四月に始まります。"),
    ("一時間は何分ですか。", "六十分です。"),
    ("東京から大阪まで、どのくらいかかりますか。", "新幹線で二時間半ほどかかります。"),
    ("海の水はなぜ塩からいのですか。", "川が岩の塩分を運んできたからです。"),
    ("本は何日借りられますか。", "二週間借りられます。"),
    ("ありがとうございます。", "どういたしまして。"),
    ("秋の山は何色になりますか。", "赤や黄色になります。"),
)
CONTEXT = "駅前の店では、りんごを一個百二十円で売っている。パンは一個二百円である。"
QUESTIONS = (
    ("multiple_choice", None, None, "桜が咲く季節はどれですか。", ["春", "夏", "秋", "冬", "梅雨"], ["春"]),
    ("multiple_choice", None, None, "雪の多い季節はどれですか。", ["春", "夏", "秋", "冬", "梅雨"], ["冬"]),
    ("short_answer", "phrasing", None, "日本で最も高い山の名前は何ですか。", None, ["富士山"]),
    ("short_answer", "entity", None, "京都は何年以上、日本の都でしたか。", None, ["千年"]),
    ("reading", None, CONTEXT, "りんごは一個いくらですか。", None, ["百二十円"]),
    ("reading", None, CONTEXT, "パンは一個いくらですか。", None, ["二百円"]),
    ("arithmetic", None, None, "りんごが3個あります。1個120円です。全部で何円ですか。", None, ["360"]),
    ("arithmetic", None, None, "1時間は60分です。2時間は何分ですか。", None, ["120"]),
    ("translation", "ja-en", None, "犬が走る。", None, ["The dog runs."]),
    ("translation", "en-ja", None, "The dog runs.", None, ["犬が走る。"]),
)


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """(what stands after the fence, content) of every fenced block."""
    for found in re.finditer(r"^```([^\n]*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        yield found[1], found[2]


def commands(block: str) -> Iterator[str]:
    """The commands of a block, each with its continued lines or its here-document."""
    lines = iter(block.splitlines())
    for line in lines:
        command = [line]
        while command[-1].endswith("\\"):
            command.append(next(lines))
        here = re.search(r"<<'(\w+)'$", line)
        while here and command[-1] != here[1]:
            command.append(next(lines))
        yield "\n".join(command)


def run(command: str, folder: Path) -> None:
    """`python -m` with plain arguments by calling its `main`, anything else by bash; both in `folder`."""
    plain = command.replace("\\\n", " ")
    if plain.startswith(PYTHON) and not re.search(r"[|<>&;$*]", plain):
        module, *arguments = shlex.split(plain.removeprefix(PYTHON))
        entry = importlib.import_module(module if "." in module else f"{module}.__main__")
        assert not entry.main(arguments), command
        return
    # `make` without its set-up: this suite runs in the environment already.
    script = f'make() {{ command make -o .venv "$@"; }}\nset -euo pipefail\n{command}\n'
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def rows_of(path: Path, rows: list[dict[str, object]]) -> None:
    """Writes JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the checkout, with a user's files in `my/`."""
    for item in ROOT.iterdir():
        if item.name not in NOT_LINKED:
            (tmp_path / item.name).symlink_to(item)
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    my = tmp_path / "my"
    my.mkdir()
    rows_of(my / "texts.jsonl", [{"text": text} for text in TEXTS])
    turns = [[("user", question), ("assistant", answer)] for question, answer in TALKS]
    turns += [[*turns[0], *turns[1]], [("system", "短く答えてください。"), *turns[6]]]
    rows_of(
        my / "talks.jsonl",
        [{"messages": [{"role": role, "content": content} for role, content in talk]} for talk in turns],
    )
    rows_of(
        my / "questions.jsonl",
        [
            {
                "id": f"{shape}-{place}",
                "shape": shape,
                "group": None if shape == "translation" else group,
                "direction": group if shape == "translation" else None,
                "context": context,
                "question": question,
                "choices": choices,
                "answers": answers,
            }
            for place, (shape, group, context, question, choices, answers) in enumerate(QUESTIONS)
        ],
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    return tmp_path


@pytest.mark.slow
def test_your_own_model_does_what_it_says(checkout: Path) -> None:
    for kind, block in blocks(PAGE.read_text(encoding="utf-8")):
        if kind == "bash":
            for command in commands(block):
                run(command, checkout)
    my = checkout / "my"
    card = json.loads((my / "corpus" / "data_card.json").read_text())
    assert card["rows_out"] == len(TEXTS) - 1
    assert card["removed"]["little Japanese"] == 1, "the text that is half English"
    assert read_manifest(my / "base")["facts"]["method"] == "taid"
    assert read_manifest(my / "chat")["facts"]["steps"] == 20
    assert {path.name for path in (my / "gguf").glob("*.gguf")} == {"chat-Q8_0.gguf", "chat-Q4_K_M.gguf"}
    assert (my / "fidelity.json").is_file() and (my / "phones.json").is_file() and (my / "tasks.json").is_file()
    dist = checkout / "dist" / "my-model"
    report = json.loads((dist / "report.json").read_text())
    assert report["recipe"] == "my-model" and (dist / "My-Model-Q4_K_M.gguf").is_file()
    assert all(row["value"] is None and row["reason"] for row in report["tasks"])
    stated = {source["licence"] for part in ("corpus", "conversations") for source in report["data"][part]["sources"]}
    assert stated == {"my own"} and "embedded" not in (dist / "LICENSES.md").read_text(encoding="utf-8")


def test_every_block_of_commands_is_run_or_marked() -> None:
    kinds = {kind for kind, _ in blocks(PAGE.read_text(encoding="utf-8"))}
    assert kinds <= {"bash", "bash not run", "json"}


def test_the_json_of_the_page_is_what_the_readers_take(tmp_path: Path) -> None:
    examples = [block for kind, block in blocks(PAGE.read_text(encoding="utf-8")) if kind == "json"]
    texts, talks = tmp_path / "texts.jsonl", tmp_path / "talks.jsonl"
    texts.write_text(examples[0], encoding="utf-8")
    talks.write_text(examples[1], encoding="utf-8")
    assert len(list(read_rows(texts, fields=("text",)))) == 1
    assert len(list(read_rows(talks, fields=("messages",)))) == 1


def test_commands_are_split_as_bash_would() -> None:
    block = "one \\\n  two\ncat > file <<'END'\na\nb \\\nEND\nthree | four\n"
    assert list(commands(block)) == ["one \\\n  two", "cat > file <<'END'\na\nb \\\nEND", "three | four"]
