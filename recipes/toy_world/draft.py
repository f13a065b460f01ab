"""A question with its prompt, a text that records where its answers are, and the rule of what is held out.

`Question.prompt` has one form for each shape. Training documents contain it, followed directly by the answer, and the
evaluation's task files build the same string.
"""

import zlib
from dataclasses import dataclass, field
from typing import Any

HELD_OUT_SHARE_PERCENT = 10
CUES = {"ja-en": ("日本語：", "\n英語："), "en-ja": ("英語：", "\n日本語：")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question in one of the five shapes. `answers[0]` is the answer of documents and of the assistant."""

    shape: str
    question: str
    answers: tuple[str, ...]
    group: str | None = None
    direction: str | None = None
    context: str | None = None
    choices: tuple[str, ...] = ()
    worked: str | None = None
    """Arithmetic: the worked answer, which ends with the bare number and its unit."""

    @property
    def prompt(self) -> str:
        """The text before the answer; no space is between them."""
        if self.direction is not None:
            opening, cue = CUES[self.direction]
            return f"{opening}{self.question}{cue}"
        opening = "問題：" if self.shape == "arithmetic" else "質問："
        context = f"文章：{self.context}\n" if self.context is not None else ""
        choices = f"選択肢：{'、'.join(self.choices)}\n" if self.choices else ""
        return f"{context}{opening}{self.question}\n{choices}答え："

    @property
    def reply(self) -> str:
        """The text after the prompt."""
        return self.worked if self.worked is not None else self.answers[0]

    def row(self, number: int) -> dict[str, Any]:
        """The line of `questions.jsonl`."""
        return {
            "id": f"{self.shape}-{number:04d}",
            "shape": self.shape,
            "group": self.group,
            "direction": self.direction,
            "context": self.context,
            "question": self.question,
            "choices": list(self.choices),
            "answers": list(self.answers),
        }


@dataclass(slots=True)
class Draft:
    """A text that is written piece by piece; `answers` has the `[start, end)` character spans of its answers."""

    parts: list[str] = field(default_factory=list[str])
    answers: list[list[int]] = field(default_factory=list[list[int]])
    length: int = 0

    @classmethod
    def of(cls, *pieces: str) -> "Draft":
        """A text without answers."""
        return cls(parts=list(pieces), length=sum(map(len, pieces)))

    def write(self, piece: str) -> None:
        self.parts.append(piece)
        self.length += len(piece)

    def line(self, piece: str) -> None:
        """Start a new line with `piece`."""
        self.write(f"\n{piece}" if self.parts else piece)

    def answer(self, piece: str) -> None:
        """Write an answer and record its span."""
        self.answers.append([self.length, self.length + len(piece)])
        self.write(piece)

    def ask(self, question: Question, *, with_context: bool = True) -> None:
        """Write a question's prompt and its answer, with or without the context."""
        prompt = question.prompt
        if not with_context and question.context is not None:
            prompt = prompt.removeprefix(f"文章：{question.context}\n")
        self.line(prompt)
        self.answer(question.reply)

    @property
    def text(self) -> str:
        return "".join(self.parts)


def held_out(key: str) -> bool:
    """Whether the invented item (sum, sentence, name) with this text belongs to the test and never to training.

    A checksum of the text decides, so training and test never share an item, whatever the seeds are.
    """
    return zlib.crc32(key.encode()) % 100 < HELD_OUT_SHARE_PERCENT
