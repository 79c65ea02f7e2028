//! Any bytes as a pickle.

#![no_main]

use actstore_fuzz::inputs;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    inputs::pickle_decode(data);
});
