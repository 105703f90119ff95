//! The fuzz target of the data directory.
#![no_main]

#[allow(dead_code, reason = "its seeds are for another program")]
#[path = "../segment.rs"]
mod segment;

thread_local! {
    static FIXTURE: segment::Fixture = segment::Fixture::load();
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| FIXTURE.with(|fixture| segment::run(fixture, input)));
