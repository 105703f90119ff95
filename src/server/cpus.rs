//! Which CPUs the shards run on: lists as people write them (`0-3,6`), and what the process may use.
//!
//! Guarantees: a list that [`parse`] accepts is in the order given, without repetition. Used by the configuration.

/// CPU numbers from a list like `0-3,6`, in the order given.
///
/// # Errors
/// A sentence that names the part that is not understood.
pub fn parse(text: &str) -> Result<Vec<usize>, String> {
    let mut cpus = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.trim().parse::<usize>(), last.trim().parse::<usize>())
        else {
            return Err(format!(
                "\"{part}\" is neither a CPU number nor a range: write a list like 0-3,6"
            ));
        };
        if first > last || last >= CPU_NUMBERS_MAX {
            return Err(format!(
                "the range {part} is empty or beyond CPU {}",
                CPU_NUMBERS_MAX - 1
            ));
        }
        for cpu in first..=last {
            if cpus.contains(&cpu) {
                return Err(format!(
                    "CPU {cpu} is in the list twice: a shard needs a CPU of its own"
                ));
            }
            cpus.push(cpu);
        }
    }
    Ok(cpus)
}

/// CPU numbers that a list may name. More than any kernel is built for; it bounds what a mistyped range costs.
const CPU_NUMBERS_MAX: usize = 8192;

/// A list as people write it.
pub fn display(cpus: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => parts.push((cpu, cpu)),
        }
    }
    let part = |(first, last): &(usize, usize)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    };
    parts.iter().map(part).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges_keep_their_order() {
        assert_eq!(parse("0"), Ok(vec![0]));
        assert_eq!(parse("0-3,6"), Ok(vec![0, 1, 2, 3, 6]));
        assert_eq!(parse(" 5 , 1 - 2 "), Ok(vec![5, 1, 2]));
    }

    #[test]
    fn what_is_not_a_list_is_refused_with_the_part_that_is_wrong() {
        for (text, named) in [
            ("", "\"\""),
            ("a", "\"a\""),
            ("1,,2", "\"\""),
            ("1-", "\"1-\""),
            ("3-1", "3-1"),
            ("0-8192", "0-8192"),
        ] {
            let sentence = parse(text).unwrap_err();
            assert!(sentence.contains(named), "{text}: {sentence}");
        }
        assert!(
            parse("0-2,1")
                .unwrap_err()
                .contains("CPU 1 is in the list twice")
        );
    }

    #[test]
    fn a_list_reads_back_as_it_was_shown() {
        for cpus in [vec![0], vec![0, 1, 2, 3, 6], vec![5, 1, 2], vec![3, 2, 1]] {
            assert_eq!(parse(&display(&cpus)), Ok(cpus));
        }
        assert_eq!(display(&[0, 1, 2, 3, 6]), "0-3,6");
    }
}
