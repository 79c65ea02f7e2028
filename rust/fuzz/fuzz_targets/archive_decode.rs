//! Any bytes as a frame of `archive`.

#![no_main]

use actstore_fuzz::inputs;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    inputs::archive_decode(data);
});
