//! A directory that is not as the server left it: damaged, torn, in use, foreign, read-only, full.
//!
//! The server refuses with a sentence and an exit code that says which, and changes nothing; only what a crash of its own
//! leaves behind (a torn tail) it puts right by itself. Every kind of damage at every place is swept in the tests of
//! `src/storage`; here the real server meets a few of each kind on a real file system.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use orlop::client::Client;

use crate::harness::{Exit, Flags, Process, Scratch, Server, run, skip, until};
use crate::random::Random;

/// Every file of a directory with its bytes.
pub(crate) fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = std::fs::read_dir(directory)
        .unwrap()
        .map(|file| file.unwrap().path());
    files
        .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
        .collect()
}

/// The segments only: a start counts itself in the manifest.
fn segments(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = contents(directory);
    files.retain(|path, _| path.extension().is_some_and(|extension| extension == "log"));
    files
}

/// Where in which segment a byte string is.
pub(crate) fn find(directory: &Path, bytes: &[u8]) -> (PathBuf, u64) {
    let found = segments(directory).into_iter().find_map(|(path, content)| {
        let offset = content
            .windows(bytes.len())
            .position(|window| window == bytes)?;
        Some((path, offset as u64))
    });
    found.expect("the bytes are in a segment")
}

/// Flips one bit of a file.
pub(crate) fn flip(path: &Path, offset: u64, bit: u8) {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], offset).unwrap();
    file.sync_all().unwrap();
}

pub(crate) fn one_shard() -> Flags {
    Flags::small().with("--shards", 1)
}

/// A value that is found again among the bytes of a file.
pub(crate) fn marked(number: u64) -> Vec<u8> {
    let mut value = format!("<<marked value {number}>>").into_bytes();
    value.extend(Random::new(number).bytes(3_000));
    value
}

/// Makes a store of ten commits and ends its server.
pub(crate) async fn store_of_ten_commits(data: &Path, clean_end: bool) {
    let server = Server::start(data, &one_shard()).await;
    let client = server.client().await;
    for number in 0..10 {
        client
            .set(format!("key-{number}").as_bytes(), &marked(number))
            .await
            .unwrap();
    }
    if clean_end {
        server.stop().await;
    } else {
        server.kill().await;
    }
}

/// Demands that the server refuses the directory as corrupt, names the place, and changes no segment.
async fn refused_as_corrupt(data: &Path, file: &Path, damaged_at: u64) -> Exit {
    let before = segments(data);
    let exit = Server::refused(data, &one_shard()).await;
    let name = file.file_name().unwrap().to_str().unwrap();
    exit.expect(4, &["corruption", name, "offset"]);
    let words: Vec<&str> = exit
        .stderr
        .split(|c: char| !c.is_ascii_alphanumeric())
        .collect();
    let named = words
        .windows(2)
        .find(|pair| pair[0] == "offset")
        .and_then(|pair| pair[1].parse::<u64>().ok());
    let named = named.unwrap_or_else(|| panic!("no offset in {}", exit.stderr));
    assert!(
        named <= damaged_at && damaged_at < named + (64 << 10),
        "damage at {damaged_at}, named is {named}"
    );
    assert!(
        segments(data) == before,
        "a refused start changed the segments"
    );
    exit
}

#[test]
fn a_flipped_bit_in_an_acknowledged_frame_stops_the_start_and_names_the_place() {
    run(async |scratch| {
        let seed = Random::seed();
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let data = scratch.data();
        store_of_ten_commits(&data, false).await;
        for number in [0, 1, 4, 8] {
            let (file, start) = find(&data, format!("<<marked value {number}>>").as_bytes());
            // In the value, in the key just before it, and in the record's header before that.
            for offset in [start + random.within(0..3_000), start - 1, start - 20] {
                let bit = random.within(0..8) as u8;
                flip(&file, offset, bit);
                refused_as_corrupt(&data, &file, offset).await;
                flip(&file, offset, bit);
            }
        }
        // Repaired by the test, nothing is missing: the refused starts did no harm.
        let server = Server::start(&data, &one_shard()).await;
        expect_all_ten(&server.client().await).await;
        server.stop().await;
    });
}

