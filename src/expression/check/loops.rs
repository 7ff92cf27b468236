//! The loops over lists, which the parser has taken apart into an accumulator and its steps: known again by their form.
use cel::IdedExpr;
use cel::common::ast::{CallExpr, ComprehensionExpr, Expr, ListExpr, LiteralValue, operators};

use super::super::kind::Kind;
use super::super::names::Name;
use super::super::node::{Loop, Node};
use super::{Check, Checked};

/// A loop as it was written.
struct Written<'e> {
    kind: Loop,
    /// What is asked of each item, or made of it.
    body: &'e IdedExpr,
    /// `map` with a condition: which items at all.
    only: Option<&'e IdedExpr>,
}

impl<'e> Check<'e> {
    pub(super) fn comprehension(&mut self, expr: &'e IdedExpr, of: &'e ComprehensionExpr) -> Checked {
        let Some(written) = written(of).filter(|_| of.iter_var2.is_none()) else {
            return self.refuse(
                expr,
                "is no loop of a known form",
                "use all, exists, exists_one, filter or map",
            );
        };
        if !Name::below(&of.iter_var).is_empty() {
            let what = format!("`{}` is a name already", of.iter_var);
            return self.refuse(expr, what, "give the items another name");
        }
        let (list, kind) = self.part(&of.iter_range)?;
        let item = match kind {
            Kind::Any => Kind::Any,
            Kind::List(of) => *of,
            Kind::Map(of) if *of == Kind::Any => Kind::Text,
            other => {
                let what = format!("{other} has no items to go through");
                return self.refuse(&of.iter_range, what, "go through a list");
            }
        };
        self.variables.push((&of.iter_var, item.clone()));
        let only = written.only.map(|only| self.truth(only, "`map`"));
        let body = match written.kind {
            Loop::Map => self.part(written.body),
            _ => self.truth(written.body, "the loop").map(|node| (node, Kind::Bool)),
        };
        self.variables.pop();
        let list = match only {
            Some(only) => Node::Loop(Loop::Filter, Box::new([list, only?])),
            None => list,
        };
        let (body, made) = body?;
        let kind = match written.kind {
            Loop::All | Loop::Exists | Loop::ExistsOne => Kind::Bool,
            Loop::Filter => Kind::List(Box::new(item)),
            Loop::Map => Kind::List(Box::new(made)),
        };
        Some((Node::Loop(written.kind, Box::new([list, body])), kind))
    }
}

fn written(of: &ComprehensionExpr) -> Option<Written<'_>> {
    let Expr::Call(step) = &of.loop_step.expr else { return None };
    let whole = |kind, body| Written { kind, body, only: None };
    Some(match (&of.accu_init.expr, step.func_name.as_str(), step.args.as_slice()) {
        (Expr::Literal(LiteralValue::Boolean(_)), operators::LOGICAL_AND, [_, body]) => {
            whole(Loop::All, body)
        }
        (Expr::Literal(LiteralValue::Boolean(_)), operators::LOGICAL_OR, [_, body]) => {
            whole(Loop::Exists, body)
        }
        (Expr::Literal(LiteralValue::Int(_)), operators::CONDITIONAL, [body, _, _]) => {
            whole(Loop::ExistsOne, body)
        }
        (Expr::List(_), operators::ADD, _) => whole(Loop::Map, added(&step.args)?),
        (Expr::List(_), operators::CONDITIONAL, [condition, grown, _]) => {
            let Expr::Call(CallExpr { args, .. }) = &grown.expr else { return None };
            let made = added(args)?;
            match &made.expr {
                Expr::Ident(name) if *name == of.iter_var => whole(Loop::Filter, condition),
                _ => Written { kind: Loop::Map, body: made, only: Some(condition) },
            }
        }
        _ => return None,
    })
}

/// What is added to the list that grows.
fn added(args: &[IdedExpr]) -> Option<&IdedExpr> {
    match args {
        [_, IdedExpr { expr: Expr::List(ListExpr { elements, .. }), .. }] => elements.first(),
        _ => None,
    }
}
