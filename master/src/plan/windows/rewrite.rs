//! `GROUP BY window(...)` in SQL: rewritten into functions of event time before the statement is planned.
//!
//! In a query that groups by a window, `window_start`, `window_end`, `window.start` and `window.end` mean that window,
//! whatever its input's columns are called; a column of the input is then written with its table's name. Elsewhere
//! they are columns like others. As in Spark, rows whose time is NULL are in no window: they are filtered out.

use datafusion::sql::parser::{CopyToSource, Statement};
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Distinct, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList,
    FunctionArguments, GroupByExpr, Ident, ObjectName, OrderBy, OrderByKind, Query, Select,
    SelectItem, SetExpr, Value, VisitMut, VisitorMut,
};
use essaim_common::functions::event_time::EventTime;
use essaim_common::{Error, Result};
use std::ops::ControlFlow;

/// Rewrites a statement with all its subqueries. One that groups by no window stays as it is.
///
/// # Errors
/// A window that is not written as it must be, or not in GROUP BY.
pub fn rewrite(statement: &mut Statement) -> Result<()> {
    let flow = match statement {
        Statement::Statement(sql) => sql.visit(&mut Rewriter),
        Statement::Explain(explain) => return rewrite(&mut explain.statement),
        Statement::CopyTo(copy) => match &mut copy.source {
            CopyToSource::Query(query) => query.visit(&mut Rewriter),
            CopyToSource::Relation(_) => ControlFlow::Continue(()),
        },
        _ => ControlFlow::Continue(()),
    };
    match flow {
        ControlFlow::Break(error) => Err(*error),
        ControlFlow::Continue(()) => Ok(()),
    }
}

/// The two kinds of windows that GROUP BY takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Window,
    Session,
}

/// Visits queries from the outside in: a call that is left when its expression is visited stands in the wrong place.
struct Rewriter;

impl VisitorMut for Rewriter {
    type Break = Box<Error>;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Self::Break> {
        match query.body.as_mut() {
            SetExpr::Select(select) => flow(rewrite_select(select, query.order_by.as_mut())),
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<Self::Break> {
        // A select with an ORDER BY has been rewritten with its query, and groups by no window() any more.
        flow(rewrite_select(select, None))
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Self::Break> {
        match kind(expr) {
            Some(_) => flow(Err(Error::invalid(format!(
                "{expr}: a window is an item of GROUP BY by itself: write GROUP BY {expr}, ... and SELECT window_start, window_end, ..."
            )))),
            None => ControlFlow::Continue(()),
        }
    }
}

fn flow(result: Result<()>) -> ControlFlow<Box<Error>> {
    match result {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => ControlFlow::Break(Box::new(error)),
    }
}

fn rewrite_select(select: &mut Select, order_by: Option<&mut OrderBy>) -> Result<()> {
    let GroupByExpr::Expressions(groups, modifiers) = &mut select.group_by else {
        return Ok(());
    };
    let mut windows = groups
        .iter()
        .filter_map(|group| Some((kind(group)?, group)));
    let Some((kind, call)) = windows.next() else {
        return Ok(());
    };
    if let Some((_, second)) = windows.next() {
        return Err(Error::invalid(format!(
            "GROUP BY {call}, {second}: a query groups by one window: group by the second one in a query around it"
        )));
    }
    if !modifiers.is_empty() {
        return Err(Error::invalid(format!(
            "GROUP BY {call}: a window goes with no ROLLUP, CUBE or GROUPING SETS"
        )));
    }
    let window = Window::new(kind, call)?;
    let time = window.time.clone();

    let projection = &select.projection;
    groups.retain(|group| kind_or(group) || !stands_for_window(group, projection));
    for group in groups.iter_mut().filter(|group| kind_or(group)) {
        *group = window.start.clone();
    }
    if kind == Kind::Session {
        groups.push(window.end.clone());
    }

    let known = Expr::IsNotNull(Box::new(Expr::Nested(Box::new(time))));
    select.selection = Some(match select.selection.take() {
        Some(selection) => Expr::BinaryOp {
            left: Box::new(Expr::Nested(Box::new(selection))),
            op: BinaryOperator::And,
            right: Box::new(known),
        },
        None => known,
    });

    for item in &mut select.projection {
        match item {
            SelectItem::UnnamedExpr(expr) => {
                let name = side(expr).map_or_else(|| expr.to_string(), |(_, name)| name);
                if window.substitute(expr, &[]) {
                    *item = SelectItem::ExprWithAlias {
                        expr: expr.clone(),
                        alias: Ident::with_quote('"', name),
                    };
                }
            }
            SelectItem::ExprWithAlias { expr, .. } => {
                window.substitute(expr, &[]);
            }
            _ => {}
        }
    }
    for expr in select.having.iter_mut().chain(select.qualify.iter_mut()) {
        window.substitute(expr, &[]);
    }
    if let Some(Distinct::On(exprs)) = &mut select.distinct {
        for expr in exprs {
            window.substitute(expr, &[]);
        }
    }
    if let Some(OrderBy {
        kind: OrderByKind::Expressions(exprs),
        ..
    }) = order_by
    {
        // ORDER BY sees the names of the result first.
        let names: Vec<String> = select.projection.iter().filter_map(name_of).collect();
        for expr in exprs {
            window.substitute(&mut expr.expr, &names);
        }
    }
    Ok(())
}

/// The window of a query, as the functions that it becomes.
struct Window {
    time: Expr,
    start: Expr,
    end: Expr,
}

impl Window {
    fn new(kind: Kind, call: &Expr) -> Result<Self> {
        let args = arguments(call).unwrap_or_default();
        let usage = match kind {
            Kind::Window => {
                "window(ts, INTERVAL '1 minute') or, with a slide, window(ts, INTERVAL '1 minute', INTERVAL '10 seconds')"
            }
            Kind::Session => "session_window(ts, INTERVAL '5 minutes')",
        };
        let (time, lengths) = match (kind, args.as_slice()) {
            (Kind::Window, [time, lengths @ ..]) if matches!(lengths.len(), 1 | 2) => {
                (time, lengths)
            }
            (Kind::Session, [time, lengths @ ..]) if lengths.len() == 1 => (time, lengths),
            _ => {
                return Err(Error::invalid(format!("GROUP BY {call}: write {usage}")));
            }
        };
        let with = |first: &Expr| {
            let mut args = vec![first.clone()];
            args.extend_from_slice(lengths);
            args
        };
        let (start, end) = match kind {
            Kind::Window => {
                let start = function(EventTime::Window, with(time));
                let end = function(EventTime::WindowEnd, with(&start));
                (start, end)
            }
            Kind::Session => (
                function(EventTime::Session, with(time)),
                function(EventTime::SessionEnd, with(time)),
            ),
        };
        Ok(Self {
            time: time.clone(),
            start,
            end,
        })
    }

    /// Puts the functions for the names of the window, but for those in `hidden`. Whether there were any.
    fn substitute(&self, expr: &mut Expr, hidden: &[String]) -> bool {
        let mut substitute = Substitute {
            window: self,
            hidden,
            depth: 0,
            changed: false,
        };
        // It never breaks off.
        let _: ControlFlow<()> = expr.visit(&mut substitute);
        substitute.changed
    }
}

struct Substitute<'a> {
    window: &'a Window,
    hidden: &'a [String],
    /// How many subqueries deep: their names are their own.
    depth: usize,
    changed: bool,
}

impl VisitorMut for Substitute<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, _query: &mut Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _query: &mut Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if self.depth == 0
            && let Some((side, name)) = side(expr)
            && !(matches!(expr, Expr::Identifier(_)) && self.hidden.contains(&name))
        {
            *expr = match side {
                Side::Start => self.window.start.clone(),
                Side::End => self.window.end.clone(),
            };
            self.changed = true;
        }
        ControlFlow::Continue(())
    }
}

