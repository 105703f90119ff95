//! The fuzz targets (`tests/fuzz/`) on inputs that are made from their seeds by chance: what `scripts/fuzz.sh` does for
//! as long as it is told to, in seconds and without a fuzzer.
//!
//! `ORLOP_SEED` repeats a run; `ORLOP_ROUNDS` is the number of inputs of each target. With `ORLOP_WRITE_SEEDS` set to a
//! directory, the seeds of each target are written to the directory of its name there, for the fuzzer.

use crate::random::Random;

#[path = "../fuzz/connection.rs"]
mod connection;
#[path = "../fuzz/segment.rs"]
mod segment;

/// Feeds `rounds` mixtures of the seeds to a target.
fn feed(name: &str, rounds: u64, seeds: &[Vec<u8>], mut target: impl FnMut(&[u8])) {
    if let Some(directory) = std::env::var_os("ORLOP_WRITE_SEEDS") {
        let directory = std::path::Path::new(&directory).join(name);
        std::fs::create_dir_all(&directory).unwrap();
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(directory.join(format!("seed-{number:02}")), seed).unwrap();
        }
    }
    let seed = Random::seed();
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let rounds = std::env::var("ORLOP_ROUNDS").map_or(rounds, |text| text.parse().unwrap());
    seeds.iter().for_each(|seed| target(seed));
    for _ in 0..rounds {
        target(&mixture(seeds, &mut random));
    }
}

fn mixture(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let any = |random: &mut Random| seeds[random.within(0..seeds.len() as u64) as usize].clone();
    let mut input = any(random);
    for _ in 0..random.within(1..6) {
        if input.len() < 2 {
            input = any(random);
            continue;
        }
        // Not the first byte, but one time: it says how the rest is read.
        let at = random.within(1..input.len() as u64) as usize;
        match random.within(0..7) {
            0 => input[at] = random.next() as u8,
            1 => input[at] ^= 1 << random.within(0..8),
            2 => input[at] = random.within(0..12) as u8,
            3 => input.truncate(at),
            4 => {
                // Words of one behind the words of another.
                let other = any(random);
                let from = (1 + 8 * random.within(0..1 + other.len() as u64 / 8) as usize)
                    .min(other.len());
                input.truncate(1 + (at - 1) / 8 * 8);
                input.extend_from_slice(&other[from..]);
            }
            5 => {
                let again = input[at..].to_vec();
                input.extend(again);
            }
            _ => input[0] = random.next() as u8,
        }
    }
    input.truncate(64 << 10);
    input
}

#[test]
fn no_bytes_of_a_peer_make_a_connection_panic_or_keep_anything() {
    feed("connection", 3_000, &connection::seeds(), connection::run);
}

#[test]
fn no_bytes_of_a_data_directory_make_a_start_panic() {
    let fixture = segment::Fixture::load();
    feed("segment", 600, &segment::seeds(), |input| {
        segment::run(&fixture, input)
    });
}
