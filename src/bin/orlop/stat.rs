//! The server's counters as people, lines or JSON want them. Every field of the client's `Stat` is shown: the lists
//! below take the structures apart completely, so that a new field does not compile until it is here.

use std::io::{self, Write};

use orlop::client::{ShardStat, Stat};
use serde_json::{Map, Value};

use crate::show::{self, Style};

/// One field: its name in the schema and its value.
type Field = (&'static str, Value);

/// The fields of a structure by name, in the schema's order.
macro_rules! fields {
    ($type:ident, $from:expr; $($name:ident),+ ; $($other:ident),+) => {{
        let $type { $($name,)+ $($other,)+ } = $from;
        (vec![$((stringify!($name), Value::from(*$name))),+], ($($other,)+))
    }};
}

fn server_fields(stat: &Stat) -> Vec<Field> {
    let (numbers, (server_version, store_uuid, _shards)) = fields!(
        Stat, stat;
        started_at_unix_ms, uptime_ms, sets, gets, deletes, get_prefixes, forwarded, keys, logical_bytes, disk_live_bytes, disk_tombstone_bytes, disk_dead_bytes, disk_allocated_bytes, compacted_bytes, cache_bytes, cache_budget_bytes, cache_hits, cache_misses, index_bytes, resident_bytes, connections, recovery_ms, recovered_records, scrubbed_bytes, scrub_passes, damaged_places, foreign_segments, migrating_bytes;
        server_version, store_uuid, shards
    );
    let uuid = show::hexadecimal(store_uuid, "");
    let mut fields = vec![
        ("server_version", Value::from(server_version.as_str())),
        ("store_uuid", Value::from(uuid)),
    ];
    fields.extend(numbers);
    fields
}

fn shard_fields(stat: &ShardStat) -> Vec<Field> {
    let (mut fields, (warming, out_of_space)) = fields!(
        ShardStat, stat;
        shard, keys, sets, gets, deletes, get_prefixes, forwarded, queue_depth, queue_bytes, commits, commit_records, commit_bytes, commit_p50_us, commit_p99_us, commit_max_us, stall_max_us, last_version, segments, logical_bytes, disk_live_bytes, tombstones, disk_tombstone_bytes, disk_dead_bytes, disk_allocated_bytes, compacted_records, compacted_bytes, retired_segments, cache_bytes, cache_budget_bytes, cache_hits, cache_misses, index_bytes, recovery_ms, recovered_records, warmed_bytes, warm_total_bytes, connections, recovered_bytes, scrubbed_bytes, scrub_passes, damaged_places, foreign_segments, migrating_bytes;
        warming, out_of_space
    );
    fields.push(("warming", Value::from(*warming)));
    fields.push(("out_of_space", Value::from(*out_of_space)));
    fields
}

pub(crate) fn show(
    stat: &Stat,
    json: bool,
    style: Style,
    output: &mut dyn Write,
) -> io::Result<()> {
    if json {
        return show_json(stat, style, output);
    }
    if style.human {
        return show_human(stat, output);
    }
    for (name, value) in server_fields(stat) {
        writeln!(output, "{name}\t{}", plain(&value))?;
    }
    for (index, shard) in stat.shards.iter().enumerate() {
        for (name, value) in shard_fields(shard) {
            writeln!(output, "shard.{index}.{name}\t{}", plain(&value))?;
        }
    }
    Ok(())
}

fn show_json(stat: &Stat, style: Style, output: &mut dyn Write) -> io::Result<()> {
    let object = |fields: Vec<Field>| -> Map<String, Value> {
        fields
            .into_iter()
            .map(|(name, value)| (name.to_string(), value))
            .collect()
    };
    let mut whole = object(server_fields(stat));
    let shards = stat
        .shards
        .iter()
        .map(|shard| Value::from(object(shard_fields(shard))))
        .collect::<Vec<_>>();
    whole.insert("shards".to_string(), Value::from(shards));
    let whole = Value::from(whole);
    if style.human {
        writeln!(output, "{whole:#}")
    } else {
        writeln!(output, "{whole}")
    }
}

fn show_human(stat: &Stat, output: &mut dyn Write) -> io::Result<()> {
    let server = server_fields(stat);
    let shards: Vec<Vec<Field>> = stat.shards.iter().map(shard_fields).collect();
    let names = server
        .iter()
        .chain(shards.first().into_iter().flatten())
        .map(|(name, _)| label(name).len());
    let width = names.max().unwrap_or(0);
    for (name, value) in &server {
        writeln!(output, "{:width$}  {}", label(name), human(name, value))?;
    }
    let Some(first) = shards.first() else {
        return Ok(());
    };
    writeln!(output)?;
    for (row, (name, _)) in first.iter().enumerate() {
        write!(output, "{:width$}", label(name))?;
        for (stat, shard) in stat.shards.iter().zip(&shards) {
            let shown = match *name {
                "warming" => warming(stat),
                _ => human(name, &shard[row].1),
            };
            write!(output, "  {shown:>12}")?;
        }
        writeln!(output)?;
    }
    Ok(())
}

/// How much of what a start brings back into memory is there.
fn warming(stat: &ShardStat) -> String {
    match (stat.warming, stat.warm_total_bytes) {
        (false, _) => "no".to_string(),
        (true, 0) => "yes".to_string(),
        (true, total) => format!("{:.0} %", stat.warmed_bytes as f64 * 100.0 / total as f64),
    }
}

fn label(name: &str) -> String {
    let name = match name {
        "started_at_unix_ms" => "started",
        _ => ["_ms", "_us"]
            .iter()
            .find_map(|unit| name.strip_suffix(unit))
            .unwrap_or(name),
    };
    name.replace('_', " ")
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_string)
}

