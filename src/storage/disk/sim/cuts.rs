//! Every state that a power cut may leave at one moment, where `crash` answers with one of them.
//!
//! Each change that is not durable is absent, whole or torn at [`SECTOR`]s, independently of the others: all subsets of
//! the sectors that it changes where these are few, else a systematic choice of subsets. A name that was created or
//! removed is so or not. The length of a file that was growing travels apart from its data.
//!
//! Changes of one file apply in the order of issue. Called by the tests that leave nothing to chance.

use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;

use super::inode::{Change, apply};
use super::{Image, SECTOR};

/// Sectors that a write changes, up to which every subset of them is tried.
const EVERY_SUBSET_SECTORS_MAX: usize = 8;
/// The same for every prefix and suffix.
const EVERY_PREFIX_SECTORS_MAX: usize = 64;

/// How finely writes are torn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tearing {
    Fine,
    Coarse,
}

/// One content that a file may have.
#[derive(Clone)]
pub(super) struct Content {
    digest: u64,
    bytes: Rc<Vec<u8>>,
}

impl Content {
    pub(super) fn of(bytes: Rc<Vec<u8>>) -> Self {
        Self {
            digest: digest(&bytes),
            bytes,
        }
    }
}

/// The contents that each of several files may have.
type Files = Vec<(Rc<str>, Rc<Vec<Content>>)>;

/// The states that a power cut may leave.
pub struct Cuts {
    /// For each way in which the names may come out.
    ways: Vec<Files>,
    /// Some write was torn in fewer ways than it could have been, to stay within the limit that was asked for.
    pub bounded: bool,
}

impl Cuts {
    /// For each way in which names may come out, the contents of the files that they mean.
    pub(super) fn new(ways: Vec<BTreeMap<Rc<str>, Rc<Vec<Content>>>>, bounded: bool) -> Self {
        Self {
            ways: ways
                .into_iter()
                .map(|files| files.into_iter().collect())
                .collect(),
            bounded,
        }
    }

    /// How many there are. A few may be alike.
    pub fn count(&self) -> usize {
        let of_way = |files: &Files| {
            files.iter().fold(1_usize, |count, (_, contents)| {
                count.saturating_mul(contents.len())
            })
        };
        self.ways.iter().map(of_way).fold(0, usize::saturating_add)
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = Cut<'_>> {
        self.ways.iter().flat_map(|files| {
            let count: usize = files.iter().map(|(_, contents)| contents.len()).product();
            (0..count).map(move |number| Cut { files, number })
        })
    }
}

/// One state.
pub struct Cut<'a> {
    files: &'a Files,
    /// Which content of each file, in mixed radix.
    number: usize,
}

impl Cut<'_> {
    fn files(&self) -> impl Iterator<Item = (&Rc<str>, &Content)> {
        let mut rest = self.number;
        self.files.iter().map(move |(name, contents)| {
            let content = &contents[rest % contents.len()];
            rest /= contents.len();
            (name, content)
        })
    }

    /// The same for the same names and bytes, and practically never for others.
    pub fn digest(&self) -> u64 {
        self.files().fold(0, |sum, (name, content)| {
            mix(mix(sum ^ digest(name.as_bytes())) ^ content.digest)
        })
    }

    /// The files.
    pub fn image(&self) -> Image {
        Image::of_shared(
            self.files()
                .map(|(name, content)| (name.to_string(), Rc::clone(&content.bytes)))
                .collect(),
        )
    }
}

fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let word = (word ^ (word >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    word ^ (word >> 32)
}

fn digest(bytes: &[u8]) -> u64 {
    let (mut sum, mut zeros) = (mix(bytes.len() as u64), 0_u64);
    let (sectors, rest) = bytes.as_chunks::<SECTOR>();
    for sector in sectors {
        // Most of a segment is zeros, which only count.
        if *sector == [0; SECTOR] {
            zeros += 1;
            continue;
        }
        sum = mix(sum ^ zeros);
        for word in sector.as_chunks::<8>().0 {
            sum = (sum.rotate_left(23) ^ u64::from_le_bytes(*word))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        zeros = 0;
    }
    rest.iter().fold(mix(sum ^ zeros), |sum, byte| {
        mix(sum ^ u64::from(*byte)).wrapping_add(1)
    })
}

/// Takes each content once.
fn distinct(states: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut known = HashSet::new();
    states
        .into_iter()
        .filter(|bytes| known.insert(digest(bytes)))
        .collect()
}

/// What is left when `change` may or may not have happened to each of `states`.
pub(super) fn perhaps(states: Vec<Vec<u8>>, change: &Change, tearing: Tearing) -> Vec<Vec<u8>> {
    let left = states.iter().flat_map(|state| match change {
        Change::Write { offset, bytes } => torn_in_every_way(state, *offset, bytes, tearing),
        Change::Truncate { .. } => {
            let mut cut = state.clone();
            apply(&mut cut, change);
            vec![state.clone(), cut]
        }
    });
    distinct(left.collect())
}

/// The same for the length of a file that was growing: it may be cut anywhere after what is certain, or have grown
/// without its data.
pub(super) fn any_length(states: Vec<Vec<u8>>, certain: usize, largest: usize) -> Vec<Vec<u8>> {
    let left = states.into_iter().flat_map(|state| {
        let lengths = [certain, (certain + SECTOR).min(largest), largest];
        let resized = lengths.map(|len| {
            let mut resized = state.clone();
            resized.resize(len, 0);
            resized
        });
        std::iter::once(state).chain(resized)
    });
    distinct(left.collect())
}

fn torn_in_every_way(state: &[u8], offset: u64, bytes: &[u8], tearing: Tearing) -> Vec<Vec<u8>> {
    let offset = offset as usize;
    let sector = |index: usize| index * SECTOR..(index + 1) * SECTOR;
    let changed: Vec<usize> = (0..bytes.len() / SECTOR)
        .filter(|&index| {
            let here = offset + index * SECTOR;
            state.get(here..here + SECTOR) != Some(&bytes[sector(index)])
        })
        .collect();
    let arrived = |kept: &[bool]| {
        let mut state = state.to_vec();
        for (&index, _) in changed.iter().zip(kept).filter(|(_, kept)| **kept) {
            let change = Change::Write {
                offset: (offset + index * SECTOR) as u64,
                bytes: bytes[sector(index)].to_vec(),
            };
            apply(&mut state, &change);
        }
        state
    };
    let mut left: Vec<Vec<u8>> = subsets(changed.len(), tearing)
        .iter()
        .map(|kept| arrived(kept))
        .collect();
    // A sector that is neither old nor new: the device was at it.
    if tearing == Tearing::Fine {
        for at in [0, changed.len().saturating_sub(1)] {
            let Some(&index) = changed.get(at) else {
                continue;
            };
            let kept: Vec<bool> = (0..changed.len()).map(|other| other < at).collect();
            let noise = Change::Write {
                offset: (offset + index * SECTOR) as u64,
                bytes: vec![0xa5; SECTOR],
            };
            let mut state = arrived(&kept);
            apply(&mut state, &noise);
            left.push(state);
        }
    }
    left
}

/// Which of `count` sectors arrive, in every way that is tried.
fn subsets(count: usize, tearing: Tearing) -> Vec<Vec<bool>> {
    let of = |kept: &dyn Fn(usize) -> bool| (0..count).map(kept).collect::<Vec<bool>>();
    if tearing == Tearing::Fine && count <= EVERY_SUBSET_SECTORS_MAX {
        return (0..1_usize << count)
            .map(|set| of(&|at| set >> at & 1 == 1))
            .collect();
    }
    let mut sets = vec![of(&|_| false), of(&|_| true)];
    if count == 0 {
        return sets;
    }
    let fine = tearing == Tearing::Fine && count <= EVERY_PREFIX_SECTORS_MAX;
    let lengths = match fine {
        true => (1..count).collect(),
        false => vec![1, count / 2, count - 1],
    };
    for len in lengths {
        sets.push(of(&|at| at < len));
        sets.push(of(&|at| at >= len));
    }
    if fine {
        for one in 0..count {
            sets.push(of(&|at| at == one));
            sets.push(of(&|at| at != one));
        }
    }
    sets.push(of(&|at| at % 2 == 0));
    sets.push(of(&|at| at % 2 == 1));
    sets
}
