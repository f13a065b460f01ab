"""Quality rules: every kind of junk goes, everything worth reading stays, each measure agrees with a slow count."""

import base64
import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from errors_tiny import refuses
from hypothesis import given
from hypothesis import strategies as st

from distill.text.normalise import normalise
from distill.text.quality import QualityConfig, fault
from recipes.toy_world.facts import make_world
from recipes.toy_world.generate import WorldConfig, documents

DEFAULTS = QualityConfig()
_NOTHING: dict[str, Any] = {one.name: () if one.name.endswith("grams") else None for one in fields(QualityConfig)}
OFF = QualityConfig(**_NOTHING)

# ---------------------------------------------------------------- what must stay

PROSE = (
    "山あいの町に古い図書館がある。",
    "開館は大正の終わりで、設計者の名は伝わっていない。",
    "閲覧室の床は長年の靴音でわずかにくぼみ、窓からは川が見える。",
    "司書の女性によれば、冬になると利用者は半分に減るという。",
    "それでも毎朝八時には決まって一人の老人が戸口に立っている。",
    "彼は新聞を端から端まで読み、昼前に静かに帰っていく。",
    "町の人々はこの建物を「川の家」と呼んで親しんできた。",
    "昨年、屋根の修理に必要な費用を集めるために小さな催しが開かれた。",
    "集まった金額は予定を上回り、残りは子どもの本を買うのに使われた。",
    "春には桜の枝が二階の窓に届き、花びらが机の上に落ちることもある。",
    "雨の多い年には川の水が庭先まで来るが、書庫が濡れたことは一度もない。",
    "来年の秋には百周年を迎え、記念の冊子が作られる予定である。",
    "冊子には、昔の利用者から寄せられた手紙も載せられるらしい。",
    "隣の町から移築された門だけは、もう少し古い時代のものだと言われる。",
    "研究者がその木材の年輪を調べたところ、江戸時代の中ごろの松だとわかった。",
    "図書館の裏手には小さな畑があり、季節の野菜が育てられている。",
)


def prose(rng: random.Random, sentences: int = 6) -> str:
    """Different sentences of sound prose in a random order."""
    return "".join(rng.sample(PROSE, min(sentences, len(PROSE))))


