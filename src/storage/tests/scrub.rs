//! The scrub: what it finds is what a check of the whole log finds, told once; what it leaves alone; and that nothing is
//! held up by it. (`simulation` scrubs at random moments as well, and expects nothing to be found.)

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use super::damage::options;
use super::executor::run;
use super::life::{Engine, Life, Opening, verify_alone};
use super::model::Model;
use super::simulation::value_of;
use crate::storage::disk::BLOCK;
use crate::storage::disk::sim::{Fault, Image, Kind, Rng, SimDisk};
use crate::storage::format::{FRAME_FOOTER, FrameHeader, SEGMENT_HEADER_BYTES};
use crate::storage::segment::{LogId, name};
use crate::storage::{Change, Condition, Mutation, ScrubStep, StorageError, StoreOptions};

/// Steps after which a pass over the small stores here has long ended.
const STEPS_MAX: u32 = 100_000;

type Places = BTreeSet<(String, u64)>;

fn open(disk: &SimDisk, options: &StoreOptions, model: &mut Model) -> Life {
    let mut opening = Opening::start(disk, options, Rng::new(options.run));
    opening.executor.exhaust(disk);
    let (store, recovered) = opening.result().unwrap().unwrap();
    model.recovered(recovered.last_version).unwrap();
    Life::start(disk, store, opening.executor)
}

fn set(life: &mut Life, model: &mut Model, key: &[u8], value: &[u8]) {
    let mutation = Mutation {
        key,
        change: Change::Set(value),
        condition: Condition::None,
    };
    life.submit(model, &mutation).unwrap();
}

/// A running store of several segments.
fn several_segments(disk: &SimDisk, model: &mut Model) -> Life {
    let mut life = open(disk, &options(1, 0, 1), model);
    let mut rng = Rng::new(1);
    while life.store.stat().segments < 4 {
        let key = [b'a' + rng.index(20) as u8];
        let value = value_of(rng.next(), [0, 100, 3000, 5000, 9000][rng.index(5)]);
        set(&mut life, model, &key, &value);
        if rng.chance(2, 3) {
            life.quiesce(model).unwrap();
        }
    }
    life.quiesce(model).unwrap();
    life
}

/// Scrubs until a pass has ended; its first step begins one.
fn one_pass(disk: &SimDisk, store: &Rc<Engine>) {
    let store = Rc::clone(store);
    run(disk, async move {
        let passes = store.stat().scrub_passes;
        let mut current = None;
        for _ in 0..STEPS_MAX {
            let step = store.scrub(&mut current).await.unwrap();
            assert_ne!(step, ScrubStep::Idle, "segments are sealed");
            if store.stat().scrub_passes > passes {
                return;
            }
        }
        panic!("the pass does not end");
    });
}

fn found(store: &Engine) -> Places {
    let segments = store.segments.borrow();
    let places = store.scrubbed.places.borrow();
    let file = |id| segments.get(id).unwrap().file_name();
    places.iter().map(|(id, at)| (file(*id), *at)).collect()
}

/// What a check of the whole log says of these files.
fn checked(image: &Image) -> Places {
    let disk = SimDisk::with_image(1, image);
    let verified = run(&disk, {
        let disk = disk.clone();
        async move {
            let options = StoreOptions {
                served: true,
                ..options(1, 0, 1)
            };
            verify_alone(&disk, &options).await.unwrap()
        }
    });
    let place = |error: &StorageError| match error {
        StorageError::Corrupt { file, offset, .. } => (file.clone(), *offset),
        other => panic!("a check says {other}"),
    };
    verified.damage.iter().map(place).collect()
}

/// Every block of the sealed segments, by file.
fn sealed_blocks(store: &Engine) -> Vec<(String, usize)> {
    let active = store.log.end().segment;
    let segments = store.segments.borrow();
    let sealed = segments.iter().filter(|(id, _)| *id < active);
    sealed
        .flat_map(|(_, segment)| {
            let file = segment.file_name();
            let blocks = segment.used_bytes as usize / BLOCK;
            (0..blocks).map(move |block| (file.clone(), block))
        })
        .collect()
}

