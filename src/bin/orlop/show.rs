//! How results look: for people on a terminal, as plain lines otherwise.

use std::fmt::Write as _;

use crate::arguments::HEX_PREFIX;

/// Whom the output is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    /// Someone looks at a terminal.
    pub(crate) human: bool,
}

/// Longest piece of a value in a listing for people, in characters.
const VALUE_CHARACTERS_MAX: usize = 60;

/// A key or value on one line, in the form that the command line takes: as it is if it is printable, in hexadecimal
/// otherwise.
pub(crate) fn one_line(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) && !text.starts_with(HEX_PREFIX) => {
            text.to_string()
        }
        _ => hexadecimal(bytes, HEX_PREFIX),
    }
}

/// The beginning of a value, for people.
pub(crate) fn beginning(value: &[u8]) -> String {
    // Four bytes are the longest character; more need not be looked at.
    let looked_at = &value[..value.len().min(VALUE_CHARACTERS_MAX * 4)];
    let cut_character =
        |error: &std::str::Utf8Error| error.error_len().is_none() && looked_at.len() < value.len();
    let text = match std::str::from_utf8(looked_at) {
        Ok(text) => one_line(text.as_bytes()),
        Err(error) if cut_character(&error) => one_line(&looked_at[..error.valid_up_to()]),
        Err(_) => one_line(looked_at),
    };
    let mut shown: String = text.chars().take(VALUE_CHARACTERS_MAX).collect();
    if shown.len() < text.len() || looked_at.len() < value.len() {
        shown.push('…');
    }
    shown
}

pub(crate) fn hexadecimal(bytes: &[u8], prefix: &str) -> String {
    let mut text = String::with_capacity(prefix.len() + bytes.len() * 2);
    text.push_str(prefix);
    for byte in bytes {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
    }
    text
}

/// `1536` as `1.5 KiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would be shown as 1024.0 is one of the next unit.
    while amount >= 1023.95 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS[unit])
}

/// `1_500_000` microseconds as `1.5 s`.
pub(crate) fn duration(microseconds: u64) -> String {
    let seconds = microseconds / 1_000_000;
    match microseconds {
        0..1_000 => format!("{microseconds} us"),
        1_000..1_000_000 => format!("{:.1} ms", microseconds as f64 / 1e3),
        1_000_000..60_000_000 => format!("{:.1} s", microseconds as f64 / 1e6),
        60_000_000..3_600_000_000 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600_000_000..86_400_000_000 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Milliseconds of Unix time as `2026-11-22 16:10:09 UTC`.
pub(crate) fn time(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    // Days are counted from 0000-03-01, so that the leap day is the last of its year; 400 years are 146,097 days.
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// `1234567` as `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_shown_as_they_can_be_given() {
        use std::ffi::OsStr;
        let cases: [(&[u8], &str); 7] = [
            (b"plain key", "plain key"),
            ("grün".as_bytes(), "grün"),
            (b"", ""),
            (b"line\nbreak", "hex:6c696e650a627265616b"),
            (b"\xff\x00", "hex:ff00"),
            (b"hex:1", "hex:6865783a31"),
            (b"tab\t", "hex:74616209"),
        ];
        for (key, shown) in cases {
            assert_eq!(one_line(key), shown);
            assert_eq!(
                crate::arguments::Key::parse(OsStr::new(shown)).unwrap().0,
                key
            );
        }
    }

    #[test]
    fn long_values_are_cut_for_people() {
        assert_eq!(beginning(b"short"), "short");
        assert_eq!(beginning(&[b'x'; 60]), "x".repeat(60));
        assert_eq!(beginning(&[b'x'; 61]), format!("{}…", "x".repeat(60)));
        assert_eq!(
            beginning(&vec![b'x'; 1 << 20]),
            format!("{}…", "x".repeat(60))
        );
        // A character of three bytes on the border of what is looked at.
        let wide = "€".repeat(1000);
        assert_eq!(beginning(wide.as_bytes()), format!("{}…", "€".repeat(60)));
        assert_eq!(beginning(&[0; 1000]), format!("hex:{}…", "0".repeat(56)));
    }

    #[test]
    fn sizes() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1_048_575, "1.0 MiB"),
        ];
        for (bytes, shown) in cases {
            assert_eq!(size(bytes), shown);
        }
        assert_eq!(size(16 << 20), "16.0 MiB");
        assert_eq!(size(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn durations() {
        let cases = [
            (999, "999 us"),
            (1_500, "1.5 ms"),
            (1_500_000, "1.5 s"),
            (61_000_000, "1 min 1 s"),
            (3_660_000_000, "1 h 1 min"),
            (90_000_000_000, "1 d 1 h"),
        ];
        for (microseconds, shown) in cases {
            assert_eq!(duration(microseconds), shown);
        }
    }

    #[test]
    fn times() {
        assert_eq!(time(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(time(951_827_696_000), "2000-02-29 12:34:56 UTC");
        assert_eq!(time(1_795_363_809_999), "2026-11-22 16:10:09 UTC");
        assert_eq!(time(4_107_542_400_000), "2100-03-01 00:00:00 UTC");
    }

    #[test]
    fn counts() {
        assert_eq!(
            [0, 999, 1_000, 1_234_567].map(count),
            ["0", "999", "1,000", "1,234,567"]
        );
    }
}
