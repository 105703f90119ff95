//! Every bound of the program, in one place: what a client may send, what a queue may hold, how long anything waits.
//!
//! A bound exists because something would otherwise grow without end or be trusted blindly; each has a test at the
//! limit. The ones that a client can meet are in `schema/orlop.capnp` as well, and in the answer to `info`.

/// Longest key, in bytes. Keys are 1 to this many bytes.
pub const KEY_LEN_MAX: usize = 65_535;

/// Longest value when `--max-value-size` does not say otherwise, in bytes.
pub const VALUE_LEN_MAX_DEFAULT: usize = 16 << 20;

/// What `--max-value-size` may be at most, in bytes. An answer that holds one value must stay well below the 64 MiB
/// at which stock Cap'n Proto peers drop the connection.
pub const VALUE_LEN_MAX: usize = 32 << 20;

/// Largest message that the server reads, in bytes: one value of the largest size, its key, and room for the
/// envelope. A larger one closes the connection: it cannot be skipped without reading it.
pub const MESSAGE_BYTES_MAX: usize = 40 << 20;

/// Largest message that the client reads, in bytes: what stock Cap'n Proto libraries accept.
pub const CLIENT_MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Keys in one `getMany`, mutations in one `write`.
pub const BATCH_MAX: usize = 10_000;

/// Keys and values in one answer of `getMany`, in bytes, unless a single value is larger.
pub const ANSWER_BYTES_MAX: usize = 32 << 20;

/// Entries in one page of `getPrefix`.
pub const PAGE_ENTRIES_MAX: usize = 100_000;

/// Keys and values in one page of `getPrefix`, in bytes; a page holds at least one entry, however large.
pub const PAGE_BYTES_MAX: usize = 16 << 20;

/// Keys and values in one push of `streamPrefix`, in bytes; a push holds at least one entry, however large.
pub const PUSH_BYTES_MAX: usize = 128 << 10;

/// Entries in one push of `streamPrefix`.
pub const PUSH_ENTRIES_MAX: usize = 1_024;

/// What an entry takes in a message beside its key and value, in bytes, at most: its struct, and what fills both up to
/// words.
pub const ENTRY_BYTES_MORE: usize = 40;

/// Bytes of the pushes of one `streamPrefix` that the sink has not answered yet, as they are in messages: while it is as
/// much there is no further push.
pub const PUSHED_BYTES_MAX: usize = 4 << 20;

/// Bytes of answers and pushes that the system has not taken yet, of all calls of a connection: while it is as much there is
/// no further push of any `streamPrefix`.
pub const CONNECTION_BYTES_AHEAD_MAX: usize = 256 << 10;

/// Calls of `streamPrefix` under way on one connection; further ones are answered `overloaded`.
pub const CONNECTION_STREAMS_MAX: usize = 16;

/// Characters of a sink's exception that become the reason of the call's.
pub const SINK_REASON_CHARS_MAX: usize = 1_024;

/// Bytes of one file in one chunk of a backup.
pub const BACKUP_CHUNK_BYTES_MAX: usize = 1 << 20;

/// Chunks of one backup that a shard reads ahead.
pub const BACKUP_READS_AHEAD: usize = 2;

/// Chunks of one backup that the sink has not answered yet.
pub const BACKUP_CHUNKS_IN_FLIGHT_MAX: usize = 4;

/// Backups that one shard runs for its clients at the same time; further ones are answered `overloaded`.
pub const BACKUPS_MAX: usize = 2;

/// How long the sink of a backup may take to answer, in seconds: what compaction retires meanwhile takes room.
pub const BACKUP_STALL_SECONDS_MAX: u64 = 60;

/// Connections of the whole server; the next one is closed at once.
pub const CONNECTIONS_MAX: usize = 8_192;

/// Calls in flight on one connection; further ones are answered `overloaded`. Below the 32,767 wakers of one task
/// that were a runtime's limit once.
pub const CONNECTION_CALLS_MAX: usize = 4_096;

/// Bytes of messages received on one connection and not yet answered. At the bound the connection is not read.
pub const CONNECTION_BYTES_IN_MAX: usize = 64 << 20;

/// Bytes of answers that one connection's peer has not read yet. At the bound the connection is not read. Large values among
/// them may keep twice their length in memory.
pub const CONNECTION_BYTES_OUT_MAX: usize = 64 << 20;

/// Questions of one connection that are not done with: calls without an answer, and answers that wait for their
/// `Finish`. Further ones are answered `overloaded`. Calls that are answered and need no `Finish` do not count.
pub const CONNECTION_QUESTIONS_MAX: usize = 4 * CONNECTION_CALLS_MAX;

/// Calls of which each waits for the answer of the one before: it is made on that answer, or has it as a parameter.
pub const PIPELINE_DEPTH_MAX: usize = 16;

/// Steps from an answer to the capability in it that a call is made on.
pub const PIPELINE_OPERATIONS_MAX: usize = 16;

/// Capabilities in one message.
pub const MESSAGE_CAPABILITIES_MAX: usize = 8;

/// Promises among the capabilities of one connection's peer that are in use; one more closes the connection.
pub const CONNECTION_PROMISES_MAX: usize = 1_024;