async fn expect_all_ten(client: &Client) {
    for number in 0..10 {
        let found = client
            .get(format!("key-{number}").as_bytes())
            .await
            .unwrap();
        assert!(
            found.is_some_and(|found| found.value == marked(number)),
            "key-{number} is not as it was acknowledged"
        );
    }
}

/// After an orderly stop the end of the log is marked, so that even the last frame cannot pass as torn.
#[test]
fn a_flipped_bit_in_the_last_frame_of_a_stopped_store_is_corruption() {
    run(async |scratch| {
        let data = scratch.data();
        store_of_ten_commits(&data, true).await;
        let (file, start) = find(&data, b"<<marked value 9>>");
        flip(&file, start + 1_000, 3);
        refused_as_corrupt(&data, &file, start + 1_000).await;
    });
}

#[test]
fn a_flipped_bit_in_the_header_of_a_segment_is_corruption() {
    run(async |scratch| {
        let data = scratch.data();
        store_of_ten_commits(&data, true).await;
        let (file, _) = find(&data, b"<<marked value 0>>");
        for offset in [0, 9, 40] {
            flip(&file, offset, 2);
            refused_as_corrupt(&data, &file, offset).await;
            flip(&file, offset, 2);
        }
        let server = Server::start(&data, &one_shard()).await;
        expect_all_ten(&server.client().await).await;
        server.stop().await;
    });
}

#[test]
fn a_lost_or_shortened_segment_stops_the_start() {
    run(async |scratch| {
        let data = scratch.data();
        let server = Server::start(&data, &one_shard()).await;
        let client = server.client().await;
        // Enough for several segments of 1 MiB.
        for number in 0..60 {
            let mut value = format!("<<marked value {number}>>").into_bytes();
            value.resize(60_000, b'.');
            client
                .set(format!("key-{number}").as_bytes(), &value)
                .await
                .unwrap();
        }
        server.stop().await;
        let (file, start) = find(&data, b"<<marked value 0>>");
        let content = std::fs::read(&file).unwrap();

        std::fs::write(&file, &content[..start as usize]).unwrap();
        let before = segments(&data);
        Server::refused(&data, &one_shard())
            .await
            .expect(4, &["corruption"]);
        assert!(
            segments(&data) == before,
            "a refused start changed the segments"
        );

        std::fs::remove_file(&file).unwrap();
        Server::refused(&data, &one_shard())
            .await
            .expect(4, &["corruption"]);

        std::fs::write(&file, &content).unwrap();
        let server = Server::start(&data, &one_shard()).await;
        assert_eq!(server.client().await.stat().await.unwrap().keys, 60);
        server.stop().await;
    });
}

/// The test makes on disk what a power cut in the middle of the last write leaves: the first blocks of a frame, or
/// nothing of it. The frame counts as never acknowledged; everything before it must stay.
#[test]
fn a_torn_tail_is_cut_logged_and_loses_nothing_acknowledged() {
    run(async |scratch| {
        for torn in [
            "its last block is zero",
            "a block in its middle is zero",
            "only its first block is there",
        ] {
            let data = scratch.path(&torn.replace(' ', "-"));
            store_of_ten_commits(&data, false).await;
            let server = Server::start(&data, &one_shard()).await;
            let client = server.client().await;
            // So little is dead that nothing is compacted: copies behind the torn frame would prove that it was acknowledged.
            let mut value = b"<<the torn one>>".to_vec();
            value.extend(Random::new(1).bytes(40_000));
            client.set(b"torn", &value).await.unwrap();
            server.kill().await;

            let (path, start) = find(&data, b"<<the torn one>>");
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            let frame_start = format!("offset={}", start - start % 4096);
            let frame_end = (start + value.len() as u64).next_multiple_of(4096);
            match torn {
                "its last block is zero" => {
                    file.write_all_at(&[0; 4096], frame_end - 4096).unwrap()
                }
                // A crash never shortens the file: it has its length before it is used.
                "a block in its middle is zero" => file
                    .write_all_at(&[0; 4096], start.next_multiple_of(4096) + 8192)
                    .unwrap(),
                _ => {
                    let from = start.next_multiple_of(4096);
                    file.write_all_at(&vec![0; (frame_end - from) as usize], from)
                        .unwrap();
                }
            }
            drop(file);

            // Twice: what was cut must not come back.
            for life in 0..2 {
                let server = Server::start(&data, &one_shard()).await;
                let client = server.client().await;
                expect_all_ten(&client).await;
                assert_eq!(
                    client.get(b"torn").await.unwrap(),
                    None,
                    "{torn}: half of it is visible"
                );
                if life == 0 {
                    // Another thread writes the log: the server may be ready before.
                    let limit = Duration::from_secs(30);
                    until("the log says what was cut", limit, async || {
                        let log = server.stderr().to_lowercase();
                        log.lines().any(|line| {
                            ["torn", "segment=", &frame_start, "bytes="]
                                .iter()
                                .all(|word| line.contains(word))
                        })
                    })
                    .await;
                }
                client.set(b"torn", b"again").await.unwrap();
                client.delete(b"torn").await.unwrap();
                server.kill().await;
            }
        }
    });
}

