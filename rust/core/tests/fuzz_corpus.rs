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
        let decoded: Vec<(bool, bool)> =
            files.map(|file| (is_seed(&file), run(&std::fs::read(file).unwrap()))).collect();
        // Frames of an older format would be refused, and test nothing.
        let seeds_pass = decoded.iter().all(|(is_seed, decoded)| !is_seed || *decoded);
        assert!(seeds_pass || target.ends_with("round_trip"), "{target}: a seed is refused");
        let (accepted, all) = (decoded.iter().filter(|(_, decoded)| *decoded).count(), decoded.len());
        assert!(all >= 40 && accepted * 10 >= all, "{target}: {accepted} of {all} are decoded");
    }
}

fn is_seed(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("seed-"))
}
