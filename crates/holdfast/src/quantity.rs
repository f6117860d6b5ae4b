//! Sizes and durations as people write them.

use std::time::Duration;

use thiserror::Error;

/// Why a text is no quantity.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum QuantityError {
    /// No size.
    #[error("a size is a number with one of the units B, KiB, MiB, GiB, TiB, such as 10GiB")]
    Size,
    /// A unit of powers of ten, or without its base.
    #[error("{0} is ambiguous or decimal: sizes are binary, write KiB, MiB, GiB or TiB")]
    Decimal(String),
    /// More than 64 bits of bytes.
    #[error("the size is beyond every limit")]
    TooLarge,
    /// No duration.
    #[error("a duration is a number with one of the units s, m, h, d, such as 1h")]
    Duration,
}

const UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Reads a size in bytes; a number without a unit is bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, QuantityError> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = (&text[..end], text[end..].trim());
    let factor = match UNITS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))
    {
        Some((_, factor)) => *factor,
        None if unit.is_empty() => 1,
        None => {
            let is_decimal = ["k", "m", "g", "t", "kb", "mb", "gb", "tb"]
                .iter()
                .any(|one| one.eq_ignore_ascii_case(unit));
            return Err(if is_decimal {
                QuantityError::Decimal(unit.to_owned())
            } else {
                QuantityError::Size
            });
        }
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or(QuantityError::TooLarge);
    }
    if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(QuantityError::TooLarge);
    }
    let fraction: f64 = number.parse().map_err(|_| QuantityError::Size)?;
    let bytes = fraction * factor as f64;
    if bytes >= u64::MAX as f64 {
        return Err(QuantityError::TooLarge);
    }
    // A fraction of a unit seldom meets a block: the next one below is what was meant.
    Ok(bytes as u64 / 4096 * 4096)
}

/// `on` or `off`.
pub(crate) fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{text:?} is neither `on` nor `off`")),
    }
}

/// A size for something that has one already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NewSize {
    /// This many bytes.
    To(u64),
    /// This many bytes more.
    By(u64),
}

/// Reads a size in bytes, or after `+` how much larger.
pub(crate) fn parse_new_size(text: &str) -> Result<NewSize, QuantityError> {
    match text.trim().strip_prefix('+') {
        Some(more) => parse_size(more).map(NewSize::By),
        None => parse_size(text).map(NewSize::To),
    }
}

/// Writes a size with three digits and a binary unit.
pub(crate) fn show_size(bytes: u64) -> String {
    for (name, factor) in &UNITS[..4] {
        if bytes >= *factor {
            let value = bytes as f64 / *factor as f64;
            let digits = if bytes.is_multiple_of(*factor) || value >= 100.0 {
                0
            } else if value >= 10.0 {
                1
            } else {
                2
            };
            return format!("{value:.digits$} {name}");
        }
    }
    format!("{bytes} B")
}

/// Writes a duration in its largest whole unit.
pub(crate) fn show_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let units = [("d", 86_400), ("h", 3600), ("min", 60)];
    let largest = units.iter().find(|(_, length)| seconds >= *length);
    match largest {
        Some((name, length)) => format!("{} {name}", seconds / length),
        None => format!("{seconds} s"),
    }
}

/// Reads a duration of at least a second.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, QuantityError> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .ok_or(QuantityError::Duration)?;
    let seconds = match text[end..].trim() {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(QuantityError::Duration),
    };
    let number: u64 = text[..end].parse().map_err(|_| QuantityError::Duration)?;
    number
        .checked_mul(seconds)
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs)
        .ok_or(QuantityError::Duration)
}

/// Reads a duration that may be nothing at all.
pub(crate) fn parse_grace(text: &str) -> Result<Duration, QuantityError> {
    match text.trim() {
        "0" | "0s" => Ok(Duration::ZERO),
        other => parse_duration(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_say_so() {
        assert_eq!(parse_size("10GiB"), Ok(10 << 30));
        assert_eq!(parse_size(" 512 mib "), Ok(512 << 20));
        assert_eq!(parse_size("1.5TiB"), Ok(3 << 39));
        assert_eq!(parse_size("8192"), Ok(8192));
        assert_eq!(parse_size("10G"), Err(QuantityError::Decimal("G".into())));
        for wrong in ["", "GiB", "-1GiB", "1e3", "ten", "1.2.3MiB"] {
            assert_eq!(parse_size(wrong), Err(QuantityError::Size), "{wrong}");
        }
        for huge in ["99999999999999999999", "18446744073709551615TiB"] {
            assert_eq!(parse_size(huge), Err(QuantityError::TooLarge), "{huge}");
        }
    }

    #[test]
    fn new_sizes_are_absolute_or_relative() {
        assert_eq!(parse_new_size("20GiB"), Ok(NewSize::To(20 << 30)));
        assert_eq!(parse_new_size(" +10GiB"), Ok(NewSize::By(10 << 30)));
        for wrong in ["++1GiB", "-1GiB", "+"] {
            assert_eq!(parse_new_size(wrong), Err(QuantityError::Size), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_shown_with_three_digits() {
        assert_eq!(show_size(10 << 30), "10 GiB");
        assert_eq!(show_size(1_610_612_736), "1.50 GiB");
        assert_eq!(show_size(1023), "1023 B");
        assert_eq!(show_size((150 << 20) + 1), "150 MiB");
    }

    #[test]
    fn durations_are_shown_in_their_largest_whole_unit() {
        let shown = |seconds| show_duration(Duration::from_secs(seconds));
        assert_eq!(shown(0), "0 s");
        assert_eq!(shown(119), "1 min");
        assert_eq!(shown(7300), "2 h");
        assert_eq!(shown(90_000), "1 d");
    }

    #[test]
    fn durations_need_a_unit_and_are_not_zero() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("2 h"), Ok(Duration::from_secs(7200)));
        for wrong in ["", "5", "0s", "1w", "h", "99999999999999999999d"] {
            assert_eq!(
                parse_duration(wrong),
                Err(QuantityError::Duration),
                "{wrong}"
            );
        }
    }
}