SOUND = {
    "one sentence": "吾輩は北の町で生まれた猫で、名前はまだ決まっていない。",
    "prose": "".join(PROSE),
    "dialogue": "「どこへ行くの……」\n「海まで。」\n「寒いのに……」\n彼は笑って、それ以上は何も言わなかった……。\n"
    "「じゃあ、私も行く……」\n二人は黙ったまま坂を下りた。",
    "verse": "春の日のまだ浅ければ川べりの柳の芽さへ指に冷たし\n遠山のいただき白く残りたる雪を見てゐる子らの声する\n"
    "ひとり来て石に腰かけ聞きゐたり水の底ゆく水の音かな\n夕ぐれの橋のたもとに立つ人の影ながながと伸びて消えゆく",
    "old law": "第一条　本法ニ於テ図書館ト称スルハ公衆ノ閲覧ニ供スル為図書ヲ蒐集シ保存スル施設ヲ謂フ\n"
    "第二条　図書館ヲ設置セムトスル者ハ命令ノ定ムル所ニ依リ地方長官ノ認可ヲ受クヘシ\n"
    "第三条　図書館ニハ館長及司書ヲ置クヘシ館長ハ館務ヲ掌理シ所属職員ヲ監督ス。",
    "old spelling": "予は昨夜、友人を訪ふて歸る途中、圖書館の前にて不思議なる老人に逢へり。老人は予を見て微笑し、"
    "「汝の求むる書は已に失はれたり」と云ひて、闇の中に消え去りぬ。予は暫く茫然として立ち盡せり。",
    "manual with code": "リストの各要素に関数を適用するには、組み込み関数 map() を使います。次の例を見てください。\n\n"
    "    >>> numbers = [1, 2, 3]\n    >>> list(map(lambda x: x * 2, numbers))\n    [2, 4, 6]\n\n"
    "返り値はイテレータなので、一度しか読み出せません。何度も使う場合は list() で包んでください。",
    "manual of colons": "json は文字列とオブジェクトを相互に変換するモジュールです:\n"
    "json.dumps() はオブジェクトを文字列に変換するための関数です\n"
    "json.loads() は文字列を読み込んでオブジェクトに戻すための関数です",
    "encyclopaedia": "緑川城\n緑川城（みどりかわじょう）は、出羽国北部（現在の秋田県）にあった日本の城。\n"
    "概要\n永禄3年（1560年）に築かれ、慶長5年（1600年）に廃城となった。現在は土塁と空堀の一部が残る。\n"
    "歴代城主\n緑川義之 - 初代。永禄3年から天正2年まで。\n緑川義継 - 二代。天正2年から慶長5年まで。",
    "translation": "日本語：駅に犬がいます。\n英語：There is a dog at the station.\n日本語：少女は本を読みます。\n"
    "英語：The girl reads the book.\n日本語：医者は朝に山を見ます。\n英語：The doctor sees the mountain.",
    "records": "松風町の記録\n松風町の花：梅\n松風町の川：玉川\n松風町の名物：米\n田中花子の記録\n"
    "田中花子の職業：教師\n田中花子の好物：蕎麦\n田中花子の住む町：松風町\n田中花子の趣味：読書",
    "arithmetic": "箱の中に皿が9枚、机の上に8枚ある。9+8=17だから、全部で17枚。3枚割れると17-3=14で、14枚残る。"
    "14枚を2人で分けると14÷2=7、1人7枚になる。",
    "questions": "Q. 休みの日はいつですか？\nA. 月曜日です。祝日と重なるときは火曜日に休みます。\n"
    "Q. 本は何冊まで借りられますか？\nA. 一人十冊まで、二週間借りられます。",
    "recipe": "材料は二人分です。\n・豆腐　1丁\n・ねぎ　1本\n・しょうゆ　大さじ2\n"
    "まず豆腐を水切りし、一口大に切ります。次にねぎを細かく刻みます。最後にしょうゆをかけて出来上がりです。",
    "news": "県は12日、来年度の予算案を発表した。総額は1兆2,345億円で、前年度を3.4％上回る。教育費は987億円、"
    "防災の費用は456億円をそれぞれ計上した。知事は会見で「将来への投資だ」と述べた。",
    "about cookies": "HTTPクッキーは、サーバーがブラウザに保存させる短い文字列である。ブラウザは同じサーバーに要求を"
    "送るたびにその文字列を添える。ログインした状態を保つのに使われるが、利用者を追跡する目的にも使われうる。",
    "about gambling": "カジノは賭博を行う施設で、十七世紀のベネチアに始まるとされる。日本では長く禁じられていたが、"
    "二〇一八年に法律が成立し、認定を受けた区域に限って設けられることになった。依存症への対策が課題である。",
}


@pytest.mark.parametrize("kind", SOUND)
def test_sound_text_stays(kind: str) -> None:
    assert fault(normalise(SOUND[kind]), DEFAULTS) is None


def test_the_embedded_world_stays() -> None:
    config = WorldConfig(seed=7, text_characters=500_000)
    texts = [draft.text for draft in documents(config, make_world(config.facts_seed))]
    removed = Counter(filter(None, (fault(text, DEFAULTS) for text in texts)))
    assert len(texts) > 1_000 and removed.total() <= len(texts) / 1_000, removed


@pytest.mark.shared_data
def test_real_documents_stay(shared_data: Path) -> None:
    removed: Counter[str] = Counter()
    for file in sorted((shared_data / "text_ja").glob("*.jsonl.gz")):
        for line in gzip.decompress(file.read_bytes()).decode().splitlines():
            removed[fault(normalise(json.loads(line)["text"]), DEFAULTS) or ""] += 1
    rows, kept = removed.total(), removed[""]
    assert rows == 4_661 and rows - kept <= rows / 200, removed


# ---------------------------------------------------------------- what must go

