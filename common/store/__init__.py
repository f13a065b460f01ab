"""Content-addressed stages: a stage is a function, its result a folder named by everything that went into it.

    @stage(version=1)
    def corpus(config: CorpusConfig, workspace: Workspace, text: Path, tokenizer: Path) -> dict[str, Any]: ...

    world = store.build("world", world, WorldConfig())
    packed = store.build("corpus", corpus, CorpusConfig(), world, tokenizer)

`keys`: from name, function, version, config and input keys to the key. `artifacts`: reads and checks finished results.
`building`: runs a stage, or reuses its result.
"""

from common.disk import exclusive
from common.store.artifacts import MANIFEST_FILE, Artifact, check_checksums, read_manifest
from common.store.building import StageFunction, Store, Workspace, not_here, run_alone, say, stage
from common.store.keys import artifact_key

__all__ = [
    "MANIFEST_FILE",
    "Artifact",
    "StageFunction",
    "Store",
    "Workspace",
    "artifact_key",
    "check_checksums",
    "exclusive",
    "not_here",
    "read_manifest",
    "run_alone",
    "say",
    "stage",
]
