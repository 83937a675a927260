//! `uniform`, `normal`, `randstr` and `uuid_of`: random values that follow from seeds, so that a task which runs again
//! somewhere else makes equal ones. The first three are named and called as in Snowflake.

use crate::error::{Error, Result};
use arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, PrimitiveArray, StringArray, StringBuilder,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{ArrowPrimitiveType, DataType, Float64Type, Int64Type};
use datafusion::common::{Result as DFResult, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};
use std::sync::{Arc, LazyLock};

static ARGUMENTS: LazyLock<Signature> =
    LazyLock::new(|| Signature::user_defined(Volatility::Immutable));

/// The longest text that `randstr` makes, in characters: a batch of them must fit into memory.
const MAX_LENGTH: i64 = 10_000;
const LETTERS: &[u8; 62] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
/// How many letters 64 bits are good for: 62¹⁰ < 2⁶⁴.
const LETTERS_PER_WORD: usize = 10;

/// A function of seeds, which are its last arguments, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Random {
    /// `uniform(min, max, seed…)`: a BIGINT from `min` to `max`, both included, if both are whole numbers; else a
    /// DOUBLE, which is never `max` unless that is `min`.
    Uniform,
    /// `normal(mean, stddev, seed…)`: a DOUBLE.
    Normal,
    /// `randstr(length, seed…)`: letters and digits.
    RandStr,
    /// `uuid_of(seed…)`: the text of a UUID of version 4.
    UuidOf,
}

impl Random {
    pub const ALL: [Self; 4] = [Self::Uniform, Self::Normal, Self::RandStr, Self::UuidOf];

    fn as_str(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Normal => "normal",
            Self::RandStr => "randstr",
            Self::UuidOf => "uuid_of",
        }
    }

    /// How it is called.
    fn usage(self) -> &'static str {
        match self {
            Self::Uniform => "uniform(min, max, seed[, …])",
            Self::Normal => "normal(mean, stddev, seed[, …])",
            Self::RandStr => "randstr(length, seed[, …])",
            Self::UuidOf => "uuid_of(seed[, …])",
        }
    }

    /// How many arguments stand before the seeds.
    fn before_seeds(self) -> usize {
        match self {
            Self::Uniform | Self::Normal => 2,
            Self::RandStr => 1,
            Self::UuidOf => 0,
        }
    }

    /// The types that the arguments are cast to.
    fn coerced(self, given: &[DataType]) -> Result<Vec<DataType>> {
        let before = self.before_seeds();
        let wrong = |what: String| Error::invalid(format!("{what}: write {}", self.usage()));
        if given.len() <= before {
            return Err(wrong(format!("{}() needs a seed", self.as_str())));
        }
        let (settings, seeds) = given.split_at(before);
        if let Some(other) = settings.iter().find(|t| !t.is_numeric() && !t.is_null()) {
            return Err(wrong(format!(
                "{}() takes numbers before its seeds, and was given {other}",
                self.as_str()
            )));
        }
        let is_whole = |t: &DataType| t.is_integer() || t.is_null();
        let setting = match self {
            Self::Uniform if settings.iter().all(is_whole) => DataType::Int64,
            Self::RandStr => DataType::Int64,
            Self::Uniform | Self::Normal | Self::UuidOf => DataType::Float64,
        };
        let seeds = seeds.iter().map(|seed| match seed {
            DataType::UInt64 => Ok(DataType::Utf8),
            whole if whole.is_integer() => Ok(DataType::Int64),
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => Err(wrong(
                "a seed may not be bytes, cast it to VARCHAR".to_owned(),
            )),
            nested if nested.is_nested() => Err(wrong(format!(
                "a seed is a number, a text or a time, and not {nested}"
            ))),
            _ => Ok(DataType::Utf8),
        });
        let mut types = vec![setting; before];
        for seed in seeds {
            types.push(seed?);
        }
        Ok(types)
    }

    fn returns(self, coerced: &[DataType]) -> DataType {
        match self {
            Self::Uniform => coerced.first().cloned().unwrap_or(DataType::Int64),
            Self::Normal => DataType::Float64,
            Self::RandStr | Self::UuidOf => DataType::Utf8,
        }
    }

    /// Values for `rows` rows; null where an argument is.
    fn values(self, args: &[ColumnarValue], rows: usize) -> Result<ArrayRef> {
        let (settings, seeds) = args
            .split_at_checked(self.before_seeds())
            .ok_or_else(|| Error::internal(format!("write {}", self.usage())))?;
        let settings = settings
            .iter()
            .map(|setting| setting.to_array(rows))
            .collect::<DFResult<Vec<ArrayRef>>>()?;
        let words = Words::of(self as u64, seeds, rows)?;
        let words = words.with_nulls_of(&settings);
        let pair = || match settings.as_slice() {
            [first, second] => Ok((first, second)),
            _ => Err(Error::internal(format!("write {}", self.usage()))),
        };
        Ok(match self {
            Self::Uniform => {
                let (min, max) = pair()?;
                match min.data_type() {
                    DataType::Int64 => Arc::new(words.map2::<Int64Type>(min, max, whole)?),
                    _ => Arc::new(words.map2::<Float64Type>(min, max, fraction)?),
                }
            }
            Self::Normal => {
                let (mean, deviation) = pair()?;
                Arc::new(
                    words.map2::<Float64Type>(mean, deviation, |mean, deviation, word| {
                        Ok(mean + deviation * bell(word))
                    })?,
                )
            }
            Self::RandStr => {
                let length = settings.first();
                let length = length.and_then(|length| length.as_primitive_opt::<Int64Type>());
                Arc::new(words.texts(length.ok_or_else(|| Error::internal("no length"))?)?)
            }
            Self::UuidOf => {
                // As many bits again: ids of 64 random bits alone would soon meet.
                let more = Words::of(!(self as u64), seeds, rows)?;
                Arc::new(words.uuids(&more))
            }
        })
    }
}

