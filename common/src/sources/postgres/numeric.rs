//! PostgreSQL's binary `numeric` and Arrow's decimals: groups of four digits against one scaled integer.
//!
//! The form (PostgreSQL's `numeric_send`): `i16` number of groups, `i16` weight (the first group counts
//! 10000^weight), `u16` sign, `u16` digits shown after the point, then the groups, most significant first.

use arrow::datatypes::i256;

const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const POSITIVE_INFINITY: u16 = 0xD000;
const NEGATIVE_INFINITY: u16 = 0xF000;

/// Groups of four digits that fit into an `i128` for sure.
const FAST_GROUPS: usize = 9;

/// Powers of ten up to 10^38.
const POWERS: [i128; 39] = {
    let mut powers = [1i128; 39];
    let mut exponent = 1;
    while exponent < 39 {
        powers[exponent] = powers[exponent - 1] * 10;
        exponent += 1;
    }
    powers
};

/// A `numeric` as it came.
#[derive(Debug, Clone, Copy)]
pub struct Numeric<'a> {
    weight: i32,
    sign: u16,
    /// Two bytes each.
    groups: &'a [u8],
}

/// Why a `numeric` has no decimal.
#[derive(Debug, PartialEq, Eq)]
pub enum NoDecimal {
    /// The bytes are no `numeric`.
    Broken,
    /// `NaN`, `Infinity`, `-Infinity`.
    Special(&'static str),
    /// Too many digits before the point; the value.
    TooLarge(String),
}

impl<'a> Numeric<'a> {
    /// Reads the head.
    ///
    /// # Errors
    /// Bytes that are none, and values that are no number.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, NoDecimal> {
        let Some((head, groups)) = bytes.split_first_chunk::<8>() else {
            return Err(NoDecimal::Broken);
        };
        let count = usize::from(u16::from_be_bytes([head[0], head[1]]));
        let weight = i32::from(i16::from_be_bytes([head[2], head[3]]));
        let sign = u16::from_be_bytes([head[4], head[5]]);
        match sign {
            NAN => return Err(NoDecimal::Special("NaN")),
            POSITIVE_INFINITY => return Err(NoDecimal::Special("Infinity")),
            NEGATIVE_INFINITY => return Err(NoDecimal::Special("-Infinity")),
            _ => {}
        }
        if groups.len() != count * 2 {
            return Err(NoDecimal::Broken);
        }
        Ok(Self {
            weight,
            sign,
            groups,
        })
    }

    /// The value times 10^scale, rounded half away from zero, of at most `precision` (≤ 38) digits.
    ///
    /// # Errors
    /// It has more digits.
    pub fn to_i128(self, precision: u8, scale: i8) -> Result<i128, NoDecimal> {
        let limit = POWERS[usize::from(precision.min(38))];
        if let Some(value) = self.fast(i32::from(scale)) {
            if value < limit {
                return Ok(if self.sign == NEGATIVE { -value } else { value });
            }
            return Err(NoDecimal::TooLarge(self.text()));
        }
        self.slow(precision, scale)?
            .parse()
            .map_err(|_| NoDecimal::Broken)
    }

    /// The same for up to 76 digits.
    ///
    /// # Errors
    /// It has more digits.
    pub fn to_i256(self, precision: u8, scale: i8) -> Result<i256, NoDecimal> {
        if precision > 38
            && let Some(value) = self.fast(i32::from(scale))
        {
            let value = i256::from_i128(value);
            return Ok(if self.sign == NEGATIVE { -value } else { value });
        }
        i256::from_string(&self.slow(precision, scale)?).ok_or(NoDecimal::Broken)
    }

    /// The absolute value times 10^scale, if nothing on the way exceeds an `i128`.
    fn fast(self, scale: i32) -> Option<i128> {
        let count = self.groups.len() / 2;
        if count > FAST_GROUPS {
            return None;
        }
        let mut value: i128 = 0;
        if count <= 4 {
            // Nearly always: 16 digits fit into a register.
            let mut small: i64 = 0;
            for group in self.groups.chunks_exact(2) {
                small = small * 10_000 + i64::from(u16::from_be_bytes([group[0], group[1]]));
            }
            value = i128::from(small);
        } else {
            for group in self.groups.chunks_exact(2) {
                value = value * 10_000 + i128::from(u16::from_be_bytes([group[0], group[1]]));
            }
        }
        if value == 0 {
            return Some(0);
        }
        let shift = 4 * (self.weight - count as i32 + 1) + scale;
        if shift >= 0 {
            let power = POWERS.get(usize::try_from(shift).ok()?)?;
            return value.checked_mul(*power);
        }
        match POWERS.get(usize::try_from(-shift).ok()?) {
            Some(power) => Some((value + power / 2) / power),
            None => Some(0),
        }
    }

