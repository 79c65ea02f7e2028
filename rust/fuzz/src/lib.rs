//! Fuzzing of what reads bytes that may have come from anywhere. `make fuzz` runs every target; tests run the kept corpus.

pub mod inputs;
