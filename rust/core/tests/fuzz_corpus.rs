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
        let decoded: Vec<bool> = files.map(|file| run(&std::fs::read(file).unwrap())).collect();
        let (accepted, all) = (decoded.iter().filter(|decoded| **decoded).count(), decoded.len());
        // Frames of an older format would be refused, and test nothing.
        assert!(all >= 40 && accepted * 10 >= all, "{target}: {accepted} of {all} are decoded");
    }
}
