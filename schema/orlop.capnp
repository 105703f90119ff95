@0x96ee996909dd309a;
# The wire contract of orlop, and its manual.
#
# Connect over TCP or a unix socket, take the bootstrap capability (`Bootstrap`), call `open` and use the `Store`
# that it returns; `open(..).store.get(key)` pipelines, so the first answer takes one round trip.
#
# Promise: an answer to a write is sent after the write is durable (it survives power loss), and no answer ever
# shows a value that can still be lost.
#
# Limits (the values in force are in `ServerInfo.limits`):
#   key             1 to 65535 bytes, any bytes
#   value           0 to 16 MiB by default, at most 32 MiB (`orlopd --max-value-size`)
#   message         at most 40 MiB; a larger one closes the connection
#
# Errors are Cap'n Proto exceptions. The reason starts with one of these words, then a colon and a sentence that
# names the value given and the limit:
#   invalidArgument   the call can never succeed as it is                   (type failed)
#   overloaded        a budget is used up; nothing was done; try later      (type overloaded)
#   outOfSpace        the disk is full; nothing was written; reads go on    (type failed)
#   shuttingDown      the server is stopping; reconnect                     (type disconnected)
#   corrupt           what the disk returned does not verify                (type failed)
# A connection that breaks between a write and its answer leaves the outcome unknown: the write is there whole or
# not at all. Repeat it with `ifVersion`, or read first.
#
# This file imports nothing and uses no `-> stream`, so that every tool of every language can load it alone.
# Evolution: fields and methods are only ever added; ordinals are never reused.

interface Bootstrap @0xe6862e4f9a08a854 {
  # The bootstrap capability. Not named `Server`: C++ cannot compile an interface of that name. Its id is that of its
  # first name, so that the wire is the same.

  open @0 (credential :Data) -> (store :Store);
  # The store. Authentication is not configured in this version: any credential opens, empty included.

  info @1 () -> (info :ServerInfo);
  # What a client may need before it starts: limits, and where keys live.
}

interface Store {
  # The data. Every method may be called on any connection, whichever shard owns the key.

  get @0 (key :Data) -> (lookup :Lookup);
  # The newest durable value of `key`. An absent key is an answer, not an error.

  set @1 (key :Data, value :Data, condition :Condition) -> (outcome :Outcome);
  # Writes `value` if `condition` holds. Answered when durable. Calls that are in flight at the same time on different
  # keys may take effect in any order; those on one key take effect in the order in which its shard received them.

  delete @2 (key :Data, condition :Condition) -> (outcome :Outcome);
  # Removes `key` if `condition` holds. Answered when durable. Deleting an absent key is no error: the outcome is
  # `written` with version 0 (nothing had to be written) and `existed` is false.

  getMany @3 (keys :List(Data)) -> (lookups :List(Lookup));
  # One lookup per key, in the order of `keys`; each is as if by `get`, not one snapshot. At most 10000 keys, and
  # the answer at most 32 MiB of keys and values: ask for fewer keys beyond that.

  write @4 (mutations :List(Mutation)) -> (outcomes :List(Outcome));
  # Many sets and deletes in one message, one outcome each, in order; each is durable on its own (no transaction)
  # and the call is answered when all are. Mutations of the same key take effect in their order. At most 10000.
  # If any of them is invalid the call fails and none is written.

  getPrefix @5 (prefix :Data, after :Data, maxEntries :UInt32 = 1000, maxBytes :UInt32 = 1048576, keysOnly :Bool)
      -> (entries :List(Entry), more :Bool);
  # The keys that start with `prefix` (empty: all keys), ordered bytewise over all shards, from the first one that
  # is greater than `after` (empty: from the start). Resume with `after` = the last key received while `more`.
  # `maxEntries`: 1 to 100000. `maxBytes` (keys and values together): 1 to 16777216; a page holds at least one
  # entry, however large. Each entry is durable; a page is not a snapshot of writes that happen meanwhile.

  streamPrefix @6 (prefix :Data, sink :EntrySink, keysOnly :Bool) -> (count :UInt64);
  # All entries of `prefix`, in order, pushed to `sink` in batches of at most 128 KiB (or one entry) as long as
  # those unanswered are less than 4 MiB, and as the connection takes them. Returns the number of entries when the sink has
  # answered the last push.
  # Dropping the call stops the scan; an exception from the sink ends the call with that exception.

  stat @7 () -> (stat :Stat);
  # Counters and sizes of the whole server and of each shard.

