//! What became of the log's segments and files while the load ran: cuts prove nothing of compaction unless it worked.
//!
//! The counters of each life are asked for just before it ends, so they are a little low. The files are looked at when
//! the last life has ended: the numbers in their names are never given out twice, so one that is missing was removed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;

use orlop::client::Client;

use crate::load::Failure;

/// Over all lives of the server.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turnover {
    /// Segments that compaction emptied.
    retired: u64,
    /// Records that compaction copied.
    copied: u64,
    /// Segment files that are gone.
    removed: u64,
    /// Segment files of the end that had another use before.
    recycled: u64,
}

impl Turnover {
    /// Adds what a life did; call it at its end.
    pub(crate) async fn count_life(&mut self, client: &Client) -> Result<(), Failure> {
        for shard in client.stat().await?.shards {
            self.retired += shard.retired_segments;
            self.copied += shard.compacted_records;
        }
        Ok(())
    }

    /// Adds what the files of a directory tell that is not served any more.
    pub(crate) fn count_files(&mut self, orlopd: &Path, data: &Path) -> Result<(), String> {
        let mut command = Command::new(orlopd);
        command.arg("inspect").arg("--data").arg(data);
        let output = command
            .output()
            .map_err(|error| format!("cannot run {command:?}: {error}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{command:?}: {}", said.trim()));
        }
        (self.removed, self.recycled) = files(&String::from_utf8_lossy(&output.stdout));
        Ok(())
    }

    /// What did not happen, if anything: then the cuts would not have met it.
    pub(crate) fn missing(&self) -> Option<String> {
        let Turnover {
            retired,
            copied,
            removed,
            recycled,
        } = *self;
        [retired, copied, removed, recycled]
            .contains(&0)
            .then(|| format!("the load was too small to show anything of compaction: {self}"))
    }
}

impl fmt::Display for Turnover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} segments retired, {} records copied, {} files removed, {} files in use again",
            self.retired, self.copied, self.removed, self.recycled
        )
    }
}

/// How many files are gone and how many are used again, by what `orlopd inspect` says of those that are there.
fn files(inspected: &str) -> (u64, u64) {
    // The highest number and how many files there are, for each log.
    let mut logs: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    let mut recycled = 0;
    for line in inspected.lines() {
        let named = line
            .strip_prefix("segment-")
            .and_then(|rest| rest.split_once(".log: "))
            .and_then(|(name, rest)| Some((name.split_once('-')?, rest)));
        let Some(((log, number), rest)) = named else {
            continue;
        };
        let (highest, count) = logs.entry(log).or_default();
        *highest = number.parse().map_or(*highest, |one| (*highest).max(one));
        *count += 1;
        recycled += u64::from(rest.contains(", used before"));
    }
    let removed = logs.values().map(|(highest, count)| highest - count).sum();
    (removed, recycled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_gone_and_files_that_are_used_again_are_counted() {
        let inspected = "manifest: run 4\n\
            segment-0000-0000000003.log: 8192 bytes, segment 9 of shard 0, store 00, used before\n\
            segment-0000-0000000007.log: 8192 bytes, spare of shard 0, store 00\n\
            segment-0001-0000000002.log: 8192 bytes, segment 2 of shard 1, store 00, used before\n";
        assert_eq!(files(inspected), (6, 2));
        assert_eq!(files(""), (0, 0));
    }

    #[test]
    fn a_load_without_compaction_is_told() {
        let mut turnover = Turnover {
            retired: 1,
            copied: 2,
            removed: 3,
            recycled: 4,
        };
        assert_eq!(turnover.missing(), None);
        turnover.copied = 0;
        let text = turnover.missing().expect("nothing was copied");
        assert!(text.contains("1 segments retired, 0 records copied, 3 files removed, 4 files"));
    }
}