MENU = (
    *(
        "ホーム",
        "トップページ",
        "会社概要",
        "企業情報",
        "事業案内",
        "製品情報",
        "採用情報",
        "お知らせ",
        "ニュース",
        "IR情報",
        "サポート",
    ),
    *(
        "アクセス",
        "お問い合わせ",
        "サイトマップ",
        "プライバシーポリシー",
        "ご利用規約",
        "よくある質問",
        "English",
        "ログイン",
        "会員登録",
    ),
    *(
        "マイページ",
        "カート",
        "ご利用ガイド",
        "店舗案内",
        "ブログ",
        "資料請求",
        "初めての方へ",
        "料金プラン",
        "導入事例",
        "お客様の声",
    ),
)
FOOTER = (
    *(
        "サイトマップ",
        "プライバシーポリシー",
        "利用規約",
        "特定商取引法に基づく表記",
        "お問い合わせ",
        "運営会社",
        "免責事項",
        "採用情報",
    ),
    *("このページのトップへ戻る", "個人情報保護方針", "リンクについて", "広告掲載について"),
)
PLACES = (
    "東京",
    "大阪",
    "札幌",
    "福岡",
    "名古屋",
    "新宿",
    "渋谷",
    "横浜",
    "京都",
    "神戸",
    "仙台",
    "広島",
    "池袋",
    "梅田",
    "銀座",
)
GOODS = (
    *(
        "ノートパソコン",
        "冷蔵庫",
        "腕時計",
        "財布",
        "バッグ",
        "スニーカー",
        "掃除機",
        "炊飯器",
        "ワンピース",
        "枕",
        "イヤホン",
        "カメラ",
        "自転車",
    ),
    *("化粧水", "プリンター", "電気ケトル", "カーテン", "ソファー", "フライパン", "デスクライト"),
)
QUALITIES = (
    *(
        "人気",
        "ランキング",
        "激安",
        "格安",
        "口コミ",
        "評判",
        "比較",
        "おすすめ",
        "通販",
        "送料無料",
        "新品",
        "中古",
        "安い",
        "最安値",
        "クーポン",
    ),
    *("予約", "限定", "セール", "お得", "公式", "2024年", "最新", "即納", "正規品", "レビュー"),
)
TOPICS = (
    *(
        "新型ロボットの発表会",
        "高速道路の渋滞予測",
        "夏の電力需給",
        "地方選挙の開票結果",
        "大型連休の人出",
        "新薬の承認審査",
        "円相場の推移",
    ),
    *(
        "高校野球の決勝",
        "世界遺産の登録審査",
        "台風10号の進路",
        "宇宙船の打ち上げ",
        "米の収穫量",
        "学習指導要領の改訂",
        "新駅の開業日程",
    ),
)
ENGLISH = (
    "The library was opened a hundred years ago and nobody remembers the name of its architect.",
    "In winter only half as many readers come, but one old man stands at the door every morning.",
    "We use cookies to give you the best experience on our website, and you may opt out at any time.",
    "Sign up for our newsletter to receive the latest news, offers and product announcements.",
    "The committee published its report last week and recommended further investment in schools.",
)
CHINESE = (
    "图书馆位于山间的一座小城，建于一百年前，设计者的姓名已经无人知晓。",
    "每天早上八点，总有一位老人站在门口等待开门。",
    "去年，当地居民为了修缮屋顶举办了一次小型活动，筹集的资金超过了预期。",
    "本网站使用的所有图片均来自网络，如有侵权请联系管理员删除。",
    "這座建築物的木材經過研究人員調查，確認是江戶時代中期的松木。",
    "公司成立以來，一直堅持質量第一、客戶至上的經營理念，深受廣大用戶的好評。",
)
KOREAN = (
    "산속의 작은 마을에 오래된 도서관이 있다. ",
    "매일 아침 여덟 시가 되면 한 노인이 문 앞에 서 있다. ",
    "작년에는 지붕 수리 비용을 모으기 위해 작은 행사가 열렸다. ",
    "이 사이트의 모든 콘텐츠는 저작권법의 보호를 받습니다. ",
)
ADULT = (
    "完全無料で見られるアダルト動画を毎日更新中！",
    "素人娘の無修正エロ動画が見放題、今すぐ登録！",
    "近所の人妻と即会いできる出会い系サイトはこちら。",
    "セフレ募集の出会い掲示板で今夜会える女性が見つかる！",
    "巨乳AV女優のエロ画像をまとめました。",
    "デリヘルの風俗嬢ランキングを公開、熟女専門店も多数！",
)
GAMBLING = (
    "オンラインカジノの入金不要ボーナスを今すぐ受け取ろう！",
    "フリースピン100回のカジノボーナスがもらえるカジノサイトを紹介します。",
    "的中率98％の競馬予想で誰でも稼げる必勝法を公開中。",
    "パチンコ攻略とスロット攻略の情報はここだけ！",
    "ブックメーカーで簡単に稼ぐ方法を教えます。",
    "ジャックポットを狙うならこのネットカジノがおすすめです！",
)
LOANS = (
    "審査なし・即日融資で誰でも借りられるカードローンはこちら。",
    "ブラックOKの消費者金融なら、在籍確認なしで即日振込！",
    "クレジットカード現金化の優良店を徹底比較しました。",
    "過払い金の相談は無料、低金利のおまとめローンも紹介します。",
    "審査が甘いキャッシング会社ランキング、借り入れはスマホで完結！",
    "副業で月収100万円、簡単に稼げる情報商材を完全無料でプレゼント！",
)


