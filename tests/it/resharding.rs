//! Another number of shards: everything is served at once, and moved in the background.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use orlop::client::{Client, Outcome, Stat};

use crate::backup::{expect, orlop};
use crate::harness::{Content, Flags, Server, everything, report, run_for, until};
use crate::random::Random;

const KEYS: u64 = 3_000;

fn flags(shards: u16) -> Flags {
    Flags::small().with("--shards", shards)
}

/// Sets and deletes keys at random, and notes what was acknowledged.
async fn write_some(client: &Client, content: &mut Content, random: &mut Random, writes: usize) {
    let mut versions = 0;
    for _ in 0..writes / 100 {
        let keys: BTreeSet<u64> = (0..100).map(|_| random.within(0..KEYS)).collect();
        let writes = keys.into_iter().map(|key| {
            let name = format!("key/{key}").into_bytes();
            let value = (!random.one_in(4)).then(|| {
                let filler = random.within(0..2_000);
                random.bytes(filler as usize)
            });
            async move {
                let outcome = match &value {
                    Some(value) => client.set(&name, value).await.unwrap(),
                    None => client.delete(&name).await.unwrap(),
                };
                let Outcome::Written { version, .. } = outcome else {
                    panic!("refused without a condition: {outcome:?}")
                };
                (name, value, version)
            }
        });
        for (name, value, version) in join_all(writes).await {
            let before = match value {
                Some(value) => content.insert(name, (value, version)),
                None => content.remove(&name),
            };
            if let (Some((_, before)), true) = (before, version > 0) {
                assert!(version > before, "version {version} after {before}");
            }
            versions += 1;
        }
    }
    assert!(versions > 0);
}

/// Logs that there are files of.
fn logs(data: &Path) -> BTreeSet<String> {
    let names = std::fs::read_dir(data).unwrap().map(|entry| {
        let name = entry.unwrap().file_name();
        name.into_string().unwrap()
    });
    names
        .filter_map(|name| Some(name.strip_prefix("segment-")?.split('-').next()?.to_owned()))
        .collect()
}

/// Waits until nothing is left of other numbers of shards.
async fn moved(client: &Client) -> Stat {
    loop {
        let stat = client.stat().await.unwrap();
        if stat.foreign_segments == 0 {
            assert_eq!(stat.migrating_bytes, 0);
            return stat;
        }
    }
}

/// `orlopd verify` finds the directory whole, with so many keys.
fn verify(data: &Path, keys: usize) {
    assert_eq!(verified_keys(data), keys as u64);
}

/// Keys of a directory that `orlopd verify` finds whole.
fn verified_keys(data: &Path) -> u64 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orlopd"));
    let checked = command.args(["verify", "--json", "--data"]).arg(data);
    let output = checked.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let shards = value["shards"].as_array().unwrap();
    let keys = shards.iter().map(|shard| shard["keys"].as_u64().unwrap());
    keys.sum()
}

#[test]
fn every_number_of_shards_serves_what_another_wrote() {
    run_for(300, async |scratch| {
        let seed = Random::seed();
        report(&format!("resharding: seed {seed}"));
        let (data, mut random) = (scratch.data(), Random::new(seed));
        let mut content = Content::new();
        // Killed while it moves, stopped while it moves, and after all was moved; the last one goes back at once.
        for (round, shards) in [2, 3, 1, 4, 2, 2, 3, 2].into_iter().enumerate() {
            let server = Server::start(&data, &flags(shards)).await;
            let client = server.client().await;
            assert_eq!(server.shard_addresses().len(), usize::from(shards));
            assert!(
                everything(&client).await == content,
                "round {round} lost something"
            );
            write_some(&client, &mut content, &mut random, 1_500).await;
            match round % 3 {
                0 => drop(server.kill().await),
                1 => {
                    moved(&client).await;
                    let limit = Duration::from_secs(30);
                    until("the old files are gone", limit, async || {
                        logs(&data).len() == usize::from(shards)
                    })
                    .await;
                    assert!(everything(&client).await == content);
                    server.stop().await;
                    verify(&data, content.len());
                }
                _ => {
                    server.stop().await;
                    verify(&data, content.len());
                }
            }
        }
        let server = Server::start(&data, &flags(1)).await;
        assert!(everything(&server.client().await).await == content);
        server.stop().await;
    });
}

#[test]
fn deleted_keys_stay_deleted_while_and_after_everything_is_moved() {
    run_for(120, async |scratch| {
        let data = scratch.data();
        let server = Server::start(&data, &flags(3)).await;
        let client = server.client().await;
        let keys: Vec<_> = (0..2_000)
            .map(|key| format!("key/{key}").into_bytes())
            .collect();
        let value = [7; 700];
        join_all(
            keys.iter()
                .map(async |key| client.set(key, &value).await.unwrap()),
        )
        .await;
        join_all(
            keys[1_000..]
                .iter()
                .map(async |key| client.delete(key).await.unwrap()),
        )
        .await;
        server.kill().await;

        let server = Server::start(&data, &flags(2)).await;
        let client = server.client().await;
        join_all(
            keys[..500]
                .iter()
                .map(async |key| client.delete(key).await.unwrap()),
        )
        .await;
        server.kill().await;

        let server = Server::start(&data, &flags(4)).await;
        let client = server.client().await;
        assert_eq!(everything(&client).await.len(), 500);
        let stat = moved(&client).await;
        assert_eq!(stat.keys, 500);
        server.kill().await;

        let server = Server::start(&data, &flags(4)).await;
        assert_eq!(everything(&server.client().await).await.len(), 500);
        let stderr = server.stop().await.stderr;
        assert!(!stderr.contains("another number of shards"), "{stderr}");
    });
}

