"""What tests of the documents share: the commands of a page and how they are run, a few texts and conversations.

`python -m` runs in this process, which has torch loaded already; everything else runs in bash.
"""

import importlib
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
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