impl ScalarUDFImpl for Random {
    fn name(&self) -> &str {
        self.as_str()
    }

    fn signature(&self) -> &Signature {
        &ARGUMENTS
    }

    fn coerce_types(&self, given: &[DataType]) -> DFResult<Vec<DataType>> {
        Ok(self.coerced(given)?)
    }

    fn return_type(&self, coerced: &[DataType]) -> DFResult<DataType> {
        Ok(self.returns(coerced))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DFResult<ColumnarValue> {
        let is_constant = args
            .args
            .iter()
            .all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        if is_constant {
            let value = self.values(&args.args, 1)?;
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(
                &value, 0,
            )?));
        }
        let values = self.values(&args.args, args.number_rows)?;
        Ok(ColumnarValue::Array(values))
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014): each bit of
/// the result depends on each bit of `word`, and no two words have one result.
pub fn mixed(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// The step of SplitMix64: 2⁶⁴ divided by the golden ratio.
pub const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// What follows from a word and a further seed.
fn seeded(word: u64, seed: u64) -> u64 {
    mixed(word.rotate_left(5).wrapping_add(STEP) ^ mixed(seed.wrapping_add(STEP)))
}

fn of_text(text: &str) -> u64 {
    let word = text.as_bytes().chunks(8).fold(0, |word, chunk| {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        seeded(word, u64::from_le_bytes(bytes))
    });
    seeded(word, text.len() as u64)
}

/// 64 random bits a row.
struct Words {
    words: Vec<u64>,
    nulls: Option<NullBuffer>,
}

impl Words {
    /// From seeds that were coerced to BIGINT or VARCHAR. Another `first` word gives others.
    fn of(first: u64, seeds: &[ColumnarValue], rows: usize) -> Result<Self> {
        let mut found = Self {
            words: vec![mixed(first.wrapping_add(STEP)); rows],
            nulls: None,
        };
        for seed in seeds {
            let Self { words, nulls } = &mut found;
            match seed {
                ColumnarValue::Scalar(ScalarValue::Int64(Some(seed))) => {
                    let seed = *seed as u64;
                    words
                        .iter_mut()
                        .for_each(|word| *word = seeded(*word, seed));
                }
                ColumnarValue::Scalar(ScalarValue::Utf8(Some(seed))) => {
                    let seed = of_text(seed);
                    words
                        .iter_mut()
                        .for_each(|word| *word = seeded(*word, seed));
                }
                seed => {
                    let seed = seed.to_array(rows)?;
                    *nulls = NullBuffer::union(nulls.as_ref(), seed.nulls());
                    if let Some(seed) = seed.as_primitive_opt::<Int64Type>() {
                        for (word, seed) in words.iter_mut().zip(seed.values()) {
                            *word = seeded(*word, *seed as u64);
                        }
                    } else if let Some(seed) = seed.as_string_opt::<i32>() {
                        for (word, seed) in words.iter_mut().zip(seed) {
                            *word = seeded(*word, of_text(seed.unwrap_or_default()));
                        }
                    } else {
                        return Err(Error::internal(format!("a seed of {}", seed.data_type())));
                    }
                }
            }
        }
        Ok(found)
    }

    fn with_nulls_of(mut self, others: &[ArrayRef]) -> Self {
        for other in others {
            self.nulls = NullBuffer::union(self.nulls.as_ref(), other.logical_nulls().as_ref());
        }
        self
    }

    fn is_null(&self, row: usize) -> bool {
        self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }

    fn map2<T: ArrowPrimitiveType>(
        &self,
        first: &ArrayRef,
        second: &ArrayRef,
        value: impl Fn(T::Native, T::Native, u64) -> Result<T::Native>,
    ) -> Result<PrimitiveArray<T>> {
        let of_type = |array: &ArrayRef| {
            array.as_primitive_opt::<T>().cloned().ok_or_else(|| {
                Error::internal(format!("no {} but {}", T::DATA_TYPE, array.data_type()))
            })
        };
        let (first, second) = (of_type(first)?, of_type(second)?);
        let pairs = first.values().iter().zip(second.values());
        let values = self.words.iter().zip(pairs).enumerate();
        let values = values
            .map(|(row, (word, (first, second)))| match self.is_null(row) {
                true => Ok(T::default_value()),
                false => value(*first, *second, *word),
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(PrimitiveArray::new(values.into(), self.nulls.clone()))
    }

    fn texts(&self, lengths: &Int64Array) -> Result<StringArray> {
        let mut texts = StringBuilder::with_capacity(self.words.len(), self.words.len() * 16);
        let mut text = String::new();
        for (row, (word, length)) in self.words.iter().zip(lengths.values()).enumerate() {
            if self.is_null(row) {
                texts.append_null();
                continue;
            }
            if !(0..=MAX_LENGTH).contains(length) {
                return Err(Error::data(format!(
                    "randstr({length}, …): the length is from 0 to {MAX_LENGTH} characters"
                )));
            }
            text.clear();
            let mut word = *word;
            let mut bits = word;
            for position in 0..*length as usize {
                if position > 0 && position % LETTERS_PER_WORD == 0 {
                    word = mixed(word.wrapping_add(STEP));
                    bits = word;
                }
                let letter = LETTERS[(bits % LETTERS.len() as u64) as usize];
                bits /= LETTERS.len() as u64;
                text.push(char::from(letter));
            }
            texts.append_value(&text);
        }
        Ok(texts.finish())
    }

    fn uuids(&self, more: &Self) -> StringArray {
        let mut texts = StringBuilder::with_capacity(self.words.len(), self.words.len() * 36);
        let mut text = uuid::Uuid::encode_buffer();
        for (row, (high, low)) in self.words.iter().zip(&more.words).enumerate() {
            if self.is_null(row) {
                texts.append_null();
                continue;
            }
            let bits = u128::from(*high) << 64 | u128::from(*low);
            let uuid = uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid();
            texts.append_value(uuid.hyphenated().encode_lower(&mut text));
        }
        texts.finish()
    }
}

fn in_order<T: PartialOrd + std::fmt::Display>(min: T, max: T) -> Result<()> {
    if min > max {
        return Err(Error::data(format!(
            "uniform({min}, {max}, …): the least number comes first, and is {max} here"
        )));
    }
    Ok(())
}

/// One of the numbers from `min` to `max`: the bits as a fraction of 2⁶⁴, times how many there are.
fn whole(min: i64, max: i64, word: u64) -> Result<i64> {
    in_order(min, max)?;
    let count = u128::from(max.wrapping_sub(min) as u64) + 1;
    let chosen = (u128::from(word) * count) >> 64;
    Ok(min.wrapping_add(chosen as i64))
}

/// In [0, 1): the upper 53 bits, which is as many as a DOUBLE holds.
fn unit(word: u64) -> f64 {
    (word >> 11) as f64 / (1_u64 << 53) as f64
}

fn fraction(min: f64, max: f64, word: u64) -> Result<f64> {
    in_order(min, max)?;
    let value = min + (max - min) * unit(word);
    // Rounding may have reached the end.
    Ok(if value >= max && min < max {
        max.next_down()
    } else {
        value
    })
}

/// Of mean 0 and standard deviation 1, by the transform of Box and Muller.
fn bell(word: u64) -> f64 {
    let radius = (-2.0 * (1.0 - unit(word)).ln()).sqrt();
    let angle = std::f64::consts::TAU * unit(mixed(word.wrapping_add(STEP)));
    radius * angle.cos()
}

#[cfg(test)]
mod tests;
