"""Content-addressed stages: a stage is a function, its result a folder named by everything that went into it.

    @stage(version=1)
    def corpus(config: CorpusConfig, workspace: Workspace, text: Path, tokenizer: Path) -> dict[str, Any]: ...

    world = store.build("world", world, WorldConfig())
    packed = store.build("corpus", corpus, CorpusConfig(), world, tokenizer)

`keys` turns name, function, version, config and input keys into the key; `locks` lets one process at a time make an
artifact; `artifacts` reads and checks what is finished; `building` runs a stage, keeps what a kill leaves for the next
start and renames the folder when it is complete. None of it knows what a stage does.
"""

from common.store.artifacts import MANIFEST_FILE, Artifact, check_checksums, read_manifest
from common.store.building import StageFunction, Store, Workspace, run_alone, say, stage
from common.store.keys import artifact_key, content_hash
from common.store.locks import exclusive

__all__ = [
    "MANIFEST_FILE",
    "Artifact",
    "StageFunction",
    "Store",
    "Workspace",
    "artifact_key",
    "check_checksums",
    "content_hash",
    "exclusive",
    "read_manifest",
    "run_alone",
    "say",
    "stage",
]