def navigation(rng: random.Random) -> str:
    separator = rng.choice([" | ", "\n", " > ", "　", " / ", "\n・"])
    items = rng.sample(MENU, rng.randint(12, len(MENU)))
    return separator.join(items) + "\n" + separator.join(rng.sample(PLACES, 8))


def shop_page(rng: random.Random) -> str:
    lines = ["ログイン | 会員登録 | カートを見る (0) | お気に入り"]
    for _ in range(rng.randint(4, 12)):
        price = rng.randrange(10, 900) * 110
        lines += [
            f"{rng.choice(QUALITIES)} {rng.choice(GOODS)} {rng.choice(GOODS)}セット",
            f"{price:,}円（税込） 送料無料",
        ]
        lines += [
            rng.choice(["カートに入れる", "在庫あり", "売り切れ", "お気に入りに追加"]),
            f"レビューを見る({rng.randrange(200)})",
        ]
    return "\n".join([*lines, "並び替え：価格の安い順", f"全{rng.randrange(50, 999)}件中 1-20件を表示", "次へ"])


def footer(rng: random.Random) -> str:
    links = rng.choice([" | ", "\n", "　"]).join(rng.sample(FOOTER, rng.randint(4, 10)))
    name = rng.choice(["株式会社山川商事", "Yamakawa Inc.", "緑川市", "みどり新聞社"])
    year = rng.randint(2001, 2024)
    ending = rng.choice(
        [
            f"Copyright © {year} {name} All Rights Reserved.",
            f"©{year} {name} 無断転載を禁じます。All rights reserved.",
            f"当サイトの記事・写真等の無断転載を禁じます。\nCopyright(C) {year} {name}. All Rights Reserved.",
        ]
    )
    return f"{links}\n〒{rng.randrange(100, 999)}-{rng.randrange(1000, 9999)} {rng.choice(PLACES)}市本町1-2-3\n{ending}"


def cookie_notice(rng: random.Random) -> str:
    word = rng.choice(["Cookie", "クッキー"])
    sentences = [
        f"当サイトでは利便性の向上のために{word}を使用しています。",
        f"サイトの閲覧を続けることで、{word}の使用に同意したものとみなします。",
        "詳細はプライバシーポリシーをご覧ください。",
        f"{word}の設定はブラウザで変更できます。",
    ]
    buttons = rng.sample(["同意する", "すべて許可", "すべて拒否", f"{word}の利用について", "閉じる", "設定を変更"], 4)
    return "".join(sentences[: rng.randint(2, 4)]) + "\n" + "\n".join(buttons)


def search_results(rng: random.Random) -> str:
    query = rng.choice(GOODS)
    lines = [f"「{query}」の検索結果 約 {rng.randrange(1000, 90000):,} 件中 1 - 10 件目"]
    for rank in range(rng.randint(5, 10)):
        snippet = prose(rng, 3)[: rng.randint(40, 70)]
        lines += [f"{rank + 1}. {query}の{rng.choice(QUALITIES)} - {rng.choice(PLACES)}ナビ", f"{snippet}..."]
        lines += [f"www.example{rng.randrange(99)}.co.jp/{rng.randrange(9999)}.html - キャッシュ - 類似ページ"]
    return "\n".join([*lines, "前へ 1 2 3 4 5 次へ"])


