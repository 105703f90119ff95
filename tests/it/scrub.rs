//! Damage behind the back of a running server is told by it, before a restart or a reader meets it.

use std::time::Duration;

use crate::damage::{find, flip, marked, one_shard};
use crate::harness::{Server, run, until};

#[test]
fn damage_in_a_sealed_segment_is_told_by_stat_and_log_while_the_server_serves() {
    run(async |scratch| {
        let flags = one_shard().with("--cache", 0).with("--scrub-rate", "4GiB");
        let server = Server::start(&scratch.data(), &flags).await;
        let client = server.client().await;
        for number in 0..1_000_u64 {
            let key = format!("key-{number}");
            client.set(key.as_bytes(), &marked(number)).await.unwrap();
        }
        assert!(client.stat().await.unwrap().shards[0].segments > 2);
        let limit = Duration::from_secs(60);
        let passes_of = async || client.stat().await.unwrap().scrub_passes;
        until("a pass over a whole store", limit, async || {
            passes_of().await > 0
        })
        .await;
        let stat = client.stat().await.unwrap();
        assert_eq!(stat.damaged_places, 0);
        assert!(stat.scrubbed_bytes > 2 << 20, "{stat:?}");
        assert!(!server.stderr().contains("ERROR"), "{}", server.stderr());

        let (path, offset) = find(&scratch.data(), &marked(7)[..30]);
        flip(&path, offset + 1_000, 3);
        until("the damage is found", limit, async || {
            client.stat().await.unwrap().damaged_places > 0
        })
        .await;
        let passes = passes_of().await;
        until("two more passes", limit, async || {
            passes_of().await > passes + 2
        })
        .await;
        let stat = client.stat().await.unwrap();
        assert_eq!((stat.damaged_places, stat.shards[0].damaged_places), (1, 1));

        // It goes on; only what is damaged is refused.
        assert!(client.get(b"key-7").await.is_err());
        assert_eq!(
            client.get(b"key-8").await.unwrap().unwrap().value,
            marked(8)
        );
        client.set(b"key-8", b"new").await.unwrap();
        let exit = server.stop().await;
        let lines: Vec<_> = exit
            .stderr
            .lines()
            .filter(|line| line.contains("the log is damaged"))
            .collect();
        assert_eq!(lines.len(), 1, "{}", exit.stderr);
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let told = |word: &str| lines[0].contains(word);
        assert!(told("ERROR") && told(&file), "{}", lines[0]);
        assert!(told("does not verify"), "{}", lines[0]);
    });
}

#[test]
fn a_rate_of_zero_reads_nothing() {
    run(async |scratch| {
        let flags = one_shard().with("--scrub-rate", 0);
        let server = Server::start(&scratch.data(), &flags).await;
        let client = server.client().await;
        for number in 0..1_000_u64 {
            let key = format!("key-{number}");
            client.set(key.as_bytes(), &marked(number)).await.unwrap();
        }
        let (path, offset) = find(&scratch.data(), &marked(7)[..30]);
        flip(&path, offset + 1_000, 3);
        // In as many writes the scrub at full rate makes passes (the test above).
        for number in 1_000..2_000_u64 {
            let key = format!("key-{number}");
            client.set(key.as_bytes(), &marked(number)).await.unwrap();
        }
        let stat = client.stat().await.unwrap();
        assert!(stat.shards[0].segments > 2, "{stat:?}");
        let scrubbed = (stat.scrubbed_bytes, stat.scrub_passes, stat.damaged_places);
        assert_eq!(scrubbed, (0, 0, 0));
        server.stop().await;
    });
}
