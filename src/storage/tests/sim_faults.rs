//! The simulated disk, continued: kills, errors, full disks, damage, and the misuse that it catches.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;

use super::executor::{Executor, run};
use super::sim_disk::{SEEDS, content, cut_in_flight, outcomes, write, zeroed};
use crate::storage::disk::sim::{Fault, Image, Kind, Rng, SECTOR, SimDisk};
use crate::storage::disk::{BLOCK, Disk, DiskBuffer, DiskFile};

const EIO: Fault = Fault::Error(libc::EIO);

#[test]
fn a_kill_keeps_what_was_complete_but_does_not_make_it_durable() {
    let killed = |seed| {
        let disk = SimDisk::new(seed);
        let copy = disk.clone();
        run(&disk, async move {
            let file = copy.create("new").await.unwrap();
            write(&copy, &file, 0, 1, 7).await.unwrap();
        });
        disk.kill()
    };
    assert!(
        (0..50).all(|seed| content(&killed(seed), "new") == Some(vec![7; BLOCK])),
        "a kill lost a complete write"
    );
    let after = |seed| content(&killed(seed).crash(), "new").is_some();
    assert!(
        (0..50).any(|seed| !after(seed)),
        "a kill made a name durable"
    );
    let synced = |seed| {
        let disk = killed(seed);
        let copy = disk.clone();
        run(&disk, async move {
            copy.open("new").await.unwrap().sync().await.unwrap();
            copy.sync_directory().await.unwrap();
        });
        content(&disk.crash(), "new")
    };
    assert!(
        (0..SEEDS).all(|seed| synced(seed) == Some(vec![7; BLOCK])),
        "the next process could not make it durable"
    );
}

#[test]
fn a_write_in_flight_at_a_kill_is_seen_by_the_next_process_and_can_still_be_lost() {
    let killed = cut_in_flight(SimDisk::kill);
    assert!(killed.contains(&vec![0; 2 * BLOCK]) && killed.contains(&vec![7; 2 * BLOCK]));
    let lost = Cell::new(0);
    cut_in_flight(|disk| {
        let next = disk.kill();
        let later = next.crash();
        let seen = |disk: &SimDisk| content(disk, "log").unwrap() == vec![7; 2 * BLOCK];
        lost.set(lost.get() + u32::from(seen(&next) && !seen(&later)));
        later
    });
    assert!(
        lost.get() > 0,
        "what a kill left visible was durable by itself"
    );
}

#[test]
fn a_failed_write_has_any_effect() {
    let story = async |disk: SimDisk| {
        let file = disk.open("log").await.unwrap();
        disk.fail_when(|operation| (operation.kind == Kind::Write).then_some(EIO));
        let error = write(&disk, &file, 0, 2, 7).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    };
    let seen = outcomes(
        |seed| zeroed(seed, 2),
        story,
        |disk| content(disk, "log").unwrap(),
    );
    assert!(
        seen.contains(&vec![0; 2 * BLOCK]) && seen.contains(&vec![7; 2 * BLOCK]) && seen.len() > 50
    );
}

#[test]
fn a_short_write_says_how_much_and_wrote_no_more() {
    let story = async |disk: SimDisk| {
        let file = disk.open("log").await.unwrap();
        disk.fail_when(|operation| (operation.kind == Kind::Write).then_some(Fault::ShortWrite));
        let written = write(&disk, &file, 0, 2, 7).await.unwrap();
        assert!(written < 2 * BLOCK);
        let bytes = content(&disk, "log").unwrap();
        assert!(
            bytes[..written].iter().all(|&byte| byte == 7)
                && bytes[written..].iter().all(|&byte| byte == 0)
        );
    };
    let written = |bytes: Vec<u8>| bytes.iter().filter(|&&byte| byte == 7).count();
    let seen = outcomes(
        |seed| zeroed(seed, 2),
        story,
        |disk| written(content(disk, "log").unwrap()),
    );
    assert!(
        seen.contains(&0) && seen.contains(&(2 * BLOCK - SECTOR)) && seen.contains(&BLOCK),
        "{seen:?}"
    );
}

#[test]
fn after_a_failed_sync_a_good_one_proves_nothing() {
    let story = async |disk: SimDisk| {
        let file = disk.create("new").await.unwrap();
        disk.sync_directory().await.unwrap();
        write(&disk, &file, 0, 1, 7).await.unwrap();
        disk.fail_when(|operation| (operation.kind == Kind::Sync).then_some(EIO));
        file.sync().await.unwrap_err();
        disk.fail_no_more();
        file.sync().await.unwrap();
    };
    let seen = outcomes(SimDisk::new, story, |disk| {
        content(disk, "new").unwrap().len()
    });
    assert!(seen.contains(&0) && seen.contains(&BLOCK), "{seen:?}");
    let story = async |disk: SimDisk| {
        disk.remove("log").await.unwrap();
        disk.fail_when(|operation| (operation.kind == Kind::SyncDirectory).then_some(EIO));
        disk.sync_directory().await.unwrap_err();
        disk.fail_no_more();
        disk.sync_directory().await.unwrap();
    };
    let seen = outcomes(
        |seed| zeroed(seed, 1),
        story,
        |disk| content(disk, "log").is_some(),
    );
    assert_eq!(seen, BTreeSet::from([false, true]));
}

