//! Windows of event time: which ones there are, and which of them hold a time.
//!
//! As in Spark, windows are aligned to 1970-01-01T00:00:00 UTC. A *pane* is the longest stretch of time of which every
//! window holds all or nothing: rows are first aggregated by pane, then each pane goes into every window that holds it.

use crate::error::{Error, Result};
use crate::sql_types::sql_type;
use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, PrimitiveArray};
use arrow::compute::kernels::cast_utils::parse_interval_month_day_nano;
use arrow::datatypes::{
    DataType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType,
};
use chrono::{DateTime, Datelike, NaiveDate};
use datafusion::common::ScalarValue;
use essaim_proto::v1;
use std::fmt;
use std::str::FromStr;

/// The key of a field's metadata under which a group column says what window it is: a [`WindowSpec`] as text.
pub const WINDOW_KEY: &str = "essaim.window";
/// The same for session windows: [`SESSION_START`] or [`SESSION_END`].
pub const SESSION_KEY: &str = "essaim.session";
/// Under [`SESSION_KEY`]: the column holds starts of sessions (below the merge: times of events).
pub const SESSION_START: &str = "start";
/// Under [`SESSION_KEY`]: the column holds ends of sessions (below the merge: times of events plus the gap).
pub const SESSION_END: &str = "end";

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// What a window's size and slide are counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Unit {
    Millis,
    /// Months of the calendar, UTC.
    Months,
}

/// Windows [start, end) of one size, of which one begins at every multiple of the slide. `0 < slide <= size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WindowSpec {
    unit: Unit,
    size: i64,
    slide: i64,
}

impl WindowSpec {
    /// Windows of a size and slide in ms.
    ///
    /// # Errors
    /// Not `0 < slide <= size`.
    pub fn millis(size: i64, slide: i64) -> Result<Self> {
        Self::new(Unit::Millis, size, slide)
    }

    /// Windows of a size and slide in months of the calendar, UTC.
    ///
    /// # Errors
    /// Not `0 < slide <= size`.
    pub fn months(size: i32, slide: i32) -> Result<Self> {
        Self::new(Unit::Months, size.into(), slide.into())
    }

    /// The windows that `window(ts, size[, slide])` means, an interval or a text like `1 minute` each.
    ///
    /// # Errors
    /// What is no interval, or not `0 < slide <= size`, or months mixed with days or shorter units.
    pub fn parse(size: &ScalarValue, slide: Option<&ScalarValue>) -> Result<Self> {
        let (unit, size) = length(size, "size")?;
        let (slide_unit, slide) = match slide {
            Some(slide) => length(slide, "slide")?,
            None => (unit, size),
        };
        if unit != slide_unit {
            return Err(Error::invalid(
                "window(): size and slide mix months with shorter units: write both in months (or years), or both in weeks, days, hours, ...",
            ));
        }
        Self::new(unit, size, slide)
    }

    fn new(unit: Unit, size: i64, slide: i64) -> Result<Self> {
        let spec = Self { unit, size, slide };
        if size <= 0 || slide <= 0 {
            return Err(Error::invalid(format!(
                "window(): size and slide must be longer than 0, but are {spec}"
            )));
        }
        if slide > size {
            return Err(Error::invalid(format!(
                "window(): the slide is longer than the size ({spec}), so that rows would be in no window: write a slide of at most the size"
            )));
        }
        Ok(spec)
    }

    /// Whether every time is in exactly one window.
    pub fn is_tumbling(&self) -> bool {
        self.size == self.slide
    }

    /// The most windows that hold one time.
    pub fn max_windows(&self) -> usize {
        usize::try_from((self.size - 1) / self.slide + 1).unwrap_or(usize::MAX)
    }

    /// The size in ms, for months the longest that they can be.
    pub fn longest_ms(&self) -> i64 {
        match self.unit {
            Unit::Millis => self.size,
            Unit::Months => self.size.saturating_mul(31 * DAY_MS),
        }
    }