#[test]
fn damage_in_any_sealed_block_is_found_in_one_pass_where_a_check_finds_it() {
    let (disk, mut model) = (SimDisk::new(1), Model::default());
    let life = several_segments(&disk, &mut model);
    one_pass(&disk, &life.store);
    assert_eq!(found(&life.store), Places::new());
    let whole = disk.image();
    let blocks = sealed_blocks(&life.store);
    assert_eq!(
        life.store.stat().scrubbed_bytes,
        (blocks.len() * BLOCK) as u64
    );
    let (mut rng, mut places) = (Rng::new(2), 0);
    for (file, block) in &blocks {
        for kind in ["flip", "zero", "noise"] {
            let mut spoilt = whole.block(file, *block).to_vec();
            match kind {
                "flip" => spoilt[rng.index(BLOCK)] ^= 1 << rng.index(8),
                "zero" => spoilt.fill(0),
                _ => rng.fill(&mut spoilt),
            }
            let put = |bytes: &[u8]| {
                disk.damage(file, |all| {
                    all[block * BLOCK..][..BLOCK].copy_from_slice(bytes)
                });
            };
            put(&spoilt);
            one_pass(&disk, &life.store);
            let first = found(&life.store);
            let what = format!("{kind} of block {block} of {file}");
            match block {
                // A check has no segment table in memory to know a file by.
                0 => assert_eq!(first, Places::from([(file.clone(), 0)]), "{what}"),
                _ => assert_eq!(first, checked(&disk.image()), "{what}"),
            }
            assert!(!first.is_empty(), "{what} is not found");
            one_pass(&disk, &life.store);
            assert_eq!(found(&life.store), first, "{what} is told once");
            places += first.len();
            put(whole.block(file, *block));
            life.store.scrubbed.places.borrow_mut().clear();
        }
    }
    println!(
        "scrub: {} damaged blocks, {places} places, all found",
        3 * blocks.len()
    );
}

#[test]
fn several_places_and_a_file_that_ends_early_are_all_found() {
    let (disk, mut model) = (SimDisk::new(3), Model::default());
    let life = several_segments(&disk, &mut model);
    let mut frames = Vec::new();
    let image = disk.image();
    for file in [name(LogId(0), 1), name(LogId(0), 2)] {
        let (bytes, mut at) = (image.file(&file), SEGMENT_HEADER_BYTES);
        while let Some(header) = bytes.get(at..).and_then(FrameHeader::decode) {
            if header.flags & FRAME_FOOTER == 0 {
                frames.push((file.clone(), at));
            }
            at += header.frame_bytes();
        }
    }
    let mut expected = Places::new();
    for (file, at) in frames.iter().step_by(3) {
        disk.damage(file, |bytes| bytes[at + 70] ^= 1);
        expected.insert((file.clone(), *at as u64));
    }
    // The third file ends in the middle of its second frame.
    let third = name(LogId(0), 3);
    let second = SEGMENT_HEADER_BYTES + BLOCK;
    disk.damage(&third, |bytes| bytes.truncate(second + 512));
    expected.insert((third, second as u64));
    one_pass(&disk, &life.store);
    assert_eq!(found(&life.store), expected);
    assert_eq!(life.store.stat().damaged_places, expected.len() as u64);
}

#[test]
fn the_active_segment_is_not_read() {
    let (disk, mut model) = (SimDisk::new(4), Model::default());
    let mut life = several_segments(&disk, &mut model);
    let end = life.store.log.end();
    let active = name(LogId(0), end.file);
    disk.damage(&active, |bytes| bytes[SEGMENT_HEADER_BYTES + 10] ^= 1);
    let read = Rc::new(RefCell::new(BTreeSet::new()));
    let files = Rc::clone(&read);
    disk.fail_when(move |operation| {
        if operation.kind == Kind::Read {
            files.borrow_mut().insert(operation.file.to_string());
        }
        None
    });
    one_pass(&disk, &life.store);
    assert_eq!(found(&life.store), Places::new());
    assert_eq!(
        *read.borrow(),
        (1..4).map(|file| name(LogId(0), file)).collect()
    );
    // Once it is sealed it is: the next pass has it.
    let value = value_of(1, 9000);
    while life.store.log.end().segment == end.segment {
        set(&mut life, &mut model, b"key", &value);
        life.quiesce(&mut model).unwrap();
    }
    one_pass(&disk, &life.store);
    let place = (active, SEGMENT_HEADER_BYTES as u64);
    assert_eq!(found(&life.store), Places::from([place]));
}