  backup @8 (sink :BackupSink) -> (files :UInt32, bytes :UInt64);
  # A copy of the store while it serves, file by file, to `sink`, with at most 4 calls of it unanswered. Written into a
  # directory, each file filled up with zeros to its full length, it opens as a store. It holds every write that was
  # answered before the call, and of each shard a prefix of the order of its writes; whether later ones are in it is
  # open. Returns the number of files and of their bytes when the sink has answered everything. Dropping the call stops
  # the copy, and so does a sink that does not answer for a minute (`overloaded`); an exception from the sink ends the
  # call with that exception. While a copy is made, compaction gives no space back.
}

interface BackupSink {
  # Its methods are called in order. Answer when the part is dealt with: the answer lets the server send more.

  begin @0 (outline :BackupOutline) -> ();
  # Once, first.

  file @1 (name :Text, bytes :UInt64, fullBytes :UInt64) -> ();
  # The next file, of `bytes` bytes, which come in chunks. In a directory that is served it must have `fullBytes`: what
  # is behind `bytes` is zeros. The last file is `manifest`: a directory without it is no store.

  chunk @2 (data :Data) -> ();
  # The next bytes of the file, at most 1 MiB.
}

struct BackupOutline {
  storeUuid @0 :Data;
  formatVersion @1 :UInt32;
  # Of the files: see src/storage/FORMAT.md.
  placement @2 :Placement;
  files @3 :UInt32;
  bytes @4 :UInt64;
  # Of all files, without what they are filled up with.
  shards @5 :List(BackupShard);
}

struct BackupShard {
  shard @0 :UInt32;
  lastVersion @1 :UInt64;
  # The last version that is in the copy.
  files @2 :UInt32;
  bytes @3 :UInt64;
}

interface EntrySink {
  push @0 (entries :List(Entry)) -> ();
  # Called in order. Answer when the batch is dealt with: the answer lets the server send more.
}

struct Condition {
  # When a write takes effect. It is judged against the newest version of the key, also one that is not durable
  # yet; the answer waits until that version is durable.
  union {
    none @0 :Void;
    ifAbsent @1 :Void;
    ifPresent @2 :Void;
    ifVersion @3 :UInt64;
    # The key is present with exactly this version.
  }
}

struct Lookup {
  union {
    absent @0 :Void;
    found :group {
      value @1 :Data;
      version @2 :UInt64;
    }
  }
}

struct Mutation {
  key @0 :Data;
  union {
    set @1 :Data;
    # The value.
    delete @2 :Void;
  }
  condition @3 :Condition;
}

struct Outcome {
  union {
    written :group {
      version @0 :UInt64;
      # The version of what was written: greater than every earlier version of this key, for ever. 0 when a delete
      # found nothing to delete.
    }
    refused :group {
      current @1 :UInt64;
      # The condition did not hold. The version that stands in the way; 0: the key is absent.
    }
    failed @2 :Text;
    # Only in answers to `write`: this mutation was not written; the reason as an exception would give it.
  }
  existed @3 :Bool;
  # Whether the key was present just before.
}

struct Entry {
  key @0 :Data;
  value @1 :Data;
  # Empty with `keysOnly`.
  version @2 :UInt64;
}

struct ServerInfo {
  serverVersion @0 :Text;
  storeUuid @1 :Data;
  # 16 bytes, made at random when the directory was created.
  limits @2 :Limits;
  placement @3 :Placement;
  shardPorts @4 :List(UInt16);
  # The TCP port of each shard, in shard order, on the address that the client reached the server by. A connection
  # to it is served by that shard's core. Any connection serves any key; the ports only save a hop.
}

struct Limits {
  keyBytesMax @0 :UInt32;
  valueBytesMax @1 :UInt32;
  messageBytesMax @2 :UInt32;
  batchMax @3 :UInt32;
  # Keys in a `getMany`, mutations in a `write`.
  pageEntriesMax @4 :UInt32;
  pageBytesMax @5 :UInt32;
  answerBytesMax @6 :UInt32;
  # Keys and values in one answer of `getMany`.
  connectionCallsMax @7 :UInt32;
  # Calls in flight on one connection; more are answered `overloaded`.
}

struct Placement {
  hash @0 :Text;
  # "xxh3-64": XXH3 with 64-bit result, seeded.
  seed @1 :UInt64;
  shardCount @2 :UInt32;
  # The owner of a key is (hash(key, seed) * shardCount) >> 64, a 128-bit product.
}