def keywords(rng: random.Random) -> str:
    words = [rng.choice([*PLACES, *GOODS, *QUALITIES]) for _ in range(rng.randint(40, 150))]
    return rng.choice([" ", "　", ",", "、", "\n", " / "]).join(words)


def repeated_paragraph(rng: random.Random) -> str:
    paragraph = prose(rng, rng.randint(1, 4))
    return rng.choice(["\n", "\n\n", ""]).join([paragraph] * rng.randint(3, 20))


def replaced_bytes(rng: random.Random) -> str:
    return "".join("�" if rng.random() < 0.1 else character for character in prose(rng, 8))


def latin_mojibake(rng: random.Random) -> str:
    encoding = rng.choice(["latin-1", "cp1252"])
    return prose(rng, 6).encode().decode(encoding, errors="replace")


def partly_mojibake(rng: random.Random) -> str:
    return prose(rng, 6) + "\n" + prose(rng, 3).encode().decode("latin-1")


def shift_jis_mojibake(rng: random.Random) -> str:
    return prose(rng, 6).encode().decode("cp932", errors="replace")


def english(rng: random.Random) -> str:
    return " ".join(rng.choices(ENGLISH, k=rng.randint(3, 12)))


def english_with_names(rng: random.Random) -> str:
    return english(rng) + f" ({rng.choice(PLACES)}, {rng.choice(GOODS)})"


def chinese(rng: random.Random) -> str:
    return "".join(rng.choices(CHINESE, k=rng.randint(3, 10)))


def korean(rng: random.Random) -> str:
    return "".join(rng.choices(KOREAN, k=rng.randint(3, 10)))


def adult(rng: random.Random) -> str:
    return "\n".join(rng.choices([*ADULT, *PROSE[:2]], weights=[3] * len(ADULT) + [1, 1], k=rng.randint(6, 14)))


def gambling(rng: random.Random) -> str:
    return "".join(rng.choices([*GAMBLING, *PROSE[2:4]], weights=[3] * len(GAMBLING) + [1, 1], k=rng.randint(6, 14)))


def loans(rng: random.Random) -> str:
    return "".join(rng.choices([*LOANS, *PROSE[4:6]], weights=[3] * len(LOANS) + [1, 1], k=rng.randint(6, 14)))


def encoded_bytes(rng: random.Random) -> str:
    raw = rng.randbytes(rng.randint(200, 900))
    form = rng.choice([base64.b64encode(raw).decode(), raw.hex(), raw.hex(" "), base64.b85encode(raw).decode()])
    return rng.choice(["添付ファイルの内容は次のとおり。\n", ""]) + "\n".join(re.findall(".{1,76}", form))


def snippets(rng: random.Random) -> str:
    lines: list[str] = []
    for _ in range(rng.randint(4, 10)):
        cut = prose(rng, 3)[: rng.randint(35, 60)].removesuffix("。")
        lines.append(cut + rng.choice(["…", "...", "…続きを読む", "...続きを読む", "[…]", "・・・", "… もっと見る"]))
    return "\n".join(lines)


def prices(rng: random.Random) -> str:
    written = rng.choice(["{}　{:,}円", "{} ¥{:,}", "{}\n{:,}円", "{} … {:,}円(税込)"])
    return "\n".join(
        written.format(rng.choice(GOODS), rng.randrange(10, 9000) * 10) for _ in range(rng.randint(10, 40))
    )


def numbers(rng: random.Random) -> str:
    unit = rng.choice(["", "円", "%", "人"])
    rows = [
        f"{rng.choice(PLACES)} " + " ".join(f"{rng.randrange(10, 99999):,}{unit}" for _ in range(6))
        for _ in range(rng.randint(8, 30))
    ]
    return "地域 1月 2月 3月 4月 5月 6月\n" + "\n".join(rows)


def headlines(rng: random.Random) -> str:
    def one() -> str:
        first, second = rng.sample(TOPICS, 2)
        where = rng.choice(PLACES) + rng.choice(["", "で", "から"])
        return f"{rng.choice(['', '【速報】', '[写真]'])}{first} {where}{second}"

    return "\n".join(one() for _ in range(rng.randint(10, 30)))


