//! The fuzz target of the connection.
#![no_main]

#[allow(dead_code, reason = "its seeds are for another program")]
#[path = "../connection.rs"]
mod connection;

libfuzzer_sys::fuzz_target!(|input: &[u8]| connection::run(input));
