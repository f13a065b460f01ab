"""Any `Runtime` as a model of lm-evaluation-harness, in the plain or the chat form.

lm-eval passes strings, a runtime takes ids of its own tokenizer: this module converts between them. Greedy decoding
only. Independent of the tasks.
"""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from eval.runtimes import Generation, Pair, Runtime
from eval.runtimes.batches import cut_at_stop

DEFAULT_MAX_TOKENS = 256  # lm-eval's own


class HarnessModel(LM):
    """An lm-eval model over a runtime.

    Args:
        runtime: the artifact.
        chat: prompts come from `apply_chat_template`.
    """

    def __init__(self, runtime: Runtime, *, chat: bool) -> None:
        super().__init__()
        self._runtime, self._chat = runtime, chat
        self._rendered: dict[str, list[int]] = {}
        self.generations: dict[tuple[str, int], Generation] = {}
        """Generated answers by task and number of the document."""

    @property
    def tokenizer_name(self) -> str:
        return ""  # names lm-eval's request cache, which is off

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt as text; its ids are kept, since encoding the text would not restore them."""
        assert add_generation_prompt, "tasks with gen_prefix are not for the chat form"
        ids = self._runtime.render(chat_history)
        text = self._runtime.decode(ids, skip_special=False)
        self._rendered[text] = ids
        return text

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        return self._runtime.score(self._pairs([_arguments(request) for request in requests]))

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        results: list[float] = []
        for request in requests:
            windows = get_rolling_token_windows(
                self._runtime.encode(request.args[0]),
                prefix_token=self._runtime.document_end_id,
                max_seq_len=self._runtime.context_tokens - 1,
                context_len=1,
            )
            pairs = [make_disjoint_window(window) for window in windows]
            results.append(sum(score for score, _ in self._runtime.score(pairs)))
        return results

    def generate_until(self, requests: list[Instance]) -> list[str]:
        groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for index, request in enumerate(requests):
            options: dict[str, Any] = _arguments(request)[1]
            until = options.get("until") or []
            until = [until] if isinstance(until, str) else until
            groups.setdefault((int(options.get("max_gen_toks", DEFAULT_MAX_TOKENS)), tuple(until)), []).append(index)
        texts: dict[int, str] = {}
        for (max_tokens, until), members in groups.items():
            prompts = [self._prompt(requests[index].args[0]) for index in members]
            # A chat answer must end by itself: it is decoded to its end and cut afterwards.
            stop = () if self._chat else until
            answers = self._runtime.generate(prompts, max_tokens=max_tokens, stop=stop)
            for index, answer in zip(members, answers, strict=True):
                request = requests[index]
                assert request.task_name is not None and request.doc_id is not None
                self.generations[request.task_name, request.doc_id] = answer
                cut = cut_at_stop(answer.text, until)
                texts[index] = answer.text if cut is None else cut
        return [texts[index] for index in range(len(requests))]

    def _prompt(self, text: str) -> list[int]:
        """Ids of a rendered conversation, or of a plain prompt; an empty prompt is the start of a document."""
        if self._chat:
            return self._rendered[text]
        return self._runtime.encode(text) or [self._runtime.document_end_id]

    def _pairs(self, texts: Sequence[tuple[str, str]]) -> list[Pair]:
        """Context and continuation ids.

        A plain text is encoded whole, as in training. Where a token then crosses the boundary, the boundary moves back
        to the last token that the context and all its continuations share, so that all are compared on the same
        characters.
        """
        if self._chat:
            return [(self._rendered[context], self._runtime.encode(text)) for context, text in texts]
        wholes = [self._runtime.encode(context + text) for context, text in texts]
        shared: dict[str, int] = {}
        for (context, _), whole in zip(texts, wholes, strict=True):
            common = _common_prefix(self._runtime.encode(context), whole[:-1])
            shared[context] = min(common, shared.get(context, common))
        start = [self._runtime.document_end_id]
        return [
            (whole[: shared[context]] or start, whole[shared[context] :])
            for (context, _), whole in zip(texts, wholes, strict=True)
        ]


def _arguments(request: Instance) -> Any:
    """A context with its continuation, or with the options of its generation."""
    return request.arguments


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return index
    return min(len(a), len(b))