#[test]
fn each_descriptor_of_a_directory_is_told_of_an_error_once() {
    let world = SimDisk::new(1);
    let (disk, other) = (world.clone(), world.reopened());
    disk.fail_when(|operation| (operation.kind == Kind::SyncDirectory).then_some(EIO));
    let story = async move {
        disk.sync_directory().await.unwrap_err();
        disk.fail_no_more();
        let later = disk.reopened();
        later.sync_directory().await.unwrap();
        other.sync_directory().await.unwrap_err();
        for descriptor in [disk, other, later] {
            descriptor.sync_directory().await.unwrap();
        }
    };
    run(&world, story);
}

#[test]
fn the_next_process_can_make_durable_what_a_failed_operation_left_visible() {
    for seed in 0..SEEDS {
        let disk = zeroed(seed, 2);
        let copy = disk.clone();
        run(&disk, async move {
            let file = copy.open("log").await.unwrap();
            copy.fail_when(|_| Some(EIO));
            write(&copy, &file, 0, 2, 7).await.unwrap_err();
            copy.remove("other").await.unwrap_err();
        });
        let next = disk.kill();
        let copy = next.clone();
        run(&next, async move {
            copy.open("log").await.unwrap().sync().await.unwrap()
        });
        assert_eq!(content(&next.crash(), "log"), content(&next, "log"));
    }
}

#[test]
fn a_failed_create_or_remove_may_have_happened() {
    let story = async |disk: SimDisk| {
        disk.fail_when(|_| Some(EIO));
        assert!(disk.create("new").await.is_err());
        disk.remove("log").await.unwrap_err();
        disk.list().await.unwrap_err();
        assert!(disk.open("log").await.is_err());
    };
    let now = |seed| {
        let disk = zeroed(seed, 1);
        let copy = disk.clone();
        run(&disk, async move { story(copy).await });
        (
            content(&disk, "new").is_some(),
            content(&disk, "log").is_some(),
        )
    };
    assert_eq!((0..SEEDS).map(now).collect::<BTreeSet<_>>().len(), 4);
}

#[test]
fn the_nth_operation_fails_and_no_other() {
    let disk = SimDisk::new(1);
    disk.fail_nth(2, EIO);
    let copy = disk.clone();
    run(&disk, async move {
        let file = copy.create("new").await.unwrap();
        write(&copy, &file, 0, 1, 7).await.unwrap();
        file.sync().await.unwrap_err();
        file.sync().await.unwrap();
        file.close().await.unwrap();
    });
    assert!(
        disk.trace().contains("failed    #2 Sync new"),
        "{}",
        disk.trace()
    );
}

#[test]
fn a_full_disk_refuses_growth_and_only_growth() {
    let mut written = BTreeSet::new();
    for seed in 0..100 {
        let disk = zeroed(seed, 2);
        disk.set_capacity(Some(5 * BLOCK as u64));
        let copy = disk.clone();
        let growth = run(&disk, async move {
            let log = copy.open("log").await.unwrap();
            let file = copy.create("new").await.unwrap();
            let growth = write(&copy, &file, 0, 4, 7).await;
            assert!(
                copy.create("more").await.is_err(),
                "there was room for another file"
            );
            assert_eq!(write(&copy, &log, 0, 2, 7).await.unwrap(), 2 * BLOCK);
            file.close().await.unwrap();
            copy.remove("new").await.unwrap();
            let file = copy.create("more").await.unwrap();
            assert_eq!(write(&copy, &file, 0, 3, 7).await.unwrap(), 3 * BLOCK);
            growth
        });
        written.insert(growth.map_err(|error| error.raw_os_error()));
    }
    assert_eq!(
        written,
        BTreeSet::from([Ok(3 * BLOCK), Err(Some(libc::ENOSPC))])
    );
}

#[test]
fn buffers_are_aligned_and_full_of_noise() {
    let disk = SimDisk::new(1);
    let mut buffer = disk.buffer(2 * BLOCK);
    assert_eq!(buffer.as_ref().as_ptr().align_offset(BLOCK), 0);
    assert!(
        buffer
            .as_ref()
            .chunks(SECTOR)
            .all(|sector| sector.iter().any(|&byte| byte != 0))
    );
    buffer.truncate(BLOCK);
    assert_eq!(buffer.as_ref().len(), BLOCK);
    assert_ne!(disk.buffer(BLOCK).as_ref(), disk.buffer(BLOCK).as_ref());
}

#[test]
#[should_panic(expected = "is not made of blocks")]
fn an_unaligned_buffer_panics() {
    SimDisk::new(1).buffer(100);
}