def archive(rng: random.Random) -> str:
    months = [
        f"{year}年{month}月 ({rng.randrange(1, 40)})" for year in (2021, 2022, 2023) for month in range(12, 0, -1)
    ]
    return (
        "月を選択\n"
        + rng.choice([" ", "\n"]).join(months[rng.randrange(10) :])
        + "\nカテゴリー\n"
        + "\n".join(rng.sample(GOODS, 6))
    )


def laughter(rng: random.Random) -> str:
    return (
        "".join(rng.choice(["ｗ", "あ", "！", "ー", "笑", "♪"]) * rng.randint(30, 120) for _ in range(3)) + "すごいね。"
    )


def symbols(rng: random.Random) -> str:
    return "\n".join("★☆" * rng.randint(4, 12) + rng.choice(GOODS) + "◆◇■□" * rng.randint(2, 6) for _ in range(12))


def company_list(rng: random.Random) -> str:
    def one() -> str:
        name = rng.choice("山川森林田中東西") + rng.choice("商工産電建") + rng.choice("業設社")
        address = f"{rng.choice(PLACES)}市{rng.choice('北南東西中')}区{rng.randrange(1, 9)}-{rng.randrange(1, 30)}"
        return f"{rng.choice(['株式会社', '有限会社', '(株)'])}{name}　{address}"

    return "\n".join(one() for _ in range(rng.randint(10, 40)))


JUNK: dict[str, Callable[[random.Random], str]] = {
    function.__name__: function
    for function in (
        *(navigation, shop_page, footer, cookie_notice, search_results, keywords, repeated_paragraph),
        *(
            replaced_bytes,
            latin_mojibake,
            partly_mojibake,
            shift_jis_mojibake,
            english,
            english_with_names,
            chinese,
            korean,
        ),
        *(
            adult,
            gambling,
            loans,
            encoded_bytes,
            snippets,
            prices,
            numbers,
            headlines,
            archive,
            laughter,
            symbols,
            company_list,
        ),
    )
}
JUNK_DOCUMENTS = 60


@pytest.mark.parametrize("kind", JUNK)
def test_junk_goes(kind: str) -> None:
    rng = random.Random(kind)
    pages = [JUNK[kind](rng) for _ in range(JUNK_DOCUMENTS)]
    kept = [page for page in pages if fault(normalise(page), DEFAULTS) is None]
    assert len(kept) <= 0.05 * JUNK_DOCUMENTS, kept[:2]


PAGES = {
    "old blog": "ホーム\nサービス紹介\n料金\nお客様の声\nよくあるご質問\nお問い合わせ\n2019年4月\n"
    "日 月 火 水 木 金 土\n1 2 3 4 5 6\n7 8 9 10 11 12 13\n« 3月\n最近の投稿\n休業のお知らせ\nカテゴリー\nお知らせ",
    "product title": "【市場】水筒 ステンレス 500ml 保温 保冷 直飲み 軽量 おしゃれ かわいい 大人 子供 "
    "スポーツドリンク対応 洗いやすい 名入れ ギフト 母の日 父の日 敬老の日 誕生日 送料無料：雑貨ショップ みどり",
    "login form": "ログイン\nメールアドレス\nパスワード\nパスワードをお忘れの方はこちら\nログイン状態を保持する\n"
    "会員登録がお済みでない方\nFacebookでログイン\nLINEでログイン",
    "contact form": "送信ボタンを押してください。お名前（必須） フリガナ（必須） メールアドレス（必須） "
    "電話番号（必須） 郵便番号 都道府県 市区町村 番地 建物名 お問い合わせ内容（必須） 確認画面へ",
    "missing page": "お探しのページは見つかりませんでした。\nURLに間違いがないか、再度確認してください。\n"
    "ページが移動または削除された可能性があります。\nトップページへ戻る\nサイト内検索",
    "no script": "このサイトを表示するにはJavaScriptを有効にしてください。\n"
    "お使いのブラウザではJavaScriptが無効になっているか、サポートされていません。",
    "related posts": "関連記事\n【2024年最新】おすすめのVPN比較ランキング10選\n無料で使える画像編集ソフトまとめ\n"
    "格安SIMの選び方と注意点\nこの記事をシェアする\nFacebook\nTwitter\nはてなブックマーク\nLINE",
    "chapters": "第1話 はじまりの朝\n第2話 森の中へ\n第3話 出会い\n第4話 剣と魔法\n第5話 王都\n最終話 それから",
    "wards": "新宿区 渋谷区 港区 千代田区 中央区 台東区 墨田区 江東区 品川区 目黒区 大田区 世田谷区 中野区 杉並区",
    "press": "2024.03.15 新製品「みどりティー」発売のお知らせ...\n2024.03.01 人事異動に関するお知らせ...\n"
    "2024.02.20 展示会出展のご案内...\n2024.02.01 ウェブサイトをリニューアルしました...",
    "EUC as Latin-1": "こんにちは。今日はいい天気ですね。".encode("euc_jp").decode("latin-1"),
    "Shift_JIS as Windows-1252": "こんにちは。今日はいい天気。".encode("cp932").decode("cp1252", errors="replace"),
    "script": 'function init(){var a=document.getElementById("menu");a.style.display="block";} ホーム 会社概要',
    "tags": "おいしい やさしい たのしい うれしい かわいい きれいな すてきな おしゃれな かんたんな やすい はやい",
    "buying": "買取価格 iPhone 買取 Android 買取 パソコン 買取 ゲーム機 買取 カメラ 買取 時計 買取 金 買取 宝石 買取",
}


