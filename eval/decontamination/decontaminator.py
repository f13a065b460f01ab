"""All items of all benchmarks, and the one question: does a text hold any of them? It knows no file format."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from eval.decontamination.config import SHORTEST, DecontaminationConfig
from eval.decontamination.long_texts import LongTexts, is_long
from eval.decontamination.normal_form import document_of, is_marked, normal_form
from eval.decontamination.short_questions import ShortQuestion, ShortQuestions
from eval.tasks.items import TURN_BREAK, Item, read_benchmarks


class Decontaminator:
    """The items of all benchmarks, ready to be looked for. It can be sent to other processes."""

    num_items: dict[str, int]
    """Items of each benchmark."""
    too_short: dict[str, int]
    """How many of them have only texts that are too short to count by themselves, or only repeat themselves."""

    def __init__(self, benchmarks: Mapping[str, Sequence[Item]], config: DecontaminationConfig) -> None:
        self._names = list(benchmarks)
        self.num_items = {name: len(items) for name, items in benchmarks.items()}
        self.too_short = dict.fromkeys(benchmarks, 0)
        long: dict[str, int] = {}
        marked: dict[str, list[ShortQuestion]] = {}
        unmarked: dict[str, list[ShortQuestion]] = {}
        for place, (name, items) in enumerate(benchmarks.items()):
            for item in items:
                counts_alone = False
                for text in map(normal_form, _texts(item)):
                    if text in long or is_long(text, config):
                        long.setdefault(text, place)
                        counts_alone = True
                words = normal_form(item.question)
                if SHORTEST <= len(words) < config.min_characters:
                    short = marked if is_marked(item.question) else unmarked
                    short.setdefault(words, []).append(ShortQuestion.of(item, place, config))
                    counts_alone |= len(words) >= config.min_alone_characters
                self.too_short[name] += not counts_alone
        self._long = LongTexts(long, config)
        self._marked, self._unmarked = ShortQuestions(marked, config), ShortQuestions(unmarked, config)

    @classmethod
    def from_folder(cls, folder: Path, config: DecontaminationConfig) -> "Decontaminator":
        """Takes the benchmark files of a folder; see `read_benchmarks`, also for what it raises."""
        return cls(read_benchmarks(folder), config)

    def card(self) -> dict[str, dict[str, int]]:
        """`{benchmark: {items, too_short}}` for a data card: what its texts were compared with."""
        return {name: {"items": count, "too_short": self.too_short[name]} for name, count in self.num_items.items()}

    def find(self, text: str) -> str | None:
        """The benchmark of which the text holds an item, that of the longest match where there are several, or None."""
        document = document_of(text)
        place = self._long.find(document.codes)
        if place is None:
            place = self._marked.find(document, document.mark_ends)
        if place is None:
            place = self._unmarked.find(document, document.ends)
        return None if place is None else self._names[place]


def _texts(item: Item) -> Iterator[str]:
    """The texts any of which gives the item away."""
    yield item.question
    first, parted, _ = item.question.partition(TURN_BREAK)
    if parted:
        yield first
    if item.context is not None:
        yield item.context