    /// The value times 10^scale as text, by its digits.
    fn slow(self, precision: u8, scale: i8) -> Result<String, NoDecimal> {
        let (mut digits, point) = self.digits();
        // Digits up to `end` stay, the next one decides about rounding.
        let end = point + i32::from(scale);
        let up = usize::try_from(end)
            .ok()
            .and_then(|end| digits.get(end))
            .is_some_and(|digit| *digit >= b'5');
        digits.resize(usize::try_from(end.max(0)).unwrap_or(0), b'0');
        if up {
            let mut at = digits.len();
            loop {
                if at == 0 {
                    digits.insert(0, b'1');
                    break;
                }
                at -= 1;
                if digits[at] == b'9' {
                    digits[at] = b'0';
                } else {
                    digits[at] += 1;
                    break;
                }
            }
        }
        let start = digits
            .iter()
            .position(|digit| *digit != b'0')
            .unwrap_or(digits.len());
        let significant = &digits[start..];
        if significant.len() > usize::from(precision) {
            return Err(NoDecimal::TooLarge(self.text()));
        }
        let mut text = String::with_capacity(significant.len() + 2);
        if self.sign == NEGATIVE && !significant.is_empty() {
            text.push('-');
        }
        text.extend(significant.iter().map(|digit| char::from(*digit)));
        if significant.is_empty() {
            text.push('0');
        }
        Ok(text)
    }

    /// All digits, and how many of them stand before the point (fewer than none if zeros follow the point).
    fn digits(self) -> (Vec<u8>, i32) {
        let mut digits = Vec::with_capacity(self.groups.len() * 2);
        for group in self.groups.chunks_exact(2) {
            let group = u16::from_be_bytes([group[0], group[1]]);
            for power in [1000, 100, 10, 1] {
                digits.push(b'0' + (group / power % 10) as u8);
            }
        }
        (digits, 4 * (self.weight + 1))
    }

    /// For messages.
    fn text(self) -> String {
        let (digits, point) = self.digits();
        let mut text = String::new();
        if self.sign == NEGATIVE {
            text.push('-');
        }
        for at in point.min(0)..point.max(digits.len() as i32) {
            if at == point {
                text.push('.');
            }
            let digit = usize::try_from(at).ok().and_then(|at| digits.get(at));
            text.push(digit.map_or('0', |digit| char::from(*digit)));
        }
        let sign = usize::from(self.sign == NEGATIVE);
        let trimmed = text[sign..].trim_start_matches('0').to_owned();
        format!("{}{trimmed}", &text[..sign])
    }
}