@pytest.mark.parametrize("page", PAGES)
def test_pages_as_they_stand_on_the_web_go(page: str) -> None:
    assert fault(normalise(PAGES[page]), DEFAULTS) is not None


@pytest.mark.parametrize("kind", JUNK)
def test_without_thresholds_everything_stays(kind: str) -> None:
    assert fault(JUNK[kind](random.Random(kind)), OFF) is None
    assert fault("", OFF) is None


# ---------------------------------------------------------------- each measure against a slow count

LETTERS = "あいうのはがアイーン山川々〇、。「」！？abZé09 \u3000\n★…한縺"
TEXTS = st.text(LETTERS, max_size=80) | st.lists(st.text(LETTERS, min_size=1, max_size=6), max_size=4).flatmap(
    lambda parts: st.lists(st.sampled_from(parts), max_size=24).map("".join) if parts else st.just("")
)
SHARES = st.floats(0, 1)


def _share(text: str, of: str, among: str) -> float:
    return sum(one in of for one in text) / max(1, sum(one in among for one in text))


LETTERS_AND_KANJI, VISIBLE = (
    "あいうのはがアイーン山川々〇",
    LETTERS.replace(" ", "").replace("\u3000", "").replace("\n", ""),
)


@given(TEXTS, SHARES)
def test_shares_of_characters(text: str, share: float) -> None:
    measured = {
        "min_japanese_share": _share(text, LETTERS_AND_KANJI + "、。「」！？…", VISIBLE),
        "min_kana_share": _share(text, "あいうのはがアイーン", LETTERS_AND_KANJI),
        "min_hiragana_share": _share(text, "あいうのはが", LETTERS_AND_KANJI),
        "max_katakana_share": _share(text, "アイーン", LETTERS_AND_KANJI),
        "max_digit_share": _share(text, "09", VISIBLE),
        "max_symbol_share": _share(text, "★한", VISIBLE),
        "max_damage_share": _share(text, "縺", VISIBLE),
    }
    for name, value in measured.items():
        if abs(value - share) < 1e-9:
            continue
        found = fault(text, replace(OFF, **{name: share})) is not None
        assert found == (value < share if name.startswith("min") else value > share), (name, value)


@given(TEXTS, st.integers(0, 40))
def test_lengths(text: str, length: int) -> None:
    characters = len("".join(text.split()))
    assert (fault(text, replace(OFF, min_characters=length)) is not None) == (characters < length)
    # The published way to cut sentences; what is one character long is a bracket.
    pieces = [piece for line in text.split("\n") for piece in re.findall(r"[^。．！？!?]+[。．！？!?]?", line)]
    lengths = [len(piece) for piece in pieces if len(piece) > 1]
    mean = sum(lengths) / max(1, len(lengths))
    assert (fault(text, replace(OFF, min_mean_sentence_characters=length)) is not None) == (mean < length)
    assert (fault(text, replace(OFF, max_mean_sentence_characters=length)) is not None) == (mean > length)
    assert (fault(text, replace(OFF, max_sentence_characters=length)) is not None) == (max(lengths, default=0) > length)


