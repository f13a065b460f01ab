"""Per-document text rules of a corpus: normal form, quality, personal data. Pure functions of one text.

They know no file, no stage and no other document: what compares documents lives elsewhere.
"""
