//! What fuzzing found worth keeping, through the functions that are fuzzed.

#[path = "../../fuzz/src/inputs.rs"]
pub mod inputs;

use std::path::Path;

use inputs::TARGETS;

#[test]
fn the_kept_corpus_of_every_target_passes() {
    for (target, run) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let decoded = files.map(|file| run(&std::fs::read(file).unwrap()));
        // Frames of an older format would all be refused, and test nothing.
        assert!(decoded.filter(|decoded| *decoded).count() > 0, "{target}");
    }
}