/// A value for people, by what the end of its name says that it is.
fn human(name: &str, value: &Value) -> String {
    let Some(number) = value.as_u64() else {
        return match value {
            Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_string(),
            _ => plain(value),
        };
    };
    match name.rsplit_once('_').map_or(name, |(_, last)| last) {
        _ if name == "started_at_unix_ms" => show::time(number),
        "bytes" => show::size(number),
        "ms" => show::duration(number.saturating_mul(1000)),
        "us" => show::duration(number),
        _ => show::count(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat() -> Stat {
        let shard = ShardStat {
            shard: 1,
            commit_p99_us: 1_700,
            queue_bytes: 2_048,
            warming: true,
            warmed_bytes: 370,
            warm_total_bytes: 1_000,
            damaged_places: 3,
            ..ShardStat::default()
        };
        Stat {
            server_version: "1.2.3".to_string(),
            started_at_unix_ms: 1_795_363_809_000,
            uptime_ms: 61_000,
            sets: 1_234_567,
            get_prefixes: 5,
            logical_bytes: 1_536,
            store_uuid: vec![0xab; 16],
            shards: vec![ShardStat::default(), shard],
            ..Stat::default()
        }
    }

    fn shown(json: bool, human: bool) -> String {
        let mut output = Vec::new();
        show(&stat(), json, Style { human }, &mut output).unwrap();
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn plain_lines_have_a_name_and_a_number() {
        let shown = shown(false, false);
        let expected = [
            "server_version\t1.2.3",
            "sets\t1234567",
            "logical_bytes\t1536",
            "shard.1.commit_p99_us\t1700",
            "shard.1.warming\ttrue",
        ];
        for line in expected {
            assert!(
                shown.lines().any(|shown| shown == line),
                "{line} in:\n{shown}"
            );
        }
        assert!(shown.lines().all(|line| line.split('\t').count() == 2));
    }

    #[test]
    fn json_has_every_field_and_the_shards() {
        let shown = shown(true, false);
        assert_eq!(shown.lines().count(), 1);
        let value: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(value["sets"], 1_234_567);
        assert_eq!(value["store_uuid"], "ab".repeat(16));
        assert_eq!(value["shards"][1]["queue_bytes"], 2_048);
        assert_eq!(value["shards"][1]["warming"], true);
        assert_eq!(value.as_object().unwrap().len(), 31);
        assert_eq!(value["shards"][0].as_object().unwrap().len(), 45);
    }

    #[test]
    fn people_see_sizes_times_and_shards_side_by_side() {
        let shown = shown(false, true);
        let line = |label: &str| -> Vec<String> {
            let line = shown
                .lines()
                .find(|line| line.starts_with(&format!("{label}  ")));
            let line = line.unwrap_or_else(|| panic!("{label} in:\n{shown}"));
            line.split("  ")
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .map(str::to_string)
                .collect()
        };
        assert_eq!(line("started")[1], "2026-11-22 16:10:09 UTC");
        assert_eq!(line("uptime")[1], "1 min 1 s");
        assert_eq!(line("sets")[1], "1,234,567");
        assert_eq!(line("logical bytes")[1], "1.5 KiB");
        assert_eq!(line("commit p99")[1..], ["0 us", "1.7 ms"]);
        assert_eq!(line("warming")[1..], ["no", "37 %"]);
        let without_values = ShardStat {
            warming: true,
            ..ShardStat::default()
        };
        assert_eq!(warming(&without_values), "yes");
    }
}
