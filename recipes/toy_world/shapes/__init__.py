"""One module for each shape of question: its training documents and its held-out questions."""
