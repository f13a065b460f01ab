"""The model card of a release: README.md in Japanese and English, with its `Modelfile` and its licence.

`model_card` has the config, what a card says, and the rendering of pages; `tables` takes the numbers out of the report,
`prompt` takes the prompt format out of a GGUF file. `templates/` has the pages, also DATA.md and LICENSES.md of
`export.release`. Licences and duties are in `export.licences`.
"""

from export.card.model_card import CARD, CARD_FILES, PAGE, REPORT, CardConfig, Sampling, rendered, write_card

__all__ = ["CARD", "CARD_FILES", "PAGE", "REPORT", "CardConfig", "Sampling", "rendered", "write_card"]