@given(TEXTS, SHARES)
def test_repeated_lines(text: str, share: float) -> None:
    lines = Counter(line for line in text.split("\n") if line.strip())
    copies = sum(number - 1 for number in lines.values()) / max(1, lines.total())
    copied = sum(len(line) * (number - 1) for line, number in lines.items())
    copied /= max(1, sum(len(line) * number for line, number in lines.items()))
    for name, value in (("max_duplicate_line_share", copies), ("max_duplicate_line_character_share", copied)):
        if abs(value - share) > 1e-9:
            assert (fault(text, replace(OFF, **{name: share})) == "repeated lines") == (value > share)


@given(TEXTS, st.integers(1, 10), SHARES)
def test_repeated_n_grams(text: str, size: int, share: float) -> None:
    grams = Counter(text[start : start + size] for start in range(len(text) - size + 1))
    repeated = {gram: number for gram, number in grams.items() if number > 1}
    top = max(repeated.values(), default=0) > share * grams.total()
    assert (fault(text, replace(OFF, top_grams=((size, share),))) == "repeated n-gram") == top
    passages = sum(repeated.values()) / max(1, grams.total())
    if abs(passages - share) > 1e-9:
        found = fault(text, replace(OFF, duplicate_grams=((size, share),)))
        assert (found == "repeated passages") == (passages > share)


def test_lines_that_are_cut_short() -> None:
    cut = [
        "川が見える…",
        "川が見える...",
        "川が見える・・・",
        "川が見える…続きを読む",
        "川が見える[…]",
        "川が見える... もっと見る",
    ]
    whole = [
        "川が見える。",
        "川が……",
        "川が見える……」",
        "「川が…」",
        "川…が見える",
        "川が見える.....",
        "・川",
        "続きを読む",
    ]
    for share, text in ((0.2, "\n".join(whole)), (0.45, "\n".join([*cut, *whole]))):
        assert fault(text, replace(OFF, max_ellipsis_share=share)) is None
    assert fault("\n".join([*cut, *whole]), replace(OFF, max_ellipsis_share=0.42)) == "cut short"
    for line in cut:
        assert fault(line, replace(OFF, max_ellipsis_share=0.99)) == "cut short", line


def test_words_count_by_their_characters_from_three_on() -> None:
    text = "ログイン" * 3
    assert fault(text + "あ" * 288, replace(OFF, max_boilerplate_share=0.0401)) is None
    assert fault(text + "あ" * 288, replace(OFF, max_boilerplate_share=0.0399)) == "web furniture"
    assert fault("ログイン" * 2, replace(OFF, max_boilerplate_share=0.0)) is None
    assert fault("人妻" * 3 + "あ" * 94, replace(OFF, max_unwanted_share=0.05)) == "spam words"
    assert fault("人妻" * 3 + "あ" * 120, replace(OFF, max_unwanted_share=0.05)) is None
    # The longest word that stands at a place is the one that counts, and no character counts twice.
    assert fault("ツイートする" * 3, replace(OFF, max_boilerplate_share=0.99)) == "web furniture"
    assert fault("トップページトップ" * 3, replace(OFF, max_boilerplate_share=0.67)) is None
    assert fault("トップページトップ" * 3, replace(OFF, max_boilerplate_share=0.66)) == "web furniture"


def test_the_first_rule_that_is_broken_is_named() -> None:
    assert fault("", DEFAULTS) == "too short"
    assert fault("Hello, world! " * 20, DEFAULTS) == "little Japanese"
    assert fault(PROSE[0] * 30, DEFAULTS) == "repeated passages"


def test_settings_that_make_no_sense_are_refused() -> None:
    wrong: list[tuple[str, Any]] = [
        ("max_digit_share", 1.5),
        ("min_kana_share", -0.1),
        ("min_characters", -1),
        ("top_grams", ((0, 0.5),)),
        ("duplicate_grams", ((5, 2.0),)),
        ("max_mean_sentence_characters", float("nan")),
    ]
    for name, value in wrong:
        with refuses("out-of-range", got=name):
            replace(DEFAULTS, **{name: value})