/// What a copy says of another number of shards has to be as whole as the rest: the old segments, who keeps them, and what
/// was moved already.
#[test]
fn a_copy_made_while_everything_is_moved_opens_with_every_number_of_shards() {
    run_for(120, async |scratch| {
        let seed = Random::seed();
        report(&format!("copy while resharding: seed {seed}"));
        let (data, mut random) = (scratch.data(), Random::new(seed));
        let server = Server::start(&data, &flags(2)).await;
        let client = server.client().await;
        let values = (0..400_u64).map(|key| (format!("cold/{key}"), random.bytes(60_000)));
        let values: Vec<_> = values.collect();
        let writes = values
            .iter()
            .map(|(key, value)| client.set(key.as_bytes(), value));
        try_join_all(writes).await.unwrap();
        server.stop().await;
        for (round, shards) in [3, 1, 4].into_iter().enumerate() {
            let old = logs(&data);
            let server = Server::start(&data, &flags(shards)).await;
            let client = server.client().await;
            let directory = scratch.path(&format!("copy-{round}"));
            let arguments = ["backup", directory.to_str().unwrap()];
            let made = expect(orlop(&server, &arguments), 0, vec![]);
            // Overwrites of moved and unmoved keys, before, behind and within the cut.
            let overwrites = async {
                for number in 0..200_u64 {
                    let key = format!("hot/{}", number % 20);
                    client
                        .set(key.as_bytes(), &number.to_le_bytes())
                        .await
                        .unwrap();
                }
            };
            futures::join!(made, overwrites);
            let content = everything(&client).await;
            server.stop().await;
            let both = logs(&directory).intersection(&old).count();
            report(&format!(
                "round {round}: {both} logs of the old number in the copy"
            ));
            assert!(both > 0, "nothing was left to move: the copy shows nothing");
            let found = verified_keys(&directory);
            for opened_with in [shards, 2] {
                let server = Server::start(&directory, &flags(opened_with)).await;
                let copied = everything(&server.client().await).await;
                assert_eq!(copied.len() as u64, found);
                for (key, value) in &values {
                    assert_eq!(&copied[key.as_bytes()].0, value, "{key}");
                }
                for (key, (_, version)) in &copied {
                    assert!(*version <= content[key].1, "newer than the server itself");
                }
                server.stop().await;
            }
        }
    });
}

#[test]
fn damage_in_what_another_number_of_shards_wrote_stops_the_start() {
    run_for(60, async |scratch| {
        let data = scratch.data();
        let server = Server::start(&data, &flags(2)).await;
        server
            .client()
            .await
            .set(b"key", &[7; 5_000])
            .await
            .unwrap();
        server.stop().await;
        let names = std::fs::read_dir(&data)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let mut flipped = Vec::new();
        for path in names.filter(|path| path.extension().is_some_and(|end| end == "log")) {
            let mut bytes = std::fs::read(&path).unwrap();
            if let Some(at) = bytes.windows(64).position(|window| window == [7; 64]) {
                bytes[at] ^= 1;
                std::fs::write(&path, bytes).unwrap();
                flipped.push(path.file_name().unwrap().to_str().unwrap().to_owned());
            }
        }
        assert_eq!(flipped.len(), 1);
        for shards in [1, 2, 3] {
            Server::refused(&data, &flags(shards))
                .await
                .expect(4, &["corruption", &flipped[0]]);
        }
    });
}

#[test]
fn a_manifest_of_an_earlier_time_is_refused() {
    run_for(60, async |scratch| {
        let (data, manifest) = (scratch.data(), scratch.data().join("manifest"));
        let mut manifests = Vec::new();
        for shards in [2, 3] {
            let server = Server::start(&data, &flags(shards)).await;
            let client = server.client().await;
            client.set(b"key", &[shards as u8]).await.unwrap();
            server.stop().await;
            manifests.push(std::fs::read(&manifest).unwrap());
        }
        // As if the last writes of the manifest had never been made: the log of three shards is not known, or is known as
        // one that has never served.
        let of_two = &manifests[0];
        let mut unserved = manifests[1].clone();
        let slots = [0, 4096].map(|at| unserved[at + 40..at + 48].to_vec());
        let newest = if u64_of(&slots[0]) > u64_of(&slots[1]) {
            0
        } else {
            4096
        };
        let slot = &mut unserved[newest..newest + 4096];
        slot[52] = 0;
        slot[64..68].copy_from_slice(&0_u32.to_le_bytes());
        slot[68..70].copy_from_slice(&2_u16.to_le_bytes());
        let crc = crc32fast::hash(&slot[12..]);
        slot[8..12].copy_from_slice(&crc.to_le_bytes());
        // Files of an unknown log are enough, whatever is in them: their numbers would be used again.
        let told = [(of_two, "does not know"), (&unserved, "corruption")];
        for (stale, word) in told {
            std::fs::write(&manifest, stale).unwrap();
            for shards in [2, 3, 4] {
                let refused = Server::refused(&data, &flags(shards)).await;
                // Another shard may miss its files first.
                refused.expect(4, &["corruption", word]);
                std::fs::write(&manifest, stale).unwrap();
            }
        }
        std::fs::write(&manifest, &manifests[1]).unwrap();
        let server = Server::start(&data, &flags(3)).await;
        let found = server.client().await.get(b"key").await.unwrap();
        assert_eq!(found.unwrap().value, [3]);
        server.stop().await;
    });
}

fn u64_of(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().unwrap())
}