/// Largest message of a kind that the server does not know that it sends back, as the protocol wants, in bytes; a larger
/// one closes the connection.
pub const ECHO_BYTES_MAX: u64 = 4 << 10;

/// Bytes that one connection's calls have read from the disk, or collect for a page of `getPrefix`, and not yet made an
/// answer of; further calls wait. A page counts with what every shard may contribute to it; one that is over the bound
/// alone is collected alone.
pub const CONNECTION_READS_BYTES_MAX: usize = 64 << 20;

/// What `capnp_rpc` keeps for one question that is not done with, at most, in bytes.
pub const QUESTION_RESIDENT_BYTES_MAX: usize = 4 << 10;

/// Memory that one connection can make the server take, in bytes: what it received and not yet answered with one message
/// more, what it does not read, what is read for it, and its questions.
pub const CONNECTION_RESIDENT_BYTES_MAX: usize = CONNECTION_BYTES_IN_MAX
    + MESSAGE_BYTES_MAX
    + CONNECTION_BYTES_OUT_MAX
    + CONNECTION_READS_BYTES_MAX
    + CONNECTION_QUESTIONS_MAX * QUESTION_RESIDENT_BYTES_MAX;

/// How long a peer may take to finish a message that it began, or to read anything of what waits for it, in seconds.
pub const PEER_STALL_SECONDS_MAX: u64 = 30;

/// What a peer must at least send of a begun message, or read of what waits for it, in that time, in bytes, unless it
/// gets to the end: a peer that trickles holds a connection like one that is silent.
pub const PEER_STALL_BYTES_MIN: u64 = 64 << 10;

/// Bytes of writes that a shard has accepted and not yet made durable; further ones are answered `overloaded`.
pub const SHARD_PENDING_BYTES_MAX: usize = 128 << 20;

/// Requests that one shard may have outstanding at another; further ones are answered `overloaded`.
pub const MESH_IN_FLIGHT_MAX: usize = 8_192;

/// Bytes of keys and values that one shard may have outstanding at another.
pub const MESH_BYTES_IN_FLIGHT_MAX: usize = 128 << 20;

/// Bytes of values that one shard has read for another one, or for a `getMany` of its own, and that are not in an answer
/// yet; further reads wait. More than this is read alone.
pub const MESH_READS_BYTES_MAX: usize = 32 << 20;

/// Reads of fewer bytes do not count: they are bounded by their number, [`CONNECTION_CALLS_MAX`] or
/// [`MESH_IN_FLIGHT_MAX`].
pub const READ_COUNTED_BYTES_MIN: usize = 16 << 10;

/// Log lines that wait to be written to standard error; further ones are dropped and counted.
pub const LOG_LINES_MAX: usize = 8_192;

/// Connections that the kernel keeps for a listening socket until they are accepted.
pub const ACCEPT_BACKLOG_MAX: i32 = 1_024;

/// Silence on a connection after which the kernel asks whether the peer still lives, in seconds.
pub const KEEPALIVE_IDLE_SECONDS: u64 = 60;

/// Time between two such questions, in seconds.
pub const KEEPALIVE_PROBE_SECONDS: u64 = 15;

/// Such questions without an answer that end a connection.
pub const KEEPALIVE_PROBES: u32 = 4;

/// How long an ended connection waits for the peer to take the last answers, in milliseconds.
pub const LINGER_MS_MAX: u64 = 500;

/// How long a start waits for somebody who listens where the server wants to, in milliseconds: the sockets of a killed
/// server may listen for some time after its end.
pub const LISTENER_WAIT_MS_MAX: u64 = 3_000;

/// Dead bytes of a shard's log that compaction leaves alone whatever their share, in segments: a small log has more files
/// than that ready, and soon so much more of it is dead that there is little to copy.
pub const DEAD_SEGMENTS_MIN: u64 = 2;

/// What the background reads of sealed segments may take when `--scrub-rate` does not say otherwise, in bytes per second
/// over all shards.
pub const SCRUB_RATE_DEFAULT: u64 = 8 << 20;

/// How long one pass over all sealed segments takes, in seconds, if the rate for that is between `--scrub-rate` and the
/// [`SCRUB_RATE_MIN_DIVISOR`]th of it.
pub const SCRUB_PASS_SECONDS: u64 = 24 * 60 * 60;

/// The least rate of those reads is the greatest one divided by this: a small store is through earlier.
pub const SCRUB_RATE_MIN_DIVISOR: u64 = 128;

/// Damaged places of one shard that are remembered and counted; a damaged disk has no end of them.
pub const SCRUB_PLACES_MAX: usize = 1_024;

/// Damaged places of one shard that have a log line each; further ones are counted.
pub const SCRUB_LINES_MAX: usize = 64;

/// Shards of one server.
pub const SHARDS_MAX: usize = 1_024;

/// How long a stop waits for what was submitted to be answered, in seconds.
pub const DRAIN_SECONDS_MAX: u64 = 20;

/// Heartbeat of every executor, in milliseconds: the runtime can park with runnable work, a timer bounds the sleep.
pub const HEARTBEAT_MS: u64 = 5;

/// A shard whose heartbeat is older than this is hung: the process is aborted, because recovery is cheap. In seconds.
pub const WATCHDOG_SECONDS_MAX: u64 = 60;
