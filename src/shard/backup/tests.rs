//! Steps of a backup between two shards, in the orders that a client who gives up can bring about.

use super::*;
use crate::shard::tests::beside_two_shards;

#[test]
fn a_read_that_nobody_waits_for_any_more_may_come_after_its_cut_is_let_go() {
    beside_two_shards("backup", |shard| async move {
        let other = shard.placement.shards().last().expect("there are two");
        for backup in 0..100 {
            let ask = |ask| shard.call(other, Request::Backup { backup, ask }).unwrap();
            ask(BackupAsk::Pin).await.unwrap();
            let Ok(Reply::Backup(Ok(BackupAnswer::Cut(cut)))) = ask(BackupAsk::Cut).await else {
                panic!("a shard answers what it was asked")
            };
            let (_, place) = places_of((&other, &cut)).remove(0);
            // One batch: the other shard has all of them before its disk has read anything.
            let (read, unpin) = (ask(BackupAsk::Read(place)), ask(BackupAsk::Unpin));
            let (read, unpin) = futures::future::join(read, unpin).await;
            assert!(matches!(unpin, Ok(Reply::Backup(Ok(BackupAnswer::Done)))));
            let Ok(Reply::Backup(Ok(BackupAnswer::Read(bytes)))) = read else {
                panic!("a shard answers what it was asked")
            };
            assert_eq!(bytes.len(), place.len);
        }
    });
}
