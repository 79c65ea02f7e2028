//! Fuzzing of the codecs. `make fuzz` runs every target; tests run the kept corpus.

pub mod inputs;
