//! Numbers for people: three significant digits and a unit.

/// A latency given in microseconds.
pub(crate) fn latency(us: f64) -> String {
    match us {
        ..1e3 => format!("{} µs", digits(us)),
        ..1e6 => format!("{} ms", digits(us / 1e3)),
        _ => format!("{} s", digits(us / 1e6)),
    }
}

/// A time given in milliseconds.
pub(crate) fn time(ms: f64) -> String {
    latency(ms * 1e3)
}

/// A count, often per second: `67.1 k`.
pub(crate) fn count(number: f64) -> String {
    match number {
        ..1e3 => digits(number),
        ..1e6 => format!("{} k", digits(number / 1e3)),
        _ => format!("{} M", digits(number / 1e6)),
    }
}

/// A size in bytes, in powers of 1024.
pub(crate) fn size(bytes: f64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let mut scaled = bytes;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    let shown = if scaled.fract() == 0.0 {
        format!("{scaled:.0}")
    } else {
        digits(scaled)
    };
    format!("{shown} {}", UNITS[unit])
}

/// Three significant digits.
pub(crate) fn digits(number: f64) -> String {
    let decimals = match number.abs() {
        0.0 => 0,
        ..0.1 => 3,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{number:.decimals$}")
}

/// Without the zeros behind the point that say nothing: `10.0 ms` is `10 ms`.
pub(crate) fn short(shown: &str) -> String {
    let (number, unit) = shown.split_once(' ').unwrap_or((shown, ""));
    let number = match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.'),
        false => number,
    };
    format!("{number} {unit}").trim_end().to_owned()
}

/// Whole percent.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        assert_eq!(latency(12.34), "12.3 µs");
        assert_eq!(latency(1_234.0), "1.23 ms");
        assert_eq!(latency(12_340_000.0), "12.3 s");
        assert_eq!(time(333.0), "333 ms");
        assert_eq!(count(67_123.0), "67.1 k");
        assert_eq!(count(817_000.0), "817 k");
        assert_eq!(size(512.0), "512 B");
        assert_eq!(size(4.0 * 1024.0 * 1024.0), "4 MiB");
        assert_eq!(size(1_500.0), "1.46 KiB");
        assert_eq!(digits(0.0), "0");
        assert_eq!(short("10.0 ms"), "10 ms");
        assert_eq!(short("100"), "100");
        assert_eq!(short("2.50 k"), "2.5 k");
        assert_eq!(percent(0.853), "85 %");
    }
}