/// Writes the decimal text `[-]digits[.digits]`, or `NaN`, `inf`, `-inf`, as a binary `numeric` without its length.
pub fn write_text(text: &str, out: &mut Vec<u8>) {
    let special = match text {
        "NaN" => Some(NAN),
        "inf" => Some(POSITIVE_INFINITY),
        "-inf" => Some(NEGATIVE_INFINITY),
        _ => None,
    };
    if let Some(sign) = special {
        write_head(out, 0, 0, sign, 0);
        return;
    }
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (NEGATIVE, digits),
        None => (0, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let mut groups: Vec<u16> = Vec::with_capacity(whole.len() / 4 + fraction.len() / 4 + 2);
    let mut group = 0u16;
    let lead = (4 - whole.len() % 4) % 4;
    for (at, digit) in whole.bytes().enumerate() {
        group = group * 10 + u16::from(digit.wrapping_sub(b'0'));
        if (at + lead) % 4 == 3 {
            groups.push(std::mem::take(&mut group));
        }
    }
    let weight = groups.len() as i32 - 1;
    for (at, digit) in fraction.bytes().enumerate() {
        group = group * 10 + u16::from(digit.wrapping_sub(b'0'));
        if at % 4 == 3 {
            groups.push(std::mem::take(&mut group));
        }
    }
    if fraction.len() % 4 != 0 {
        groups.push(group * 10u16.pow(4 - fraction.len() as u32 % 4));
    }
    write_groups(out, weight, sign, fraction.len(), &groups);
}

/// Writes `value` / 10^scale as a binary `numeric` without its length.
pub fn write_i128(value: i128, scale: i8, out: &mut Vec<u8>) {
    let scale = u32::from(scale.max(0).unsigned_abs());
    let sign = if value < 0 { NEGATIVE } else { 0 };
    let mut rest = value.unsigned_abs();
    // The last group is filled up with zeros, so that the point falls between two groups.
    let fill = (4 - scale % 4) % 4;
    let mut groups = [0u16; 16];
    let mut at = groups.len();
    if fill > 0 {
        let take = 10u128.pow(4 - fill);
        at -= 1;
        groups[at] = (rest % take) as u16 * 10u16.pow(fill);
        rest /= take;
    }
    while rest > 0 && at > 0 {
        at -= 1;
        groups[at] = (rest % 10_000) as u16;
        rest /= 10_000;
    }
    let after_point = scale.div_ceil(4) as i32;
    let weight = (groups.len() - at) as i32 - after_point - 1;
    write_groups(out, weight, sign, scale as usize, &groups[at..]);
}

/// Writes groups, without the zeros at both ends, which the server's own form never has.
fn write_groups(out: &mut Vec<u8>, weight: i32, sign: u16, scale: usize, groups: &[u16]) {
    let start = groups
        .iter()
        .position(|group| *group != 0)
        .unwrap_or(groups.len());
    let end = groups
        .iter()
        .rposition(|group| *group != 0)
        .map_or(start, |last| last + 1);
    let groups = &groups[start..end];
    let (weight, sign) = if groups.is_empty() {
        (0, 0)
    } else {
        (weight - start as i32, sign)
    };
    write_head(out, groups.len(), weight, sign, scale);
    for group in groups {
        out.extend_from_slice(&group.to_be_bytes());
    }
}

fn write_head(out: &mut Vec<u8>, count: usize, weight: i32, sign: u16, scale: usize) {
    out.extend_from_slice(&(count as u16).to_be_bytes());
    out.extend_from_slice(&(weight as i16).to_be_bytes());
    out.extend_from_slice(&sign.to_be_bytes());
    out.extend_from_slice(&(scale as u16).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(text: &str, precision: u8, scale: i8) -> Result<String, NoDecimal> {
        let mut bytes = Vec::new();
        write_text(text, &mut bytes);
        let fast = Numeric::parse(&bytes)?.to_i128(precision, scale)?;
        let slow = Numeric::parse(&bytes)?.slow(precision, scale)?;
        assert_eq!(fast.to_string(), slow);
        let wide = Numeric::parse(&bytes)?.to_i256(76, scale)?;
        assert_eq!(wide.to_string(), slow);
        Ok(slow)
    }

    #[test]
    fn digits_keep_their_places() {
        for (text, scale, expected) in [
            ("0", 2, "0"),
            ("1", 0, "1"),
            ("-12345.678", 3, "-12345678"),
            ("10000", 0, "10000"),
            ("0.0001", 4, "1"),
            ("0.00012", 6, "120"),
            (
                "99999999999999999999.999999999999999999",
                18,
                "99999999999999999999999999999999999999",
            ),
            ("12345678901234567890123", 2, "1234567890123456789012300"),
        ] {
            assert_eq!(there_and_back(text, 38, scale).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn digits_beyond_the_scale_are_rounded_half_away_from_zero() {
        assert_eq!(there_and_back("0.125", 38, 2).unwrap(), "13");
        assert_eq!(there_and_back("-0.125", 38, 2).unwrap(), "-13");
        assert_eq!(
            there_and_back("0.33333333333333333333", 38, 18).unwrap(),
            "333333333333333333"
        );
        assert_eq!(
            there_and_back("9.99999999999999999999", 38, 18).unwrap(),
            "10000000000000000000"
        );
        assert_eq!(
            there_and_back("0.00000000000000000000000000000000000000000001", 38, 18).unwrap(),
            "0"
        );
    }

    #[test]
    fn a_value_that_does_not_fit_is_told() {
        assert_eq!(
            there_and_back("-1234.5", 5, 2).unwrap_err(),
            NoDecimal::TooLarge("-1234.5000".to_owned())
        );
        assert_eq!(
            there_and_back("NaN", 5, 2).unwrap_err(),
            NoDecimal::Special("NaN")
        );
    }

    #[test]
    fn integers_are_written_as_their_text_is() {
        for (value, scale, text) in [
            (0i128, 2i8, "0.00"),
            (-5, 3, "-0.005"),
            (123_456_789, 4, "12345.6789"),
            (10_000_000, 0, "10000000"),
            (i128::MAX, 0, "170141183460469231731687303715884105727"),
            (i128::MIN, 38, "-1.70141183460469231731687303715884105728"),
        ] {
            let (mut one, mut other) = (Vec::new(), Vec::new());
            write_i128(value, scale, &mut one);
            write_text(text, &mut other);
            assert_eq!(one, other, "{text}");
        }
    }
}