#[test]
fn a_second_server_on_the_same_directory_is_refused() {
    run(async |scratch| {
        let first = Server::start(&scratch.data(), &Flags::small()).await;
        let data = scratch.data();
        Server::refused(&data, &Flags::small())
            .await
            .expect(3, &["in use", data.to_str().unwrap()]);
        first.client().await.set(b"key", b"value").await.unwrap();
        first.kill().await;
        // The lock dies with its owner.
        Server::start(&scratch.data(), &Flags::small())
            .await
            .stop()
            .await;
    });
}

#[test]
fn a_file_called_manifest_that_is_not_ours_is_refused() {
    run(async |scratch| {
        let data = scratch.data();
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("manifest"), "name: a program\nversion: 7\n").unwrap();
        let before = contents(&data);
        Server::refused(&data, &Flags::small())
            .await
            .expect(3, &["manifest"]);
        assert!(contents(&data) == before, "somebody's file was changed");
    });
}

/// Offsets as in `src/storage/FORMAT.md`: the format is the 32 bits at 12, the checksum at 8 covers what follows it.
#[test]
fn a_store_of_an_unknown_format_is_refused() {
    run(async |scratch| {
        let data = scratch.data();
        Server::start(&data, &Flags::small()).await.stop().await;
        let path = data.join("manifest");
        let mut manifest = std::fs::read(&path).unwrap();
        for slot in manifest.chunks_mut(4096).filter(|slot| slot[0] != 0) {
            slot[12..16].copy_from_slice(&9_999_u32.to_le_bytes());
            let crc = crc32fast::hash(&slot[12..]);
            slot[8..12].copy_from_slice(&crc.to_le_bytes());
        }
        std::fs::write(&path, manifest).unwrap();
        let before = contents(&data);
        Server::refused(&data, &Flags::small())
            .await
            .expect(3, &["format", "9999"]);
        assert!(
            contents(&data) == before,
            "a refused start changed the directory"
        );
    });
}

#[test]
fn a_segment_of_another_store_is_refused() {
    run(async |scratch| {
        let (ours, theirs) = (scratch.path("ours"), scratch.path("theirs"));
        store_of_ten_commits(&ours, true).await;
        store_of_ten_commits(&theirs, true).await;
        let (foreign, _) = find(&theirs, b"<<marked value 0>>");
        let (own, _) = find(&ours, b"<<marked value 0>>");
        std::fs::copy(&foreign, &own).unwrap();
        let before = segments(&ours);
        let exit = Server::refused(&ours, &one_shard()).await;
        assert!(matches!(exit.code, Some(3 | 4)), "{exit:#?}");
        exit.expect(
            exit.code.unwrap(),
            &[own.file_name().unwrap().to_str().unwrap()],
        );
        assert!(
            segments(&ours) == before,
            "a refused start changed the segments"
        );
    });
}

