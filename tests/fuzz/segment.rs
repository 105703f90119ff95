//! The files of a data directory, through the code of a start and of a check.
//!
//! An input is a list of changes to the directory of `tests/fixtures/v1`: which bytes of which file become what. Its first
//! byte says for how many shards the start is, and whether the checksums are made right again afterwards, so that what
//! they keep away is reached as well. Whatever the files say, nothing panics, nothing waits for ever, and what a start
//! accepts can be listed.

use std::collections::BTreeMap;
use std::path::Path;
use std::task::{Context, Poll, Waker};

use orlop::storage::disk::sim::{Image, SimDisk};
use orlop::storage::manifest::Manifest;
use orlop::storage::{
    Detail, Handover, Opening, PrefixQuery, Store, StoreOptions, inspect, read, verify,
};

const BLOCK: usize = 4096;

/// Bytes of a change before those that it writes: the file, the offset (3), the length.
const CHANGE_BYTES: usize = 5;

/// Bit of the first byte: the checksums are made right again. The shards are in the bits below.
const SEALED: u8 = 4;

/// Where checksums are, and what they cover to the end of the structure: see `src/storage/FORMAT.md`.
const FRAME_HEADER_BYTES: usize = 64;
const RECORD_HEADER_BYTES: usize = 32;

/// The directory that is changed.
pub(super) struct Fixture(Image);

impl Fixture {
    /// Reads it.
    pub(super) fn load() -> Fixture {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let places = ["tests/fixtures/v1/data", "../fixtures/v1/data"];
        let directory = places
            .iter()
            .map(|place| package.join(place))
            .find(|place| place.is_dir())
            .expect("the fixture is in the repository");
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(directory).expect("the fixture can be listed") {
            let path = entry.expect("the fixture can be listed").path();
            let name = path.file_name().and_then(|name| name.to_str());
            let bytes = std::fs::read(&path).expect("the fixture can be read");
            files.insert(name.expect("names are text").to_owned(), bytes);
        }
        Fixture(Image::new(files))
    }
}

/// Starts on one changed directory.
pub(super) fn run(fixture: &Fixture, input: &[u8]) {
    let Some((how, changes)) = input.split_first() else {
        return;
    };
    let shards = 1 + u16::from(how % SEALED);
    let mut image = fixture.0.clone();
    let names: Vec<String> = image.names().map(str::to_owned).collect();
    let mut changed = vec![false; names.len()];
    let mut rest = changes;
    while let Some((change, bytes)) = rest.split_at_checked(CHANGE_BYTES) {
        let (now, later) = bytes.split_at(bytes.len().min(change[4].into()));
        let at = usize::from(change[0]) % names.len();
        let file = image.file_mut(&names[at]);
        let offset = u32::from_le_bytes([change[1], change[2], change[3], 0]) as usize % file.len();
        let end = file.len().min(offset + now.len());
        file[offset..end].copy_from_slice(&now[..end - offset]);
        changed[at] = true;
        rest = later;
    }
    if how & SEALED != 0 {
        for (name, _) in names.iter().zip(changed).filter(|(_, changed)| *changed) {
            image.file_mut(name).chunks_mut(BLOCK).for_each(seal_header);
            seal_frames(image.file_mut(name));
        }
    }
    let Ok(manifest) = Manifest::decode(image.file("manifest")) else {
        return;
    };
    look_at(&image, &manifest);
    start(&image, &manifest.next_run(shards));
}

/// What `orlopd inspect` and `orlopd verify` do.
fn look_at(image: &Image, manifest: &Manifest) {
    let disk = SimDisk::with_image(1, image);
    for name in image.names().filter(|name| name.ends_with(".log")) {
        let bytes = image.file(name).len() as u64;
        let shown = inspect(&disk, name, bytes, Detail::Records, |_| {});
        drop(drive(&disk, shown));
    }
    if manifest.generation.shards <= 4 {
        let owner = |key: &[u8]| owner(key, manifest.generation.shards);
        let mut checking = Vec::new();
        let mut handovers: Vec<Vec<Handover>> = Vec::new();
        for shard in 0..manifest.generation.shards {
            let options = StoreOptions::to_read(manifest, shard);
            let checked = drive(&disk, verify(&disk, &options, &owner, |_| {}));
            let Ok((checked, handed)) = checked else {
                return;
            };
            checking.push(checked);
            handovers.push(handed);
        }
        for (shard, checked) in checking.into_iter().enumerate() {
            let own: Vec<Handover> = handovers.iter().map(|of| of[shard].clone()).collect();
            checked.finish(&own);
        }
    }
}