#[test]
fn nothing_sealed_is_nothing_to_do() {
    let (disk, mut model) = (SimDisk::new(5), Model::default());
    let life = open(&disk, &options(1, 0, 1), &mut model);
    let store = Rc::clone(&life.store);
    let step = run(&disk, async move { store.scrub(&mut None).await });
    assert_eq!(step.unwrap(), ScrubStep::Idle);
    assert_eq!(life.store.stat().scrub_passes, 0);
}

/// A block that the device does not give any more is the commonest damage.
#[test]
fn a_block_that_cannot_be_read_is_one_place_and_what_is_behind_it_is_checked() {
    let (disk, mut model) = (SimDisk::new(6), Model::default());
    let life = several_segments(&disk, &mut model);
    for (bad_file, bad_block) in sealed_blocks(&life.store) {
        let bad = bad_block as u64 * BLOCK as u64;
        let file = bad_file.clone();
        disk.fail_when(move |operation| {
            let here = operation.offset..operation.offset + operation.len as u64;
            let fails = operation.kind == Kind::Read && *operation.file == *file;
            (fails && here.contains(&bad)).then_some(Fault::Error(libc::EIO))
        });
        one_pass(&disk, &life.store);
        disk.fail_no_more();
        let places = found(&life.store);
        assert_eq!(
            places.len(),
            1,
            "block {bad_block} of {bad_file}: {places:?}"
        );
        let (file, at) = places.first().unwrap();
        let image = disk.image();
        let bytes = match at {
            0 => SEGMENT_HEADER_BYTES,
            at => FrameHeader::decode(&image.file(file)[*at as usize..])
                .unwrap()
                .frame_bytes(),
        };
        let named = *at..*at + bytes as u64;
        assert!(
            *file == bad_file && named.contains(&bad),
            "block {bad_block}: {places:?}"
        );
        life.store.scrubbed.places.borrow_mut().clear();
    }
}

#[test]
fn compaction_and_the_scrub_do_not_disturb_each_other() {
    let (disk, mut model, mut rng) = (SimDisk::new(7), Model::default(), Rng::new(8));
    let mut life = open(&disk, &options(1, 0, 1), &mut model);
    for _ in 0..400 {
        for _ in 0..1 + rng.index(4) {
            let key = [b'a' + rng.index(6) as u8];
            set(
                &mut life,
                &mut model,
                &key,
                &value_of(rng.next(), 100 + rng.index(8900)),
            );
        }
        life.scrub(1 + rng.below(9));
        life.compact();
        for _ in 0..rng.index(60) {
            if !life.executor.turn() {
                disk.step();
            }
            life.collect(&mut model).unwrap();
        }
    }
    life.quiesce(&mut model).unwrap();
    life.compact();
    life.quiesce(&mut model).unwrap();
    let stat = life.store.stat();
    println!("scrub beside compaction: {stat:?}");
    assert!(stat.retired_segments > 50 && stat.scrub_passes > 50);
    assert_eq!(stat.damaged_places, 0);
    let files = disk.image().names().count();
    assert!(
        files <= stat.segments as usize + 3,
        "{files} files: some are held"
    );
    life.audit(&mut model).unwrap();
}

/// Damage that is overwritten and compacted away is none any more.
#[test]
fn damage_goes_with_its_segment() {
    let (disk, mut model) = (SimDisk::new(9), Model::default());
    let mut life = several_segments(&disk, &mut model);
    disk.damage(&name(LogId(0), 1), |bytes| {
        bytes[SEGMENT_HEADER_BYTES + 2 * BLOCK] ^= 1
    });
    one_pass(&disk, &life.store);
    assert_eq!(life.store.stat().damaged_places, 1);
    for letter in 0..20 {
        set(&mut life, &mut model, &[b'a' + letter], b"new");
        life.quiesce(&mut model).unwrap();
    }
    life.compact();
    life.quiesce(&mut model).unwrap();
    assert!(life.store.stat().retired_segments > 0);
    assert_eq!(life.store.stat().damaged_places, 0);
    life.audit(&mut model).unwrap();
}
