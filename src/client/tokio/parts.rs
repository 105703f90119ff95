//! A call on many keys, cut by where each key goes, and the answers of the parts joined in the order of the call.
//!
//! Guarantees: items of one lane keep their order; nothing is cut while all items go one way. Does not: know what a lane is.

/// How the items of a call go.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cut<L> {
    /// All of them one way: the call goes as it is.
    Whole(L),
    /// Two parts or more.
    Parts(Vec<Part<L>>),
}

/// The items that go one way.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part<L> {
    pub(super) lane: L,
    /// Positions in the call, rising.
    pub(super) items: Vec<usize>,
}

/// Cuts a call of which each item goes by one of the lanes `0..lane_count`. A call without items goes by lane 0.
pub(super) fn cut(lanes: impl Iterator<Item = usize>, lane_count: usize) -> Cut<usize> {
    let mut lanes = lanes.enumerate();
    let Some((_, first)) = lanes.next() else {
        return Cut::Whole(0);
    };
    let Some((at, second)) = lanes.find(|(_, lane)| *lane != first) else {
        return Cut::Whole(first);
    };
    let mut by_lane: Vec<Vec<usize>> = vec![Vec::new(); lane_count];
    by_lane[first].extend(0..at);
    by_lane[second].push(at);
    for (at, lane) in lanes {
        by_lane[lane].push(at);
    }
    let parts = by_lane.into_iter().enumerate();
    let parts = parts.filter(|(_, items)| !items.is_empty());
    Cut::Parts(parts.map(|(lane, items)| Part { lane, items }).collect())
}

/// The answers of all parts, one for each of their items, in the order of the call.
pub(super) fn join<L, T>(parts: &[Part<L>], answers: Vec<Vec<T>>) -> Vec<T> {
    let len = parts.iter().map(|part| part.items.len()).sum();
    let mut joined: Vec<Option<T>> = std::iter::repeat_with(|| None).take(len).collect();
    for (part, answers) in parts.iter().zip(answers) {
        for (at, answer) in part.items.iter().zip(answers) {
            joined[*at] = Some(answer);
        }
    }
    let joined = joined.into_iter();
    joined
        .map(|answer| answer.expect("each item is in one part, which has an answer for it"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(cut: Cut<usize>) -> Vec<(usize, Vec<usize>)> {
        match cut {
            Cut::Whole(lane) => panic!("whole, by lane {lane}"),
            Cut::Parts(parts) => parts
                .into_iter()
                .map(|part| (part.lane, part.items))
                .collect(),
        }
    }

    #[test]
    fn items_of_one_lane_are_not_cut() {
        assert_eq!(cut([].into_iter(), 3), Cut::Whole(0));
        assert_eq!(cut([2].into_iter(), 3), Cut::Whole(2));
        assert_eq!(cut([1, 1, 1].into_iter(), 3), Cut::Whole(1));
    }

    #[test]
    fn items_keep_their_order_in_their_lane() {
        let lanes = [1, 1, 0, 1, 3, 0, 1];
        let expected = [(0, vec![2, 5]), (1, vec![0, 1, 3, 6]), (3, vec![4])];
        assert_eq!(parts(cut(lanes.into_iter(), 4)), expected);
    }

    #[test]
    fn answers_are_joined_in_the_order_of_the_call() {
        let lanes = [1, 0, 2, 0, 1, 1, 2];
        let Cut::Parts(parts) = cut(lanes.into_iter(), 3) else {
            panic!("three lanes")
        };
        // Each item is answered with its own position.
        let answers = parts.iter().map(|part| part.items.clone()).collect();
        assert_eq!(join(&parts, answers), [0, 1, 2, 3, 4, 5, 6]);
    }
}