/// What a start of the server does, and a listing.
fn start(image: &Image, manifest: &Manifest) {
    let disk = SimDisk::with_image(2, image);
    let shards = manifest.generation.shards;
    let owner = |key: &[u8]| owner(key, shards);
    let mut openings: Vec<Opening<SimDisk>> = Vec::new();
    let mut handovers: Vec<Vec<Handover>> = Vec::new();
    for shard in 0..shards {
        let options = StoreOptions {
            segment_bytes: 64 * BLOCK as u32,
            value_len_max: BLOCK,
            cache_bytes: 1 << 20,
            pending_bytes_max: 1 << 20,
            dead_bytes_min: 0,
            salt_seed: 3,
            ..StoreOptions::to_read(manifest, shard)
        };
        let Ok((opening, handed)) = drive(&disk, read(disk.clone(), options, &owner)) else {
            return;
        };
        openings.push(opening);
        handovers.push(handed);
    }
    for (shard, opening) in openings.into_iter().enumerate() {
        let own: Vec<Handover> = handovers.iter().map(|of| of[shard].clone()).collect();
        let Ok((store, _)) = drive(&disk, opening.finish::<()>(own)) else {
            return;
        };
        list(&disk, &store);
        // What is not in memory after that.
        for segment in store.warm_order() {
            drop(drive(&disk, store.warm(segment)));
        }
    }
}

fn list(disk: &SimDisk, store: &Store<SimDisk, ()>) {
    let query = PrefixQuery {
        prefix: b"",
        after: b"",
        max_entries: 10_000,
        max_bytes: 16 << 20,
        keys_only: false,
    };
    // A damaged record behind a footer is met here, and refused.
    drop(drive(disk, store.page(&query)));
}

fn owner(key: &[u8], shards: u16) -> u16 {
    (crc32fast::hash(key) % u32::from(shards)) as u16
}

/// Runs to the end what only waits for the disk.
fn drive<T>(disk: &SimDisk, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(done) = work.as_mut().poll(&mut context) {
            return done;
        }
        assert!(disk.step(), "it waits, and not for the disk");
    }
}

/// Makes the checksum of a manifest's slot or a segment's header right.
fn seal_header(block: &mut [u8]) {
    if block.starts_with(b"ORLOPMAN") || block.starts_with(b"ORLOPSEG") {
        let crc = crc32fast::hash(&block[12..]);
        block[8..12].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Makes the checksums of all frames and of their records right, as far as their lengths stay within the file.
fn seal_frames(file: &mut [u8]) {
    for start in (0..file.len()).step_by(BLOCK) {
        let frame = &mut file[start..];
        if !frame.starts_with(b"ORLF") || frame.len() < FRAME_HEADER_BYTES {
            continue;
        }
        let payload_bytes = number(frame, 40).min(frame.len() - FRAME_HEADER_BYTES);
        let mut records = &mut frame[FRAME_HEADER_BYTES..][..payload_bytes];
        while records.len() >= RECORD_HEADER_BYTES {
            let key_len = usize::from(u16::from_le_bytes([records[8], records[9]]));
            let bytes = RECORD_HEADER_BYTES + key_len + number(records, 12);
            if bytes > records.len() {
                break;
            }
            let (record, rest) = records.split_at_mut(bytes);
            let crc = crc32fast::hash(&record[4..]);
            record[..4].copy_from_slice(&crc.to_le_bytes());
            records = rest;
        }
        let crc = crc32fast::hash(&frame[8..FRAME_HEADER_BYTES]);
        frame[4..8].copy_from_slice(&crc.to_le_bytes());
    }
}

fn number(bytes: &[u8], at: usize) -> usize {
    let bytes = bytes[at..at + 4].try_into().expect("four bytes");
    u32::from_le_bytes(bytes) as usize
}

/// Changes to start from: nothing, a byte of each kind of structure, and larger ones.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let change = |file: u8, offset: u32, bytes: &[u8]| {
        let [low, middle, high, _] = offset.to_le_bytes();
        let length = u8::try_from(bytes.len()).expect("a change is short");
        [&[file, low, middle, high, length], bytes].concat()
    };
    // Of the manifest; of a segment's header; of its first frame and record; of later blocks.
    let offsets = [
        20, 44, 54, 60, 4116, 32, 36, 72, 92, 104, 4104, 4116, 4136, 4140, 4164, 4168, 4172, 8_192,
    ];
    let mut seeds = Vec::new();
    for how in [0, 1, SEALED, SEALED + 1, SEALED + 2] {
        seeds.push(vec![how]);
        for (number, offset) in (0..).zip(offsets) {
            let one = change(number % 11, offset, &[number]);
            let other = change(number % 5 + 1, offset + 8, &[0xff; 4]);
            seeds.push([&[how], &one[..], &other].concat());
        }
    }
    // A footer that says another length than the record has.
    seeds.push([&[SEALED], &change(3, 266_316, &[16])[..]].concat());
    seeds
}