    /// The start of the pane that holds a time, ms. `None`: out of the calendar's range.
    pub fn pane_start(&self, time: i64) -> Option<i64> {
        self.time(floor(self.tick(time)?, gcd(self.size, self.slide))?)
    }

    /// The windows [start, end) that hold a pane, given its start: the last one first, ms.
    pub fn windows(&self, pane: i64) -> impl Iterator<Item = (i64, i64)> + use<> {
        let spec = *self;
        let pane = spec.tick(pane);
        let mut next = pane.and_then(|tick| floor(tick, spec.slide));
        std::iter::from_fn(move || {
            let start = next?;
            let end = start.checked_add(spec.size)?;
            if end <= pane? {
                return None;
            }
            next = start.checked_sub(spec.slide);
            Some((spec.time(start)?, spec.time(end)?))
        })
    }

    /// The end of the window that starts at `start`, ms.
    pub fn end(&self, start: i64) -> Option<i64> {
        self.time(self.tick(start)?.checked_add(self.size)?)
    }

    /// The end of the last window that holds a time, ms.
    pub fn last_end(&self, time: i64) -> Option<i64> {
        let start = floor(self.tick(time)?, self.slide)?;
        self.time(start.checked_add(self.size)?)
    }

    /// The start of the first window that is still open at a watermark (its end is greater), ms. A time is late, which
    /// means that the last window that holds it has closed, exactly when it is before this.
    pub fn first_open(&self, watermark: i64) -> i64 {
        let start = || {
            let before = self.tick(watermark)?.checked_sub(self.size)?;
            self.time(floor(before, self.slide)?.checked_add(self.slide)?)
        };
        // Out of the calendar's range nothing has closed yet, or everything has.
        start().unwrap_or(if watermark < 0 { i64::MIN } else { i64::MAX })
    }

    /// The pane starts of an array of timestamps, of the same type.
    ///
    /// # Errors
    /// Another type; a time out of range; windows that the timestamps' unit is too coarse for.
    pub fn pane_starts(&self, times: &dyn Array) -> Result<ArrayRef> {
        let scale = self.scale(times.data_type())?;
        if self.unit == Unit::Millis {
            let pane = scale.exact(gcd(self.size, self.slide))?;
            return map(times, |time| floor(time, pane));
        }
        map(times, |time| {
            scale.from_ms(self.pane_start(scale.ms(time)?)?)
        })
    }

    /// The ends of the windows that start at `starts`, of the same type.
    ///
    /// # Errors
    /// As [`Self::pane_starts`].
    pub fn ends(&self, starts: &dyn Array) -> Result<ArrayRef> {
        let scale = self.scale(starts.data_type())?;
        map(starts, |start| scale.from_ms(self.end(scale.ms(start)?)?))
    }

    /// What to multiply and divide by between ms and the type's unit, if the windows can be told in it.
    ///
    /// # Errors
    /// The type is no timestamp; a timestamp in seconds with windows of parts of seconds.
    pub fn scale(&self, of: &DataType) -> Result<Scale> {
        let scale = Scale::of(of)?;
        if self.unit == Unit::Millis {
            scale.exact(self.size)?;
            scale.exact(self.slide)?;
        }
        Ok(scale)
    }

    /// A time in the windows' unit, rounded down.
    fn tick(&self, time: i64) -> Option<i64> {
        match self.unit {
            Unit::Millis => Some(time),
            Unit::Months => {
                let date = DateTime::from_timestamp_millis(time)?;
                Some((i64::from(date.year()) - 1970) * 12 + i64::from(date.month0()))
            }
        }
    }

    /// The time of a tick, ms.
    fn time(&self, tick: i64) -> Option<i64> {
        match self.unit {
            Unit::Millis => Some(tick),
            Unit::Months => {
                let year = i32::try_from(tick.div_euclid(12).checked_add(1970)?).ok()?;
                let month = u32::try_from(tick.rem_euclid(12)).ok()? + 1;
                let date = NaiveDate::from_ymd_opt(year, month, 1)?;
                Some(date.and_hms_opt(0, 0, 0)?.and_utc().timestamp_millis())
            }
        }
    }
}

