"""llama.cpp in a process of its own: `python -m export.llama_child quantize|load ...`, started by `export.quantize`.

llama.cpp aborts its whole process on many malformed files, so it never runs inside the pipeline's. The log goes to
stderr as llama.cpp writes it; `load` prints one JSON object on stdout. It knows no checkpoint and no stage.
"""

import argparse
import ctypes
import json
import sys
from typing import Any

import llama_cpp


def quantize(source: str, target: str, file_type: int, threads: int) -> int:
    """Writes `target` from an F16 file with llama.cpp's own quantiser; 0 when it succeeded."""
    parameters: Any = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = file_type
    parameters.nthread = threads
    given: Any = ctypes.byref(parameters)
    return int(llama_cpp.llama_model_quantize(source.encode(), target.encode(), given))


def load(path: str, text: str) -> dict[str, Any]:
    """Loads a file as an app would and tokenises `text` with the vocabulary that the file carries.

    Returns:
        `ids` of the text (control tokens spelt out, none added), `vocabulary` (number of tokens), `context_tokens`.
    """
    parameters: Any = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = 0
    parameters.use_extra_bufts = False  # no repacked copy of the weights: this only looks whether they load
    model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
    if not model:
        raise SystemExit(1)
    vocabulary: Any = llama_cpp.llama_model_get_vocab(model)
    raw = text.encode()
    ids = (llama_cpp.llama_token * (len(raw) + 8))()
    count = llama_cpp.llama_tokenize(vocabulary, raw, len(raw), ids, len(ids), False, False)
    return {
        "ids": list(ids)[:count],
        "vocabulary": int(llama_cpp.llama_vocab_n_tokens(vocabulary)),
        "context_tokens": int(llama_cpp.llama_model_n_ctx_train(model)),
    }


def main(arguments: list[str]) -> int:
    """The child's command line; the text to tokenise comes through stdin."""
    parser = argparse.ArgumentParser(prog="export.llama_child", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    quantizing = verbs.add_parser("quantize")
    quantizing.add_argument("source")
    quantizing.add_argument("target")
    quantizing.add_argument("file_type", type=int)
    quantizing.add_argument("threads", type=int)
    verbs.add_parser("load").add_argument("path")
    options = parser.parse_args(arguments)
    llama_cpp.llama_log_set(_to_stderr, ctypes.c_void_p(0))
    if options.verb == "quantize":
        return quantize(options.source, options.target, options.file_type, options.threads)
    print(json.dumps(load(options.path, sys.stdin.buffer.read().decode())))
    return 0


@llama_cpp.llama_log_callback
def _to_stderr(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    sys.stderr.buffer.write(text)
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
