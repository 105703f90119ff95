//! Sizes as people write them: `4096`, `512MiB`, `1G`.
//!
//! Guarantees: what [`parse`] accepts is exact; everything else is refused with a sentence. Used by the command line.

const UNITS: [(&str, u32); 5] = [("", 0), ("K", 10), ("M", 20), ("G", 30), ("T", 40)];

/// Bytes from a number and an optional unit: `K`, `M`, `G`, `T`, alone or as `KiB` or `KB`, in any case. All are
/// powers of 1024.
///
/// # Errors
/// A sentence that names what was given and what is understood.
pub fn parse(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let digits = trimmed
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let unit = unit.trim_start().to_ascii_uppercase();
    let unit = unit
        .strip_suffix("IB")
        .filter(|unit| !unit.is_empty())
        .or(unit.strip_suffix('B'))
        .unwrap_or(&unit);
    let shift = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, shift)| *shift);
    let (Ok(number), Some(shift)) = (number.parse::<u64>(), shift) else {
        return Err(format!(
            "\"{text}\" is not a size: write bytes like 4096, or a number with a unit like 512MiB or 1G"
        ));
    };
    number.checked_mul(1 << shift).ok_or_else(|| {
        format!(
            "\"{text}\" is more than {} bytes, which is as far as sizes go",
            u64::MAX
        )
    })
}

/// A size for people: with the largest unit that says it exactly.
pub fn display(bytes: u64) -> String {
    let exact = |(_, shift): &&(&str, u32)| bytes != 0 && bytes.is_multiple_of(1 << shift);
    match UNITS.iter().rev().find(exact) {
        Some(("", _)) | None => format!("{bytes} bytes"),
        Some((unit, shift)) => format!("{}{unit}iB", bytes >> shift),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_unit_is_a_power_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1B", 1),
            ("1k", 1 << 10),
            ("3KB", 3 << 10),
            ("512MiB", 512 << 20),
            ("512 mib", 512 << 20),
            ("1G", 1 << 30),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        for text in [
            "", "MiB", "-1", "1.5G", "12x", "1 G iB", "0x10", "1PiB", "1iB", "１",
        ] {
            let sentence = parse(text).unwrap_err();
            assert!(sentence.contains(&format!("\"{text}\"")), "{sentence}");
        }
    }

    #[test]
    fn a_size_beyond_64_bits_is_refused() {
        assert_eq!(parse("16777215T"), Ok(16_777_215 << 40));
        assert!(parse("16777216T").unwrap_err().contains("16777216T"));
        assert!(parse("99999999999999999999").is_err());
    }

    #[test]
    fn a_size_reads_back_as_it_was_shown() {
        for bytes in [1, 4095, 4096, 64 << 20, (64 << 20) + 1, 3 << 40, u64::MAX] {
            let shown = display(bytes);
            assert_eq!(
                parse(shown.strip_suffix(" bytes").unwrap_or(&shown)),
                Ok(bytes),
                "{shown}"
            );
        }
        assert_eq!(display(64 << 20), "64MiB");
        assert_eq!(display(0), "0 bytes");
    }
}