/// `60000ms/10000ms` or `3mo/1mo`: size and slide.
impl fmt::Display for WindowSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            Unit::Millis => "ms",
            Unit::Months => "mo",
        };
        write!(f, "{}{unit}/{}{unit}", self.size, self.slide)
    }
}

impl FromStr for WindowSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = |unit, suffix| {
            let (size, slide) = text.split_once('/')?;
            let size = size.strip_suffix(suffix)?.parse().ok()?;
            let slide = slide.strip_suffix(suffix)?.parse().ok()?;
            Some(Self::new(unit, size, slide))
        };
        parse(Unit::Millis, "ms")
            .or_else(|| parse(Unit::Months, "mo"))
            .unwrap_or_else(|| Err(Error::internal(format!("'{text}' tells no windows"))))
    }
}

impl From<WindowSpec> for v1::WindowSpec {
    fn from(spec: WindowSpec) -> Self {
        match spec.unit {
            Unit::Millis => Self {
                size_ms: spec.size,
                slide_ms: spec.slide,
                ..Self::default()
            },
            Unit::Months => Self {
                // A size in months comes from an i32.
                size_months: spec.size as i32,
                slide_months: spec.slide as i32,
                ..Self::default()
            },
        }
    }
}

impl TryFrom<v1::WindowSpec> for WindowSpec {
    type Error = Error;

    fn try_from(spec: v1::WindowSpec) -> Result<Self> {
        match spec.size_months {
            0 => Self::millis(spec.size_ms, spec.slide_ms),
            months => Self::months(months, spec.slide_months),
        }
    }
}

/// How a unit of timestamps relates to ms: `time = ms * divide / multiply`.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    multiply: i64,
    divide: i64,
}

impl Scale {
    /// That of a type.
    ///
    /// # Errors
    /// It is no timestamp.
    pub fn of(data_type: &DataType) -> Result<Self> {
        let (multiply, divide) = match data_type {
            DataType::Timestamp(TimeUnit::Second, _) => (1000, 1),
            DataType::Timestamp(TimeUnit::Millisecond, _) => (1, 1),
            DataType::Timestamp(TimeUnit::Microsecond, _) => (1, 1000),
            DataType::Timestamp(TimeUnit::Nanosecond, _) => (1, 1_000_000),
            other => {
                return Err(Error::invalid(format!(
                    "a window's time must be a timestamp, not {}: write CAST(... AS TIMESTAMP), or to_timestamp_millis(...) for a number",
                    sql_type(other)
                )));
            }
        };
        Ok(Self { multiply, divide })
    }

    /// A time in ms, rounded down.
    pub fn ms(self, time: i64) -> Option<i64> {
        Some(time.checked_mul(self.multiply)?.div_euclid(self.divide))
    }

    /// A time in the unit. Parts of it are cut off.
    pub fn from_ms(self, ms: i64) -> Option<i64> {
        Some(ms.checked_mul(self.divide)?.div_euclid(self.multiply))
    }

    /// The bound in the unit: `time < ceil(ms)` is the same as `time < ms`. Clamped to what there is.
    pub fn bound(self, ms: i64) -> i64 {
        let exact = i128::from(ms) * i128::from(self.divide);
        let up = -((-exact).div_euclid(i128::from(self.multiply)));
        i64::try_from(up).unwrap_or(if up < 0 { i64::MIN } else { i64::MAX })
    }

    /// A length of time in the unit.
    ///
    /// # Errors
    /// It is no whole number of units, or too long for it.
    pub fn exact(self, ms: i64) -> Result<i64> {
        if ms % self.multiply != 0 {
            return Err(Error::invalid(format!(
                "a window of {ms} ms cannot be told over a timestamp in seconds: write CAST(... AS TIMESTAMP)"
            )));
        }
        self.from_ms(ms).ok_or_else(|| {
            Error::invalid(format!(
                "a window of {ms} ms is too long for a timestamp of this unit"
            ))
        })
    }
}