/// Starts the server in a mount namespace of its own, after `mounts` (shell, with the data directory as `$1`). `None`
/// where this machine does not allow it, after saying so.
async fn refused_under(scratch: &Scratch, mounts: &str) -> Option<Exit> {
    let data = scratch.data();
    std::fs::create_dir_all(&data).unwrap();
    // SAFETY: geteuid takes nothing and cannot fail.
    let namespaces = if unsafe { libc::geteuid() } == 0 {
        "-m"
    } else {
        "-Urm"
    };
    let probe = Command::new("unshare")
        .args([namespaces, "sh", "-ec", mounts, "sh"])
        .arg(&data)
        .output();
    match probe {
        Err(error) => {
            skip(&format!("no unshare: {error}"));
            return None;
        }
        Ok(output) if !output.status.success() => {
            let said = String::from_utf8_lossy(&output.stderr);
            skip(&format!(
                "mounting in a namespace of its own is not possible here: {}",
                said.trim()
            ));
            return None;
        }
        Ok(_) => {}
    }
    let script = format!("{mounts}; shift; exec \"$@\"");
    let mut command = Command::new("unshare");
    command
        .args([namespaces, "sh", "-ec", &script, "sh"])
        .arg(&data);
    command
        .arg(env!("CARGO_BIN_EXE_orlopd"))
        .arg("--data")
        .arg(&data)
        .args(Flags::small().arguments());
    match Process::spawn_command(command).ready().await {
        Ok(_) => panic!("the server started under {mounts:?}"),
        Err(exit) => Some(exit),
    }
}

#[test]
fn a_read_only_directory_is_a_sentence() {
    run(async |scratch| {
        Server::start(&scratch.data(), &Flags::small())
            .await
            .stop()
            .await;
        let read_only = r#"mount --bind "$1" "$1" && mount -o remount,ro,bind "$1""#;
        if let Some(exit) = refused_under(scratch, read_only).await {
            exit.expect(5, &["read-only", scratch.data().to_str().unwrap()]);
        }
        Server::start(&scratch.data(), &Flags::small())
            .await
            .stop()
            .await;
    });
}

/// Shell that puts a directory of a file system in memory below the data directory. Through an overlay the server does
/// not see that it is memory, and meets what that file system can and cannot do.
fn overlay_on(kind_and_options: &str) -> String {
    format!(
        r#"mkdir -p "$1.memory" && mount -t {kind_and_options} none "$1.memory" && cd "$1.memory" && mkdir l u w &&
        mount -t overlay -o lowerdir=l,upperdir=u,workdir=w none "$1" && cd /"#
    )
}

/// Room for the manifest and not for the segments. Kernels before 6.6 refuse O_DIRECT on tmpfs: there the other
/// sentence comes first, and this is not tested.
#[test]
fn a_full_directory_is_a_sentence() {
    run(async |scratch| {
        if let Some(exit) = refused_under(scratch, &overlay_on("tmpfs -o size=1536k")).await {
            if exit.stderr.contains("O_DIRECT") {
                skip("tmpfs of this kernel does not take O_DIRECT");
                return;
            }
            exit.expect(5, &["segment-"]);
        }
    });
}

/// Not even room for the manifest.
#[test]
fn a_directory_without_a_single_free_block_is_a_sentence() {
    run(async |scratch| {
        let full = overlay_on("tmpfs -o size=16k")
            + r#" && ! head -c 1M /dev/zero > "$1/other" 2>/dev/null"#;
        if let Some(exit) = refused_under(scratch, &full).await {
            if exit.stderr.contains("O_DIRECT") {
                skip("tmpfs of this kernel does not take O_DIRECT");
                return;
            }
            exit.expect(5, &["no space", "free space"]);
        }
    });
}

#[test]
fn a_file_system_without_o_direct_is_a_sentence() {
    run(async |scratch| {
        if let Some(exit) = refused_under(scratch, &overlay_on("ramfs")).await {
            exit.expect(2, &["O_DIRECT", scratch.data().to_str().unwrap()]);
        }
    });
}

#[test]
fn a_directory_in_memory_is_a_sentence() {
    run(async |scratch| {
        for kind in ["tmpfs", "ramfs"] {
            if let Some(exit) =
                refused_under(scratch, &format!(r#"mount -t {kind} none "$1""#)).await
            {
                exit.expect(2, &["in memory", scratch.data().to_str().unwrap()]);
            }
        }
    });
}

#[test]
fn a_data_directory_that_is_a_file_is_a_sentence() {
    run(async |scratch| {
        std::fs::write(scratch.data(), "not a directory").unwrap();
        let exit = Server::refused(&scratch.data(), &Flags::small()).await;
        assert!(matches!(exit.code, Some(2 | 5)), "{exit:#?}");
        exit.expect(exit.code.unwrap(), &[scratch.data().to_str().unwrap()]);
    });
}
