//! Functions and methods.
use std::time::SystemTime;

use cel::IdedExpr;
use cel::common::ast::{CallExpr, Expr, LiteralValue};
use ipnet::IpNet;
use regex::RegexBuilder;

use super::super::kind::Kind;
use super::super::node::{Conversion, Node, Part, Test};
use super::{Check, Checked};

/// Of a compiled pattern, bytes.
const PATTERN: usize = 256 * 1024;
const KNOWN: &str = "use contains, startsWith, endsWith, matches, lowerAscii, size, in, has, all, exists, exists_one, filter, map, \
                     string, int, double, timestamp, getFullYear, getMonth, getDate, getDayOfMonth, getDayOfWeek, getHours, getMinutes \
                     or cidr('…').containsIP";

impl<'e> Check<'e> {
    pub(super) fn function(&mut self, expr: &'e IdedExpr, call: &'e CallExpr) -> Checked {
        let name = call.func_name.as_str();
        match (call.target.as_deref(), name, call.args.as_slice()) {
            (None, "size", [of]) | (Some(of), "size", []) => self.size(expr, of),
            (None, "string", [of]) => {
                let wants = [Kind::Text, Kind::Int, Kind::Bool];
                self.converted(expr, of, Conversion::Text, Kind::Text, &wants)
            }
            (None, "int", [of]) => {
                let wants = [Kind::Int, Kind::Double, Kind::Text];
                self.converted(expr, of, Conversion::Int, Kind::Int, &wants)
            }
            (None, "double", [of]) => {
                let wants = [Kind::Double, Kind::Int, Kind::Text];
                self.converted(expr, of, Conversion::Double, Kind::Double, &wants)
            }
            (Some(of), "lowerAscii", []) => {
                self.converted(expr, of, Conversion::LowerCase, Kind::Text, &[Kind::Text])
            }
            (None, "timestamp", [text]) => self.timestamp(expr, text),
            (Some(of), "contains", [part]) => self.test(Test::Contains, of, part),
            (Some(of), "endsWith", [part]) => self.test(Test::EndsWith, of, part),
            (Some(of), "startsWith", [part]) => self.test(Test::StartsWith, of, part),
            (Some(of), "matches", [pattern]) | (None, "matches", [of, pattern]) => self.pattern(of, pattern),
            (Some(network), "containsIP", [address]) => self.network(network, address),
            (Some(of), _, []) if let Some(part) = part(name) => {
                let (node, kind) = self.part(of)?;
                self.require(of, &kind, &Kind::Time, name, "write `request.time`")?;
                Some((Node::Part(part, Box::new(node)), Kind::Int))
            }
            (Some(_), _, [_]) if part(name).is_some() => {
                self.refuse(expr, "times are in UTC here", format!("write `{name}()`"))
            }
            _ => self.refuse(expr, format!("there is no `{name}` of this form"), KNOWN),
        }
    }

    fn size(&mut self, expr: &'e IdedExpr, of: &'e IdedExpr) -> Checked {
        let (node, kind) = self.part(of)?;
        let is_table = matches!(&kind, Kind::Map(of) if **of == Kind::Text);
        match &kind {
            Kind::Any | Kind::List(_) | Kind::Map(_) | Kind::Text if !is_table => {
                Some((Node::Size(Box::new(node)), Kind::Int))
            }
            _ => {
                let what =
                    if is_table { "headers have no size".to_owned() } else { format!("{kind} has no size") };
                self.refuse(expr, what, "ask for the size of a text, a list or a map")
            }
        }
    }

    fn converted(
        &mut self,
        expr: &'e IdedExpr,
        of: &'e IdedExpr,
        to: Conversion,
        result: Kind,
        wants: &[Kind],
    ) -> Checked {
        let (node, kind) = self.part(of)?;
        if !wants.iter().any(|wanted| kind.may_be(wanted)) {
            let wants: Vec<String> = wants.iter().map(Kind::to_string).collect();
            let what = format!("{kind} is nothing that can be converted");
            return self.refuse(expr, what, format!("give it {}", wants.join(" or ")));
        }
        Some((Node::Convert(to, Box::new(node)), result))
    }

    fn test(&mut self, test: Test, of: &'e IdedExpr, part: &'e IdedExpr) -> Checked {
        let (of, part) = (self.texts(of), self.texts(part));
        Some((Node::Test(test, Box::new([of?, part?])), Kind::Bool))
    }

    fn texts(&mut self, expr: &'e IdedExpr) -> Option<Node> {
        let (node, kind) = self.part(expr)?;
        self.require(expr, &kind, &Kind::Text, "the function", "give it a text")?;
        Some(node)
    }

    /// Compiled once, so that it has to be written out.
    fn pattern(&mut self, of: &'e IdedExpr, pattern: &'e IdedExpr) -> Checked {
        let of = self.texts(of);
        let Some(text) = literal(pattern) else {
            return self.refuse(pattern, "a pattern is known beforehand", "write it out as a text");
        };
        match RegexBuilder::new(text).size_limit(PATTERN).build() {
            Ok(regex) => Some((Node::Matches(Box::new(of?), Box::new(regex)), Kind::Bool)),
            Err(error) => {
                let said = error.to_string();
                let reason = said.lines().last().unwrap_or_default().trim_start_matches("error: ");
                let write = "write a regular expression in RE2 syntax";
                self.refuse(pattern, format!("is no pattern: {reason}"), write)
            }
        }
    }

    /// `cidr('10.0.0.0/8').containsIP(request.source)`, as in Kubernetes.
    fn network(&mut self, network: &'e IdedExpr, address: &'e IdedExpr) -> Checked {
        let address = self.texts(address);
        let text = match &network.expr {
            Expr::Call(CallExpr { func_name, target: None, args }) if func_name == "cidr" => {
                args.first().filter(|_| args.len() == 1).and_then(literal)
            }
            _ => None,
        };
        match text.and_then(|text| text.parse::<IpNet>().ok()) {
            Some(network) => Some((Node::Within(network, Box::new(address?)), Kind::Bool)),
            None => {
                let write = "write one out, like cidr('10.0.0.0/8').containsIP(request.source)";
                self.refuse(network, "is no network", write)
            }
        }
    }

    fn timestamp(&mut self, expr: &'e IdedExpr, text: &'e IdedExpr) -> Checked {
        let time: Option<SystemTime> = literal(text).and_then(|text| humantime::parse_rfc3339(text).ok());
        match time {
            Some(time) => Some((Node::Time(time), Kind::Time)),
            None => self.refuse(
                expr,
                "is no time in UTC",
                "write one out, like timestamp('2026-01-31T12:00:00Z')",
            ),
        }
    }
}

fn literal(expr: &IdedExpr) -> Option<&str> {
    match &expr.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

fn part(name: &str) -> Option<Part> {
    Some(match name {
        "getDate" => Part::Date,
        "getDayOfMonth" => Part::DayOfMonth,
        "getDayOfWeek" => Part::DayOfWeek,
        "getFullYear" => Part::FullYear,
        "getHours" => Part::Hours,
        "getMinutes" => Part::Minutes,
        "getMonth" => Part::Month,
        _ => return None,
    })
}