/// The gap of `session_window(ts, gap)`, ms.
///
/// # Errors
/// No interval, not longer than 0, or in months.
pub fn session_gap(gap: &ScalarValue) -> Result<i64> {
    match length(gap, "gap")? {
        (Unit::Months, _) => Err(Error::invalid(
            "session_window(): the gap is in months: write it in weeks, days, hours, ...",
        )),
        (Unit::Millis, gap) if gap <= 0 => Err(Error::invalid(format!(
            "session_window(): the gap must be longer than 0, but is {gap} ms"
        ))),
        (Unit::Millis, gap) => Ok(gap),
    }
}

/// A length of time.
fn length(value: &ScalarValue, what: &str) -> Result<(Unit, i64)> {
    let wrong = |why: &str| {
        Error::invalid(format!(
            "the {what} of a window {why}: write an interval such as INTERVAL '1 minute', or '1 minute'"
        ))
    };
    let (months, days, nanos) = match value {
        ScalarValue::IntervalMonthDayNano(Some(v)) => (v.months, v.days, v.nanoseconds),
        ScalarValue::IntervalYearMonth(Some(months)) => (*months, 0, 0),
        ScalarValue::IntervalDayTime(Some(v)) => (0, v.days, i64::from(v.milliseconds) * 1_000_000),
        ScalarValue::Utf8(Some(text))
        | ScalarValue::LargeUtf8(Some(text))
        | ScalarValue::Utf8View(Some(text)) => {
            let v = parse_interval_month_day_nano(text)
                .map_err(|_| wrong(&format!("is '{text}', which is no interval")))?;
            (v.months, v.days, v.nanoseconds)
        }
        other => return Err(wrong(&format!("is a {}", sql_type(&other.data_type())))),
    };
    match (months, days, nanos) {
        (months, 0, 0) if months != 0 => Ok((Unit::Months, months.into())),
        (0, days, nanos) if nanos % 1_000_000 == 0 => {
            Ok((Unit::Millis, i64::from(days) * DAY_MS + nanos / 1_000_000))
        }
        (0, ..) => Err(wrong("has parts of milliseconds")),
        _ => Err(wrong("mixes months with shorter units")),
    }
}

/// The same type of timestamps, value by value.
///
/// # Errors
/// Another type, or a value of which `f` makes nothing.
pub(crate) fn map(times: &dyn Array, f: impl Fn(i64) -> Option<i64>) -> Result<ArrayRef> {
    fn typed<T: ArrowPrimitiveType<Native = i64>>(
        times: &dyn Array,
        f: impl Fn(i64) -> Option<i64>,
    ) -> Result<ArrayRef> {
        let mapped: PrimitiveArray<T> = times.as_primitive::<T>().try_unary(|time| {
            f(time).ok_or_else(|| Error::data(format!("the event time {time} is out of range")))
        })?;
        Ok(std::sync::Arc::new(
            mapped.with_data_type(times.data_type().clone()),
        ))
    }
    match times.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => typed::<TimestampSecondType>(times, f),
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            typed::<TimestampMillisecondType>(times, f)
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            typed::<TimestampMicrosecondType>(times, f)
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => typed::<TimestampNanosecondType>(times, f),
        other => Err(Error::internal(format!("{other} is no timestamp"))),
    }
}