#[derive(Debug, Clone, Copy)]
enum Side {
    Start,
    End,
}

/// Which end of the window an expression names, and the name that it has in a result.
fn side(expr: &Expr) -> Option<(Side, String)> {
    let (side, name) = match expr {
        Expr::Identifier(ident) => match normal(ident).as_str() {
            "window_start" => (Side::Start, "window_start"),
            "window_end" => (Side::End, "window_end"),
            _ => return None,
        },
        Expr::CompoundIdentifier(idents) => match idents.as_slice() {
            [window, side] if normal(window) == "window" => match normal(side).as_str() {
                "start" => (Side::Start, "start"),
                "end" => (Side::End, "end"),
                _ => return None,
            },
            _ => return None,
        },
        _ => return None,
    };
    Some((side, name.to_owned()))
}

/// Whether an item of GROUP BY only says again that rows are grouped by the window: by name or by position.
fn stands_for_window(group: &Expr, projection: &[SelectItem]) -> bool {
    if let Expr::Value(value) = group
        && let Value::Number(position, _) = &value.value
    {
        let index = position
            .parse::<usize>()
            .ok()
            .and_then(|p| p.checked_sub(1));
        return match index.and_then(|index| projection.get(index)) {
            Some(SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) => {
                side(expr).is_some()
            }
            _ => false,
        };
    }
    side(group).is_some()
}

fn kind_or(group: &Expr) -> bool {
    kind(group).is_some()
}

fn kind(expr: &Expr) -> Option<Kind> {
    let Expr::Function(function) = expr else {
        return None;
    };
    let [part] = function.name.0.as_slice() else {
        return None;
    };
    if function.over.is_some() {
        return None;
    }
    match normal(part.as_ident()?).as_str() {
        "window" => Some(Kind::Window),
        "session_window" => Some(Kind::Session),
        _ => None,
    }
}

/// The arguments of a plain call.
fn arguments(call: &Expr) -> Option<Vec<Expr>> {
    let Expr::Function(Function {
        args: FunctionArguments::List(list),
        ..
    }) = call
    else {
        return None;
    };
    let args = list.args.iter().map(|arg| match arg {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
        _ => None,
    });
    args.collect()
}

fn function(name: EventTime, args: Vec<Expr>) -> Expr {
    let unnamed = |expr| FunctionArg::Unnamed(FunctionArgExpr::Expr(expr));
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name.as_str())]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: args.into_iter().map(unnamed).collect(),
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

/// The name that an item has in the result, if it is a name of the window.
fn name_of(item: &SelectItem) -> Option<String> {
    match item {
        SelectItem::ExprWithAlias { alias, .. } => Some(normal(alias)),
        _ => None,
    }
}

fn normal(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    }
}
