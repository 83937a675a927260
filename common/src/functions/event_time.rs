//! The scalar functions that `GROUP BY window(...)` and `GROUP BY session_window(...)` become.
//!
//! They are volatile to the optimizer although they are not: above the aggregate, their column holds the start of the
//! window, and no longer what the function yields for a row. So nothing may evaluate them a second time elsewhere.

use crate::error::{Error, Result};
use crate::functions::window::{
    SESSION_END, SESSION_KEY, SESSION_START, Scale, WINDOW_KEY, WindowSpec, map, session_gap,
};
use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{Result as DFResult, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};
use std::sync::{Arc, LazyLock};

static ANY: LazyLock<Signature> = LazyLock::new(|| Signature::variadic_any(Volatility::Volatile));

/// A function of event time. The times it yields have the type of its first argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventTime {
    /// `essaim_window(ts, size[, slide])`: the start of the pane that holds `ts`.
    Window,
    /// `essaim_window_start(start)`: its argument. It keeps filters above the aggregate.
    WindowStart,
    /// `essaim_window_end(start, size[, slide])`: the end of the window that starts at `start`.
    WindowEnd,
    /// `essaim_session(ts, gap)`: `ts`.
    Session,
    /// `essaim_session_end(ts, gap)`: `ts` plus the gap.
    SessionEnd,
}

impl EventTime {
    pub const ALL: [Self; 5] = [
        Self::Window,
        Self::WindowStart,
        Self::WindowEnd,
        Self::Session,
        Self::SessionEnd,
    ];

    /// Its name in SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Window => "essaim_window",
            Self::WindowStart => "essaim_window_start",
            Self::WindowEnd => "essaim_window_end",
            Self::Session => "essaim_session",
            Self::SessionEnd => "essaim_session_end",
        }
    }

    /// Whether it stands for a window of the rows: as a whole in GROUP BY, and nowhere else.
    pub fn is_group(self) -> bool {
        matches!(self, Self::Window | Self::Session | Self::SessionEnd)
    }

    /// The function of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.as_str() == name)
    }

    fn field(self, args: &ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let Some(time) = args.arg_fields.first() else {
            return Err(Error::invalid(format!("{}() takes a time", self.as_str())));
        };
        let literals = literals(args.scalar_arguments.iter().skip(1).copied());
        let metadata = match self {
            Self::Window | Self::WindowEnd => {
                let spec = window(&literals?)?;
                spec.scale(time.data_type())?;
                (self == Self::Window).then(|| (WINDOW_KEY, spec.to_string()))
            }
            Self::Session | Self::SessionEnd => {
                Scale::of(time.data_type())?.exact(gap(&literals?)?)?;
                let side = match self {
                    Self::Session => SESSION_START,
                    _ => SESSION_END,
                };
                Some((SESSION_KEY, side.to_owned()))
            }
            Self::WindowStart => None,
        };
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value));
        Ok(Arc::new(
            Field::new(self.as_str(), time.data_type().clone(), time.is_nullable())
                .with_metadata(metadata.into_iter().collect()),
        ))
    }

    fn invoke(self, args: &ScalarFunctionArgs) -> Result<ColumnarValue> {
        let Some(time) = args.args.first() else {
            return Err(Error::internal("no time"));
        };
        let literals = || {
            literals(args.args.iter().skip(1).map(|arg| match arg {
                ColumnarValue::Scalar(value) => Some(value),
                ColumnarValue::Array(_) => None,
            }))
        };
        match self {
            Self::WindowStart | Self::Session => Ok(time.clone()),
            Self::Window => {
                let spec = window(&literals()?)?;
                each(time, |times| spec.pane_starts(times))
            }
            Self::WindowEnd => {
                let spec = window(&literals()?)?;
                each(time, |starts| spec.ends(starts))
            }
            Self::SessionEnd => {
                let gap = gap(&literals()?)?;
                let gap = Scale::of(&time.data_type())?.exact(gap)?;
                each(time, |times| map(times, |time| time.checked_add(gap)))
            }
        }
    }
}

impl ScalarUDFImpl for EventTime {
    fn name(&self) -> &str {
        self.as_str()
    }

    fn signature(&self) -> &Signature {
        &ANY
    }

    fn return_type(&self, arg_types: &[DataType]) -> DFResult<DataType> {
        arg_types
            .first()
            .cloned()
            .ok_or_else(|| Error::invalid(format!("{}() takes a time", self.as_str())).into())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> DFResult<FieldRef> {
        Ok(self.field(&args)?)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DFResult<ColumnarValue> {
        Ok(self.invoke(&args)?)
    }
}

fn literals<'a>(
    args: impl Iterator<Item = Option<&'a ScalarValue>>,
) -> Result<Vec<&'a ScalarValue>> {
    args.map(|arg| {
        arg.ok_or_else(|| {
            Error::invalid(
                "the size, slide and gap of a window must be literals: write INTERVAL '1 minute', or '1 minute'",
            )
        })
    })
    .collect()
}

fn window(literals: &[&ScalarValue]) -> Result<WindowSpec> {
    match literals {
        [size] => WindowSpec::parse(size, None),
        [size, slide] => WindowSpec::parse(size, Some(slide)),
        _ => Err(Error::invalid(
            "window() takes a time, a size and perhaps a slide: window(ts, INTERVAL '1 minute', INTERVAL '10 seconds')",
        )),
    }
}

fn gap(literals: &[&ScalarValue]) -> Result<i64> {
    match literals {
        [gap] => session_gap(gap),
        _ => Err(Error::invalid(
            "session_window() takes a time and a gap: session_window(ts, INTERVAL '5 minutes')",
        )),
    }
}

fn each(times: &ColumnarValue, f: impl Fn(&ArrayRef) -> Result<ArrayRef>) -> Result<ColumnarValue> {
    match times {
        ColumnarValue::Array(times) => Ok(ColumnarValue::Array(f(times)?)),
        ColumnarValue::Scalar(time) => {
            let times = f(&time.to_array()?)?;
            Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(
                &times, 0,
            )?))
        }
    }
}
