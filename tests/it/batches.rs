//! Many keys in one call, and many calls on one connection: order, duplicates, one outcome for each.

use std::collections::BTreeSet;

use futures::future::try_join_all;
use orlop::client::{Change, Condition, Found, Mutation, Outcome};

use crate::harness::with_server;
use crate::operations::{found, version_of};
use crate::random::Random;

/// One mutation of a batch.
pub(crate) fn mutation<'a>(
    key: &'a [u8],
    change: Change<'a>,
    condition: Condition,
) -> Mutation<'a> {
    Mutation {
        key,
        change,
        condition,
    }
}

#[test]
fn get_many_answers_in_the_order_asked_duplicates_included() {
    with_server(async |server| {
        let client = server.client().await;
        let mut versions = Vec::new();
        for i in 0..100_u8 {
            versions.push(version_of(client.set(&[b'k', i], &[i]).await.unwrap()));
        }
        let seed = Random::seed();
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let asked: Vec<u8> = (0..500).map(|_| random.within(0..150) as u8).collect();
        let keys: Vec<[u8; 2]> = asked.iter().map(|&i| [b'k', i]).collect();
        let expected: Vec<Option<Found>> = asked
            .iter()
            .map(|&i| {
                versions
                    .get(usize::from(i))
                    .and_then(|&version| found(&[i], version))
            })
            .collect();
        assert_eq!(client.get_many(&keys).await.unwrap(), expected);
        assert_eq!(client.get_many::<&[u8]>(&[]).await.unwrap(), []);
    });
}

#[test]
fn a_batch_has_one_outcome_per_mutation_in_order() {
    with_server(async |server| {
        let client = server.client().await;
        let kept = version_of(client.set(b"kept", b"old").await.unwrap());
        let removed = version_of(client.set(b"removed", b"old").await.unwrap());
        let mutations = [
            mutation(b"new", Change::Set(b"1"), Condition::None),
            mutation(b"kept", Change::Set(b"2"), Condition::IfAbsent),
            mutation(b"removed", Change::Delete, Condition::IfVersion(removed)),
            mutation(b"absent", Change::Delete, Condition::None),
            mutation(b"absent", Change::Set(b"3"), Condition::IfPresent),
        ];
        let outcomes: Vec<Outcome> = client
            .write(&mutations)
            .await
            .unwrap()
            .into_iter()
            .map(Result::unwrap)
            .collect();
        assert_eq!(outcomes.len(), 5);
        assert!(
            matches!(outcomes[0], Outcome::Written { existed: false, .. }),
            "{outcomes:?}"
        );
        assert_eq!(
            outcomes[1],
            Outcome::Refused {
                current: Some(kept)
            }
        );
        assert!(
            matches!(outcomes[2], Outcome::Written { existed: true, .. }),
            "{outcomes:?}"
        );
        assert!(version_of(outcomes[2]) > removed);
        assert_eq!(
            outcomes[3],
            Outcome::Written {
                version: 0,
                existed: false
            }
        );
        assert_eq!(outcomes[4], Outcome::Refused { current: None });

        assert_eq!(
            client.get(b"new").await.unwrap(),
            found(b"1", version_of(outcomes[0]))
        );
        assert_eq!(client.get(b"kept").await.unwrap(), found(b"old", kept));
        assert_eq!(
            client
                .get_many(&[&b"removed"[..], b"absent"])
                .await
                .unwrap(),
            [None, None]
        );
        assert!(client.write(&[]).await.unwrap().is_empty());
    });
}

#[test]
fn mutations_of_one_key_in_a_batch_take_effect_in_their_order() {
    with_server(async |server| {
        let client = server.client().await;
        for key in (0..8_u8).map(|i| [b'k', i]) {
            let mutations = [
                mutation(&key, Change::Set(b"a"), Condition::IfAbsent),
                mutation(&key, Change::Set(b"b"), Condition::IfPresent),
                mutation(&key, Change::Set(b"c"), Condition::IfAbsent),
                mutation(&key, Change::Delete, Condition::None),
                mutation(&key, Change::Set(b"d"), Condition::IfPresent),
                mutation(&key, Change::Set(b"e"), Condition::IfAbsent),
            ];
            let outcomes: Vec<Outcome> = client
                .write(&mutations)
                .await
                .unwrap()
                .into_iter()
                .map(Result::unwrap)
                .collect();
            let (a, b) = (version_of(outcomes[0]), version_of(outcomes[1]));
            let (gone, e) = (version_of(outcomes[3]), version_of(outcomes[5]));
            assert!(a < b && b < gone && gone < e, "{outcomes:?}");
            assert_eq!(outcomes[2], Outcome::Refused { current: Some(b) });
            assert_eq!(outcomes[4], Outcome::Refused { current: None });
            assert_eq!(client.get(&key).await.unwrap(), found(b"e", e));
        }
    });
}

#[test]
fn calls_in_flight_together_are_all_answered() {
    with_server(async |server| {
        let client = server.client().await;
        let keys: Vec<[u8; 4]> = (0..2_000_u32).map(u32::to_be_bytes).collect();
        let outcomes = try_join_all(keys.iter().map(|key| client.set(key, key)))
            .await
            .unwrap();
        let versions: Vec<u64> = outcomes.into_iter().map(version_of).collect();
        let values = try_join_all(keys.iter().map(|key| client.get(key)))
            .await
            .unwrap();
        for ((key, version), value) in keys.iter().zip(&versions).zip(values) {
            assert_eq!(value, found(key, *version));
        }
        // Versions order the writes of a shard: no two are the same there.
        let stat = client.stat().await.unwrap();
        let distinct: BTreeSet<u64> = versions.into_iter().collect();
        assert!(
            distinct.len() * stat.shards.len() >= keys.len(),
            "{} versions",
            distinct.len()
        );
    });
}