fn floor(value: i64, width: i64) -> Option<i64> {
    value.checked_sub(value.rem_euclid(width))
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    const DAY: i64 = DAY_MS;

    /// Specs and times at random: before and after 1970, down to ms and up to years.
    fn cases() -> Vec<(WindowSpec, i64)> {
        let mut random = SmallRng::seed_from_u64(7);
        let mut cases = Vec::new();
        for _ in 0..3000 {
            let spec = if random.random_bool(0.5) {
                let digits = random.random_range(1..8);
                let size = random.random_range(1..10_i64.pow(digits));
                WindowSpec::millis(size, random.random_range(size / 20 + 1..=size))
            } else {
                let size = random.random_range(1..40);
                WindowSpec::months(size, random.random_range(1..=size))
            };
            let reach = 10_i64.pow(random.random_range(1..14));
            cases.push((spec.unwrap(), random.random_range(-reach..reach)));
        }
        cases
    }

    #[test]
    fn a_time_is_in_every_window_of_its_pane_and_in_no_other() {
        for (spec, time) in cases() {
            let pane = spec.pane_start(time).unwrap();
            assert!(pane <= time, "{spec} {time}");
            let windows: Vec<_> = spec.windows(pane).collect();
            assert!(!windows.is_empty() && windows.len() <= spec.max_windows());
            for (start, end) in &windows {
                assert!(*start <= time && time < *end, "{spec} {time} {start} {end}");
                assert_eq!(spec.end(*start), Some(*end));
                assert_eq!(spec.pane_start(*start), Some(*start));
            }
            // The neighbours of the first and the last do not hold it.
            let last = windows[0];
            assert!(
                spec.windows(spec.pane_start(last.1).unwrap())
                    .last()
                    .unwrap()
                    .0
                    > windows.last().unwrap().0
            );
            assert_eq!(spec.last_end(time), Some(last.1));
            assert_eq!(
                spec.windows(spec.pane_start(time).unwrap()).next(),
                Some(last)
            );
        }
    }

    #[test]
    fn a_time_is_late_when_its_last_window_has_closed() {
        for (spec, watermark) in cases() {
            let first = spec.first_open(watermark);
            assert!(
                spec.last_end(first).unwrap() > watermark,
                "{spec} {watermark}"
            );
            assert!(
                spec.last_end(first - 1).unwrap() <= watermark,
                "{spec} {watermark}"
            );
        }
        let hour = WindowSpec::millis(3_600_000, 60_000).unwrap();
        assert_eq!(hour.first_open(i64::MIN), i64::MIN);
        let month = WindowSpec::months(1, 1).unwrap();
        assert_eq!(month.first_open(i64::MIN), i64::MIN);
        assert_eq!(month.first_open(i64::MAX), i64::MAX);
    }

    #[test]
    fn months_follow_the_calendar() {
        let ms = |text: &str| {
            let date: NaiveDate = text.parse().unwrap();
            date.and_hms_opt(0, 0, 0)
                .unwrap()
                .and_utc()
                .timestamp_millis()
        };
        let quarter = WindowSpec::months(3, 1).unwrap();
        let leap_day = ms("2024-02-29") + DAY - 1;
        let windows: Vec<_> = quarter
            .windows(quarter.pane_start(leap_day).unwrap())
            .collect();
        assert_eq!(
            windows,
            [
                (ms("2024-02-01"), ms("2024-05-01")),
                (ms("2024-01-01"), ms("2024-04-01")),
                (ms("2023-12-01"), ms("2024-03-01")),
            ]
        );
        let year = WindowSpec::months(12, 12).unwrap();
        assert_eq!(year.pane_start(-1), Some(ms("1969-01-01")));
        assert_eq!(year.end(ms("1969-01-01")), Some(0));
    }

    #[test]
    fn windows_survive_text_and_protobuf() {
        for (spec, _) in cases() {
            assert_eq!(spec.to_string().parse::<WindowSpec>().unwrap(), spec);
            let wire = v1::WindowSpec::from(spec);
            assert_eq!(WindowSpec::try_from(wire).unwrap(), spec);
        }
    }

    #[test]
    fn a_bound_in_a_coarser_unit_keeps_what_is_in_time() {
        let seconds = Scale::of(&DataType::Timestamp(TimeUnit::Second, None)).unwrap();
        assert_eq!(seconds.bound(1500), 2);
        assert_eq!(seconds.bound(-1500), -1);
        assert_eq!(seconds.ms(2), Some(2000));
        let nanos = Scale::of(&DataType::Timestamp(TimeUnit::Nanosecond, None)).unwrap();
        assert_eq!(nanos.bound(-3), -3_000_000);
        assert_eq!(nanos.bound(i64::MIN), i64::MIN);
        assert_eq!(nanos.ms(-1), Some(-1));
    }
}
