//! Any values through `planes`.

#![no_main]

use actstore_fuzz::inputs;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    inputs::planes_round_trip(data);
});
