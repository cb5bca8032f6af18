#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| overmesh_core::fuzz::changes(bytes));