struct Stat {
  serverVersion @0 :Text;
  startedAtUnixMs @1 :UInt64;
  uptimeMs @2 :UInt64;
  sets @3 :UInt64;
  # Since the start, by keys: a `write` of three sets counts three, a `getMany` of ten keys counts ten.
  gets @4 :UInt64;
  deletes @5 :UInt64;
  getPrefixes @6 :UInt64;
  # Calls of `getPrefix` and `streamPrefix`.
  keys @7 :UInt64;
  logicalBytes @8 :UInt64;
  # Keys and values that are present.
  diskLiveBytes @9 :UInt64;
  # Records on disk that are the newest of a present key.
  diskDeadBytes @10 :UInt64;
  # What compaction can win back: overwritten and deleted records, headers, padding.
  diskAllocatedBytes @11 :UInt64;
  # Size of all segment files, those for segments to come included.
  cacheBytes @12 :UInt64;
  cacheBudgetBytes @13 :UInt64;
  cacheHits @14 :UInt64;
  cacheMisses @15 :UInt64;
  indexBytes @16 :UInt64;
  # Memory of the hash and ordered indexes, keys included.
  residentBytes @17 :UInt64;
  # Of the process, as the kernel counts it.
  connections @18 :UInt32;
  recoveryMs @19 :UInt64;
  # From the start of the process to the ready line.
  recoveredRecords @20 :UInt64;
  storeUuid @21 :Data;
  shards @22 :List(ShardStat);
  diskTombstoneBytes @23 :UInt64;
  # Deletes that must stay on disk, because an older record of the key may still be there.
  compactedBytes @24 :UInt64;
  # Records that compaction has copied since the start.
  scrubbedBytes @25 :UInt64;
  # Bytes of sealed segments that were read again and checked in the background since the start.
  scrubPasses @26 :UInt64;
  # How often since the start all shards have read all their sealed segments.
  damagedPlaces @27 :UInt64;
  # Damaged places of the log that this found. A restart is refused while there are any; the log names each.
  foreignSegments @28 :UInt64;
  # Segments of the log that were written under another number of shards. 0: nothing is left of it.
  migratingBytes @29 :UInt64;
  # Records that are present and still in such segments: they are moved out in the background.
  forwarded @30 :UInt64;
  # Since the start, by keys: gets, sets and deletes that came by another shard's connection than their key's owner's.
}

struct ShardStat {
  shard @0 :UInt32;
  keys @1 :UInt64;
  sets @2 :UInt64;
  gets @3 :UInt64;
  deletes @4 :UInt64;
  getPrefixes @5 :UInt64;
  queueDepth @6 :UInt64;
  # Writes accepted and not yet durable.
  queueBytes @7 :UInt64;
  commits @8 :UInt64;
  # Frames written: one device write each.
  commitRecords @9 :UInt64;
  commitBytes @10 :UInt64;
  # Of frames, headers and padding included.
  commitP50Us @11 :UInt64;
  commitP99Us @12 :UInt64;
  commitMaxUs @13 :UInt64;
  stallMaxUs @14 :UInt64;
  # The longest that this shard's executor was late for its heartbeat.
  lastVersion @15 :UInt64;
  segments @16 :UInt32;
  logicalBytes @17 :UInt64;
  diskLiveBytes @18 :UInt64;
  diskDeadBytes @19 :UInt64;
  diskAllocatedBytes @20 :UInt64;
  cacheBytes @21 :UInt64;
  cacheBudgetBytes @22 :UInt64;
  cacheHits @23 :UInt64;
  cacheMisses @24 :UInt64;
  indexBytes @25 :UInt64;
  recoveryMs @26 :UInt64;
  recoveredRecords @27 :UInt64;
  warmedBytes @28 :UInt64;
  # Values brought back into memory after the start.
  warming @29 :Bool;
  outOfSpace @30 :Bool;
  connections @31 :UInt32;
  recoveredBytes @32 :UInt64;
  tombstones @33 :UInt64;
  # Deleted keys whose delete must stay on disk.
  diskTombstoneBytes @34 :UInt64;
  compactedRecords @35 :UInt64;
  compactedBytes @36 :UInt64;
  retiredSegments @37 :UInt64;
  # Segments that compaction has emptied since the start.
  scrubbedBytes @38 :UInt64;
  # Bytes of sealed segments that were read again and checked in the background since the start.
  scrubPasses @39 :UInt64;
  # How often all sealed segments were.
  damagedPlaces @40 :UInt64;
  # Damaged places of the log that this found; at most 1024 are counted.
  warmTotalBytes @41 :UInt64;
  # What `warmedBytes` is on its way to while `warming`: the values that were present at the start, as far as there is
  # room for them.
  foreignSegments @42 :UInt32;
  # Segments that were written under another number of shards and that this shard keeps until no shard needs them.
  migratingBytes @43 :UInt64;
  # Records of this shard in such segments, whoever keeps them.
  forwarded @44 :UInt64;
  # Keys of gets, sets and deletes that arrived on this shard's connections and went on to their owner.
}