#[test]
#[should_panic(expected = "offset 512 is not at a block")]
fn an_unaligned_offset_panics() {
    let disk = zeroed(1, 2);
    let copy = disk.clone();
    run(&disk, async move {
        copy.open("log").await.unwrap().read_at(512, BLOCK).await
    })
    .unwrap();
}

#[test]
#[should_panic(expected = "removed while 1 handles are open")]
fn removing_an_open_file_panics() {
    let disk = zeroed(1, 1);
    let copy = disk.clone();
    run(&disk, async move {
        let _file = copy.open("log").await.unwrap();
        copy.remove("log").await
    })
    .unwrap();
}

#[test]
fn a_dropped_file_is_closed_at_some_later_time() {
    let disk = zeroed(1, 1);
    let copy = disk.clone();
    run(&disk, async move { drop(copy.open("log").await.unwrap()) });
    assert_eq!(
        disk.in_flight()
            .iter()
            .map(|operation| operation.kind)
            .collect::<Vec<_>>(),
        [Kind::Close]
    );
    assert!(disk.step());
    let copy = disk.clone();
    run(&disk, async move { copy.remove("log").await }).unwrap();
}

#[test]
fn an_abandoned_write_is_counted() {
    let disk = zeroed(1, 1);
    let mut executor = Executor::new(Rng::new(1));
    let copy = disk.clone();
    executor.spawn(async move {
        let file = copy.open("log").await.unwrap();
        write(&copy, &file, 0, 1, 7).await
    });
    executor.settle();
    assert!(disk.step());
    executor.settle();
    assert_eq!(disk.counters().abandoned_writes, 0);
    drop(executor);
    assert_eq!(disk.counters().abandoned_writes, 1);
}

#[test]
fn a_read_of_bytes_in_flight_sees_a_mixture() {
    let seen: BTreeSet<Vec<u8>> = (0..SEEDS)
        .map(|seed| {
            let disk = zeroed(seed, 2);
            let mut executor = Executor::new(Rng::new(seed));
            let copy = disk.clone();
            let file = Rc::new(run(&disk, async move { copy.open("log").await.unwrap() }));
            let (copy, writer) = (disk.clone(), Rc::clone(&file));
            executor.spawn(async move { write(&copy, &writer, 0, 1, 7).await });
            let read = executor.spawn(async move { file.read_at(0, 4 * BLOCK).await.unwrap() });
            executor.settle();
            assert!(disk.step_where(|operation| operation.kind == Kind::Read));
            executor.settle();
            let bytes = read.take().unwrap();
            assert_eq!(bytes.len(), 2 * BLOCK, "a read ends where the file ends");
            assert_eq!(
                bytes[BLOCK..],
                [0; BLOCK],
                "a read changed what nobody writes"
            );
            bytes
        })
        .collect();
    assert!(seen.len() > 20, "{} different reads", seen.len());
}

#[test]
fn damage_is_seen_at_once_and_stays() {
    let disk = zeroed(1, 2);
    disk.damage("log", |bytes| bytes[5] ^= 1);
    let read = |disk: &SimDisk| {
        let copy = disk.clone();
        run(disk, async move {
            copy.open("log")
                .await
                .unwrap()
                .read_at(0, BLOCK)
                .await
                .unwrap()
        })
    };
    assert_eq!(read(&disk)[5], 1);
    assert_eq!(read(&disk.crash())[5], 1);
}

#[test]
fn an_image_is_spoilt_where_the_test_says() {
    let mut image = Image::default();
    image.put("a", [vec![1; BLOCK], vec![2; BLOCK]].concat());
    image.put("b", vec![3; BLOCK]);
    image.swap_blocks(("a", 1), ("b", 0));
    assert_eq!((image.block("a", 1)[0], image.block("b", 0)[0]), (3, 2));
    image.flip_bit("a", BLOCK + 7, 2);
    assert_eq!(
        (image.file("a")[BLOCK + 6], image.file("a")[BLOCK + 7]),
        (3, 7)
    );
    assert_eq!(image.remove("b"), vec![2; BLOCK]);
    assert_eq!(image.names().collect::<Vec<_>>(), ["a"]);
    assert_eq!(SimDisk::with_image(1, &image).image(), image);
}

#[test]
fn counters_count_what_was_asked() {
    let disk = SimDisk::new(1);
    let copy = disk.clone();
    run(&disk, async move {
        let file = copy.create("new").await.unwrap();
        write(&copy, &file, 0, 2, 7).await.unwrap();
        file.sync().await.unwrap();
        file.read_at(0, BLOCK).await.unwrap();
        file.close().await.unwrap();
        copy.sync_directory().await.unwrap();
        copy.remove("new").await.unwrap();
    });
    let counters = disk.counters();
    assert_eq!(
        (
            counters.creates,
            counters.removes,
            counters.syncs,
            counters.directory_syncs
        ),
        (1, 1, 1, 1)
    );
    assert_eq!(
        (counters.writes, counters.bytes_written),
        (1, 2 * BLOCK as u64)
    );
    assert_eq!(
        (counters.reads, counters.bytes_read, counters.operations),
        (1, BLOCK as u64, 7)
    );
}
